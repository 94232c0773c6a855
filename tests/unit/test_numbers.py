# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of callers: whole ones of any kind, a float nowhere, and nothing done before all are checked (A3)."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import decimal
import fractions
import inspect
import os
import pathlib
import random
import signal
import socket
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import blkmig
from blkmig import _core, _gate, _stream, block, disk, errors, files, migration, params, qemu, sources, units
from blkmig.disk import dirty
from blkmig.files import dirtymap, sharedmap
from blkmig.nbd import backend as nbd
from blkmig.nbd import image

MiB = 1 << 20
SIZE = 4 * MiB
NO_NUMBERS = [1.0, 0.0, 1.9, np.float64(1), np.float32(0), decimal.Decimal(1), fractions.Fraction(1), 1j, np.bool_(1)]
NO_NUMBERS += ["1", b"1", None, [1], np.array([1, 2]), np.array(1.0)]
NO_FLAGS = ["no", "", "off", 0, 1, None, 1.0, [], np.int8(1), b"no"]
INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
ABSURD = [-1, -(1 << 31), -(1 << 63), -(1 << 64), 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64]
ABSURD += [1 << 200]
CLEAR = (OverflowError, IndexError, ValueError, OSError, MemoryError, EOFError)


# ---- _core: every callable of the stub, every parameter that is an int ----

MODULES = {"_core": _core, "_gate": _gate, "_stream": _stream}
TREES = {name: ast.parse(pathlib.Path(_core.__file__).with_name(f"{name}.pyi").read_text()) for name in MODULES}
OWNERS = {
    node.name: MODULES[name]
    for name, tree in TREES.items()
    for node in tree.body
    if isinstance(node, ast.ClassDef | ast.FunctionDef)
}


def callables() -> Iterator[tuple[str, list[ast.arg]]]:
    for node in [node for tree in TREES.values() for node in tree.body]:
        if isinstance(node, ast.FunctionDef):
            yield node.name, positional(node)
        elif isinstance(node, ast.ClassDef) and not node.bases:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.decorator_list and method.name != "__buffer__":
                    yield f"{node.name}.{method.name}", positional(method)[1:]


def positional(function: ast.FunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args]


def is_number(parameter: ast.arg) -> bool:
    return parameter.annotation is not None and ast.unparse(parameter.annotation) in ("int", "int | None", "float")


CALLS = [(name, parameters) for name, parameters in callables() if any(map(is_number, parameters))]


@pytest.fixture
def world(tmp_path: pathlib.Path) -> Iterator[types.SimpleNamespace]:
    """What the calls are given: a file of some data, both ends of a stream, a buffer of each kind."""
    path = tmp_path / "f"
    path.write_bytes(bytes(range(256)) * 8192)
    fd = os.open(path, os.O_RDWR)
    ours, theirs = socket.socketpair()
    theirs.sendall(b"\1" * 4096)
    theirs.shutdown(socket.SHUT_WR)
    ours.setblocking(False)
    reader = threading.Thread(target=lambda: [None for _ in iter(lambda: theirs.recv(MiB), b"")])
    reader.start()
    queue = _stream.StoringQueue(65536, 4, 2, 4)
    queue.close()  # what is put is dropped, and nobody waits
    yield types.SimpleNamespace(
        fd=fd,
        buffer=bytearray(4096),
        name=b"vda",
        Bitmap=_core.Bitmap(4096),
        BlockBuffer=_core.BlockBuffer(),
        Mapping=_core.Mapping(fd, 2 * MiB),
        OutputBuffer=_stream.OutputBuffer(ours.fileno()),
        InputBuffer=_stream.InputBuffer(ours.fileno()),
        StoringQueue=queue,
        Gate=_gate.Gate(),
    )
    ours.shutdown(socket.SHUT_RDWR)
    reader.join(30)
    ours.close()
    theirs.close()
    os.close(fd)


#: Numbers that each parameter takes; 1 suits the others.
VALID = {"offset": 0, "start": 0, "nbytes": 4096, "size": 8192, "stop": 64, "cluster": 65536, "capacity": 512}
#: Parameters at which absurd numbers are fine, or would only wait.
ANY_NUMBER = {"value", "seconds", "idle_seconds", "mask", "a", "b", "a_nbytes", "b_nbytes"}


def arguments(world: types.SimpleNamespace, parameters: list[ast.arg]) -> list[Any]:
    found: list[Any] = []
    for parameter in parameters:
        kind = ast.unparse(parameter.annotation) if parameter.annotation else ""
        if parameter.arg == "fd":
            found.append(world.fd)
        elif is_number(parameter):
            found.append(VALID.get(parameter.arg, 1))
        elif kind == "bool":
            found.append(False)
        elif kind == "object":
            found.append(None)
        elif kind in ("Buffer", "bytes"):
            found.append(world.buffer if kind == "Buffer" else world.name)
        else:
            found.append(getattr(world, kind))
    return found


def target(world: types.SimpleNamespace, name: str) -> Callable[..., Any]:
    owner, _, method = name.rpartition(".")
    if not owner:
        return getattr(OWNERS[name], name)
    return getattr(OWNERS[owner], owner) if method == "__init__" else getattr(getattr(world, owner), method)


def outcome(call: Callable[..., Any], args: list[Any]) -> object:
    """Return what a call returns, if that can be compared, or the type of its error."""
    try:
        result = call(*args)
    except CLEAR as error:
        return type(error)
    return result if isinstance(result, int | float | bytes | tuple | list) or result is None else type(result)


@pytest.mark.parametrize(("name", "parameters"), CALLS, ids=[name for name, _ in CALLS])
def test_the_verbs_refuse_what_is_no_whole_number(name, parameters, world):
    """A3: ``put_be64(buf, 0, 1.9)``, ``pwrite_full(fd, b"ZZ", 2.5)``."""
    before = os.pread(world.fd, 3 * MiB, 0)
    for index, parameter in enumerate(parameters):
        if not is_number(parameter):
            continue
        for value in NO_NUMBERS:
            optional = value is None and "None" in ast.unparse(parameter.annotation)
            is_float = ast.unparse(parameter.annotation) == "float"
            if optional or (is_float and hasattr(type(value), "__float__")):
                continue
            args = arguments(world, parameters)
            args[index] = value
            with pytest.raises(TypeError):
                target(world, name)(*args)
    assert os.pread(world.fd, 3 * MiB, 0) == before
    assert world.buffer == bytes(4096)
    assert world.OutputBuffer.position == world.InputBuffer.position == world.Bitmap.count() == 0


@pytest.mark.parametrize(("name", "parameters"), CALLS, ids=[name for name, _ in CALLS])
def test_the_verbs_take_numbers_of_numpy(name, parameters, world):
    if name.startswith(("InputBuffer.get_", "InputBuffer.skip")):
        return  # each call moves on; test_buffers has them
    args = arguments(world, parameters)
    for kind in INTEGERS:
        limit = np.iinfo(kind).max
        given = [kind(arg) if is_number(p) and arg <= limit else arg for p, arg in zip(parameters, args, strict=True)]
        assert outcome(target(world, name), given) == outcome(target(world, name), args)


@pytest.mark.parametrize(("name", "parameters"), CALLS, ids=[name for name, _ in CALLS])
def test_the_verbs_say_clearly_that_a_number_is_absurd(name, parameters, world):
    for index, parameter in enumerate(parameters):
        if not is_number(parameter) or parameter.arg in ANY_NUMBER:
            continue
        if (name, parameter.arg) == ("OutputBuffer.put_zero_records", "count"):
            continue  # it would send so many
        for value in ABSURD:
            args = arguments(world, parameters)
            args[index] = value
            outcome(target(world, name), args)  # an error of the clear ones, or nothing that anybody must know of


def test_bits_of_a_block_do_not_overflow(world):
    """``block * bits_per_block`` is checked before it is a product modulo 2^64."""
    for bits in (1 << 63, (1 << 64) - 1, 1 << 32):
        with pytest.raises((ValueError, IndexError)):
            world.OutputBuffer.put_file_blocks(
                world.Mapping, 0, 2, b"vda", world.BlockBuffer, world.Bitmap, bits, 1.0)


# ---- disks ----


def memory(_: pathlib.Path) -> disk.LocalBackend:
    return files.MemoryBackend(bytearray(SIZE), name="d")


def raw(path: pathlib.Path) -> disk.LocalBackend:
    return files.FileBackend.create(path / "d.raw", SIZE)


def overlay(path: pathlib.Path) -> disk.LocalBackend:
    (path / "base").write_bytes(b"base" * 1000)
    files.FileBackend.create(path / "top", SIZE).close()
    return files.FileBackend(path / "top", base=path / "base")


@pytest.fixture(params=[memory, raw, overlay], ids=lambda make: make.__name__)
def backend(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[disk.LocalBackend]:
    with request.param(tmp_path) as made:
        yield made


def enter(context: Any) -> None:
    with context:
        pass


#: Each takes a disk and two numbers.
RANGES: dict[str, Callable[[Any, Any, Any], object]] = {
    "pread": lambda d, offset, n: d.pread(offset, n),
    "pwrite_zeroes": lambda d, offset, n: d.pwrite_zeroes(offset, n),
    "write_zeroes": lambda d, offset, n: d.write_zeroes(offset, n),
    "mark_dirty": lambda d, offset, n: d.mark_dirty(offset, n),
    "writing": lambda d, offset, n: enter(d.writing(offset, n)),
    "read_block": lambda d, offset, n: d.read_block(_core.BlockBuffer(), offset, n),
    "write_block": lambda d, offset, n: d.write_block(_core.BlockBuffer(), offset, n),
    "next_allocated": lambda d, offset, n: d.next_allocated(offset, n),
    "mark": lambda d, offset, n: d.bitmap.mark(offset, n),
    "take_blocks": lambda d, offset, n: d.bitmap.take_blocks(offset, n),
}
#: Each takes a disk and one number.
PLACES: dict[str, Callable[[Any, Any], object]] = {
    "pwrite": lambda d, offset: d.pwrite(b"x", offset),
    "next_data": lambda d, offset: d.next_data(offset),
    "zeroes_end": lambda d, offset: d.zeroes_end(offset) if isinstance(d, files.FileBackend) else d.pread(offset, 1),
    "create_dirty_bitmap": lambda d, granularity: d.create_dirty_bitmap(granularity),
    "mark_block": lambda d, block: d.bitmap.mark_block(block),
    "take_block": lambda d, block: d.bitmap.take_block(block),
    "is_dirty": lambda d, block: d.bitmap.is_dirty(block),
    "next_dirty": lambda d, block: d.bitmap.next_dirty(block),
    "block_range": lambda d, block: d.bitmap.block_range(block),
    "take_areas": lambda d, count: d.bitmap.take_areas(count),
}
VERBS = {**RANGES, **PLACES}


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_refuses_what_is_no_whole_number(backend, verb):
    """A3: ``pwrite(b"a", 1.5)`` was a TypeError after the write."""
    backend.bitmap = backend.create_dirty_bitmap(65536)
    before = backend.pread(0, SIZE)
    bools = [True, False] if verb != "read_block" else []  # the compiled part takes them, and one is called a block
    for value in [*NO_NUMBERS, *bools]:
        for args in [(value, 1), (0, value)] if verb in RANGES else [(value,)]:
            with pytest.raises(TypeError):
                VERBS[verb](backend, *args)
    assert backend.pread(0, SIZE) == before
    assert backend.bitmap.count_blocks() == 0


@pytest.mark.parametrize("kind", INTEGERS, ids=lambda kind: kind.__name__)
def test_a_disk_takes_numbers_of_numpy(backend, kind):
    """Each end of what the type holds: sums that overflow it must not."""
    bitmap = backend.create_dirty_bitmap(65536)
    limit = int(np.iinfo(kind).max)
    for offset in {0, 1, limit, limit - 4} & set(range(SIZE - 8)):
        backend.pwrite(b"Z" * 8, kind(offset))
        assert backend.pread(kind(offset), kind(8)) == b"Z" * 8
        assert bitmap.take_block(kind(offset // MiB)), offset
        backend.pwrite_zeroes(kind(offset), kind(8))
        assert bitmap.take_block(offset // MiB), offset
        assert backend.pread(offset, 8) == bytes(8)
        backend.mark_dirty(kind(offset), kind(8))
        assert bitmap.take_areas(kind(100))
        with backend.writing(kind(offset), kind(8)):
            pass
        assert bitmap.count_blocks()
        bitmap.take_areas()
    blk = _core.BlockBuffer()
    backend.write_block(blk, kind(0), kind(100))
    assert backend.read_block(blk, kind(0), kind(100))


def test_writes_behind_the_end_are_refused_whatever_their_type(backend):
    """A3: the file grew to 2 GiB."""
    for offset in (np.int32(2**31 - 4), np.int64(2**63 - 4), np.uint32(2**32 - 4), np.uint64(2**64 - 4), 1 << 80):
        for write in (
            lambda at: backend.pwrite(b"Z" * 8, at),
            lambda at: backend.pwrite_zeroes(at, np.int32(8)),
            lambda at: backend.write_block(_core.BlockBuffer(), at, np.int32(8)),
            lambda at: backend.writing(at, np.int16(8)),
            lambda at: backend.mark_dirty(at, np.int8(8)),
        ):
            with pytest.raises(errors.DeviceError, match="outside the disk"):
                write(offset)
    if isinstance(backend, files.FileBackend):
        assert pathlib.Path(backend._top.path).stat().st_size == SIZE


def test_a_write_at_a_small_number_is_marked(backend):
    """A3: ``pwrite(bytes(8192), numpy.int16(0x7000))`` was written and never marked."""
    bitmap = backend.create_dirty_bitmap(65536)
    backend.pwrite(b"x" * 8192, np.int16(0x7000))
    assert bitmap.take_areas() == [(0, 65536)]


def test_sizes_of_numpy(tmp_path):
    for kind in INTEGERS:
        with files.FileBackend.create(tmp_path / kind.__name__, kind(100)) as new:
            assert new.size == 100
            new.resize(kind(90))
            assert type(new.size) is int
        assert (tmp_path / kind.__name__).stat().st_size == 90
        assert dirty.DirtyBitmap(kind(100), np.int64(65536)).nblocks == 1
        assert disk.BlockGeometry(kind(100)).block_of(kind(0)) == 0
        dirtymap.create_map(tmp_path / "map", kind(100), granularity=np.int32(4096))
        assert units.parse_size(kind(100)) == 100


def test_a_file_of_no_whole_size_is_not_made(tmp_path):
    for value in [*NO_NUMBERS, True]:
        if value is not None:
            with pytest.raises(TypeError):
                files.FileBackend(tmp_path / "new", create_size=value)
        if not isinstance(value, str):
            with pytest.raises(errors.ParameterError):
                dirtymap.create_map(tmp_path / "new", value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [*NO_NUMBERS, True])
def test_a_size_is_a_whole_number_or_a_text(value):
    if isinstance(value, str):
        return
    with pytest.raises(errors.ParameterError):
        units.parse_size(value)
    with pytest.raises(errors.ParameterError):
        params.IncomingParameters(sizes={"vda": value})
    for name in ("max_bandwidth", "granularity", "max_parallel_reads", "max_buffers"):
        with pytest.raises(errors.ParameterError):
            params.MigrationParameters(**{name: value})


def test_a_size_of_too_many_digits():
    with pytest.raises(errors.ParameterError, match="5000 digits"):
        units.parse_size("1" * 5000)


def test_parameters_of_numpy_become_plain_numbers():
    given = params.MigrationParameters(
        max_bandwidth=np.uint64(5), granularity=np.int32(65536), max_rounds=np.int8(3), max_parallel_reads=np.uint8(2),
        max_buffers=np.int16(9), downtime_limit=np.float32(0.5), downtime_factor=np.int64(2), timeout=np.float64(7),
        connect_timeout=np.uint16(3), idle_timeout=fractions.Fraction(1, 2),
    )
    assert given == params.MigrationParameters(
        max_bandwidth=5, granularity=65536, max_rounds=3, max_parallel_reads=2, max_buffers=9, downtime_limit=0.5,
        downtime_factor=2, timeout=7, connect_timeout=3, idle_timeout=0.5,
    )
    for name in inspect.signature(params.MigrationParameters).parameters:
        assert type(getattr(given, name)) in (int, float, str, bool, type(None)), name
    incoming = params.IncomingParameters(sizes={"a": np.int8(5)}, accept_timeout=np.float16(2), idle_timeout=np.int8(0))
    assert (incoming.sizes, incoming.accept_timeout, incoming.idle_timeout) == ({"a": 5}, 2, 0)


@pytest.mark.parametrize("name", ["downtime_limit", "downtime_factor", "connect_timeout", "idle_timeout", "timeout"])
@pytest.mark.parametrize("value", [True, "1", float("nan"), np.float64("nan"), -1, 1j, [1], np.bool_(1)])
def test_seconds_are_numbers(name, value):
    with pytest.raises(errors.ParameterError, match=name):
        params.MigrationParameters(**{name: value})


@pytest.mark.parametrize("value", [True, 0, 2.0, 1.5, float("inf"), "3"])
def test_rounds_are_whole(value):
    with pytest.raises(errors.ParameterError, match="max_rounds must be a whole number"):
        params.MigrationParameters(max_rounds=value)


# ---- yes or no ----


def flags(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if isinstance(field.default, bool)]


@pytest.mark.parametrize("kind", [params.MigrationParameters, params.IncomingParameters])
def test_a_flag_of_the_parameters_is_a_bool(kind):
    """``verify="no"`` counted as true."""
    assert len(flags(kind)) > 4
    for name in flags(kind):
        for value in NO_FLAGS:
            with pytest.raises(errors.WrongType, match=f"{name} must be True or False, not"):
                kind(**{name: value})
        for value in (True, False):
            assert getattr(kind(**{name: np.bool_(value)}), name) is value


def test_a_flag_of_a_disk_is_a_bool(tmp_path):
    """Nothing is opened, made or released before that is seen."""
    new, disk_of = tmp_path / "new", files.MemoryBackend(bytearray(MiB), name="d")
    handlers = block.BlockSaveHandlers([], params.MigrationParameters())
    calls: list[tuple[Callable[..., object], list[str]]] = [
        (lambda **flag: files.FileBackend(new, create_size=5, **flag), ["read_only", "writable", "direct", "locking"]),
        (lambda **flag: image.ImageBackend(new, format="qcow2", create_size=5, **flag), ["read_only", "writable"]),
        (lambda **flag: image.ImageBackend(new, format="qcow2", create_size=5, **flag), ["direct", "locking"]),
        (lambda **flag: nbd.NbdBackend("nbd://localhost:1", **flag), ["read_only", "writable"]),
        (lambda **flag: sources.open_disk(new, **flag), ["read_only", "writable", "direct"]),
        (lambda **flag: sources.open_disks(str(new), **flag), ["writable", "direct"]),
        (lambda **flag: sources.describe("new", **flag), ["direct"]),
        (lambda **flag: sources.open_disks("qemu:nowhere", **flag), ["force", "return_path"]),
        (lambda **flag: qemu.cleanup("nowhere", **flag), ["force"]),
        (lambda **flag: sources.TargetFile(new, label="d", **flag), ["overwrite", "incremental", "direct"]),
        (lambda **flag: blkmig.receive("file:nowhere", into=new, **flag), flags(params.IncomingParameters)),
        (lambda **flag: blkmig.send([], "file:nowhere", **flag), flags(params.MigrationParameters)),
        (disk_of.release_writers, ["refuse"]),
        (lambda **flag: handlers.set_params(**{"blk_enable": True, "shared_base": True} | flag),
         ["blk_enable", "shared_base"]),
    ]  # fmt: skip
    for call, names in calls:
        for name in names:
            with pytest.raises(TypeError, match=f"{name} must be True or False, not 'no'"):
                call(**{name: "no"})
    assert not new.exists()


@pytest.mark.parametrize("value", [True, "1", None, np.bool_(1), 1j, [1]])
def test_a_share_or_a_time_is_a_number(value):
    calls = [
        lambda: files.MemoryBackend(bytearray(8), name="d").throttle_writers(value),
        lambda: nbd.NbdBackend("nbd://localhost:1", connect_timeout=value),
        lambda: nbd.NbdBackend("nbd://localhost:1", request_timeout=value),
        lambda: migration.forecast([], params.MigrationParameters(), seconds=value),
    ]
    for call in calls:
        with pytest.raises(errors.WrongType, match="must be a number"):
            call()


# ---- bytes ----


@pytest.mark.parametrize("kind", ["O", [("a", "i4"), ("b", "O")]], ids=["objects", "records"])
def test_objects_are_no_bytes(kind):
    """Their addresses would be sent, and what is written over them would be taken for such: a crash."""
    data = bytearray(64)
    backend = files.MemoryBackend(data, name="d")
    bitmap = backend.create_dirty_bitmap(65536)
    with pytest.raises(TypeError, match="objects"):
        backend.pwrite(np.zeros(2, kind), 0)
    with pytest.raises(TypeError, match="objects"):
        files.MemoryBackend(np.zeros(2, kind), name="d")
    assert data == bytes(64)
    assert not bitmap.count_blocks()


@pytest.mark.parametrize("kind", ["i1", ">i8", "f2", "g", "c16", "?", "S3", "V4", [("O", "i4"), ("P", "f8")]], ids=str)
def test_plain_items_are_bytes(kind):
    data = np.ones(2, kind)
    backend = files.MemoryBackend(np.zeros(2, kind), name="d")
    backend.pwrite(data, 0)
    assert backend.pread(0, data.nbytes) == data.tobytes()


# ---- nothing comes between a write and its mark ----


@pytest.mark.parametrize("verb", ["pwrite", "pwrite_zeroes", "mark_dirty", "writing"])
def test_an_interrupt_never_leaves_a_write_unmarked(verb):
    """A3: real signals at random moments, also in the gate: what is written is marked, and nobody is left inside."""
    data = bytearray(b"x" * MiB)
    backend = files.MemoryBackend(data, name="d")
    marked = False

    def own() -> None:
        with backend.writing(0, 3):
            data[:3] = b"abc"

    def mark() -> None:
        nonlocal marked
        marked = False
        data[:3] = b"abc"
        backend.mark_dirty(0, 3)
        marked = True

    calls: dict[str, Callable[[], None]] = {
        "pwrite": lambda: backend.pwrite(b"abc", 0),
        "pwrite_zeroes": lambda: backend.pwrite_zeroes(0, 3),
        "mark_dirty": mark,
        "writing": own,
    }
    call, timing = calls[verb], random.Random(verb)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(1500):
            bitmap = backend.create_dirty_bitmap(65536)
            data[:3], marked = b"xxx", False
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, timing.uniform(3e-6, 60e-6))
                for _ in range(1000):  # a signal may also come inside something that swallows it
                    data[:3] = b"xxx"
                    bitmap.take_block(0)
                    call()
            assert bitmap.count_blocks() or data[:3] == b"xxx" or (verb == "mark_dirty" and not marked)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert backend._passages.writers == backend._passages.readers == 0
            backend.release_dirty_bitmap(bitmap)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    backend.hold_writers()  # waits for nobody


def test_a_mark_that_fails_for_good_marks_everything(monkeypatch):
    backend = files.MemoryBackend(bytearray(4 * MiB), name="d")
    bitmap = backend.create_dirty_bitmap(MiB)
    monkeypatch.setattr(dirty.DirtyBitmap, "mark", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backend.pwrite(b"abc", 0)
    assert bitmap.count_blocks() == 4
    assert backend._passages.writers == 0


def test_marks_of_a_shared_map_outlive_an_interrupt(tmp_path, monkeypatch):
    """What was taken from the map and not marked here is put back."""
    source = files.MemoryBackend(bytearray(4 * MiB), name="d")
    dirtymap.create_map(tmp_path / "map", 4 * MiB)
    with sharedmap.SharedMapBackend(source, tmp_path / "map", hold=print, release=print) as shared:
        bitmap = shared.create_dirty_bitmap(MiB)
        with (tmp_path / "map").open("r+b") as file:
            file.seek(dirtymap.MAP_OFFSET + 17)
            file.write(b"\1")
        with monkeypatch.context() as patch:
            patch.setattr(source, "mark_dirty", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                shared.sync_dirty()
        shared.sync_dirty()
        assert bitmap.is_dirty(1)


def test_a_close_waits_for_who_reads(tmp_path, monkeypatch):
    """A descriptor that is closed under a reader may be another file's by the time it reads on."""
    (tmp_path / "d").write_bytes(b"abc" * 1000)
    backend = files.FileBackend(tmp_path / "d")
    entered, go_on = threading.Event(), threading.Event()
    original = type(backend)._pread_into

    def slow(self, view, offset):
        entered.set()
        assert go_on.wait(30)
        original(self, view, offset)

    monkeypatch.setattr(type(backend), "_pread_into", slow)
    found = []
    reader = threading.Thread(target=lambda: found.append(backend.pread(0, 3)))
    reader.start()
    assert entered.wait(30)
    closer = threading.Thread(target=backend.close)
    closer.start()
    while not backend._closed:
        pass
    go_on.set()
    closer.join(30)
    reader.join(30)
    assert found == [b"abc"]
    with pytest.raises(blkmig.errors.DeviceError, match="closed"):
        backend.pread(0, 3)


@pytest.mark.parametrize("name", [b"v", 5, True, "\ud800", "", "a" * 256])
def test_what_is_no_name(tmp_path: pathlib.Path, name: Any) -> None:
    """A3: names are checked where numbers are."""
    (tmp_path / "d.raw").write_bytes(bytes(MiB))
    for make in (lambda: blkmig.FileBackend(tmp_path / "d.raw", name=name),
                 lambda: blkmig.MemoryBackend(bytearray(MiB), name=name)):  # fmt: skip
        with pytest.raises(errors.ParameterError):
            make()


@pytest.mark.parametrize("sizes", [5, "1M", None, [1], {5: 5}])
def test_what_is_no_mapping_of_sizes(sizes: Any) -> None:
    """A3."""
    with pytest.raises(errors.ParameterError):
        params.IncomingParameters(sizes=sizes)
