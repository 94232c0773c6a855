# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of callers: whole ones of any kind, a float nowhere, and nothing done before all are checked (A3)."""

from __future__ import annotations

import ast
import ctypes
import dataclasses
import decimal
import fractions
import inspect
import os
import pathlib
import socket
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from number_disks import MiB
from number_disks import backend as backend

import blkmig
from blkmig import _core, _gate, _input, _output, _storing, block, errors, files, migration, params, qemu, sources
from blkmig.files import dirtymap
from blkmig.nbd import backend as nbd
from blkmig.nbd import image

NO_NUMBERS = [1.0, 0.0, 1.9, np.float64(1), np.float32(0), decimal.Decimal(1), fractions.Fraction(1), 1j, np.bool_(1)]
NO_NUMBERS += ["1", b"1", None, [1], np.array([1, 2]), np.array(1.0)]
NO_FLAGS = ["no", "", "off", 0, 1, None, 1.0, [], np.int8(1), b"no"]
INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
ABSURD = [-1, -(1 << 31), -(1 << 63), -(1 << 64), 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64]
ABSURD += [1 << 200]
CLEAR = (OverflowError, IndexError, ValueError, OSError, MemoryError, EOFError)
MODULES = {"_core": _core, "_gate": _gate, "_output": _output, "_input": _input, "_storing": _storing}
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
    queue = _storing.StoringQueue(65536, 4, 2, 4)
    queue.close()  # what is put is dropped, and nobody waits
    yield types.SimpleNamespace(
        fd=fd,
        buffer=bytearray(4096),
        name=b"vda",
        Bitmap=_core.Bitmap(4096),
        BlockBuffer=_core.BlockBuffer(),
        Mapping=_core.Mapping(fd, 2 * MiB),
        OutputBuffer=_output.OutputBuffer(ours.fileno()),
        InputBuffer=_input.InputBuffer(ours.fileno()),
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
        elif kind == "list[tuple[int, int]]":
            found.append([(0, 4096)])
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


@pytest.mark.parametrize("value", [*NO_NUMBERS, -1, 1 << 64])
def test_the_numbers_of_extents_are_numbers(value, world):
    blk, fd = world.BlockBuffer, world.fd
    error = OverflowError if isinstance(value, int) else TypeError
    for call, *args in ((blk.fill_extents, fd), (blk.store_extents, fd), (world.OutputBuffer.put_pack_header, 1, b"d")):
        for extent in ((value, 4096), (0, value)):
            with pytest.raises(error):
                call(*args, [extent])


def test_bits_of_a_block_do_not_overflow(world):
    """``block * bits_per_block`` is checked before it is a product modulo 2^64."""
    for bits in (1 << 63, (1 << 64) - 1, 1 << 32):
        with pytest.raises((ValueError, IndexError)):
            world.OutputBuffer.put_file_blocks(
                world.Mapping, 0, 2, b"vda", world.BlockBuffer, world.Bitmap, bits, 1.0)


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


@pytest.mark.parametrize("value", [0, -1, 5, 1.001, -0.0, float("inf"), float("nan")])
def test_writers_get_a_share_of_their_speed(value):
    """With -1 the gate stayed shut for ever, and nobody had said that."""
    local = files.MemoryBackend(bytearray(8), name="d")
    of_a_qemu = qemu.QemuBackend.__new__(qemu.QemuBackend)
    for throttled in (local, of_a_qemu):
        with pytest.raises(errors.ParameterError, match="fraction must be"):
            throttled.throttle_writers(value)
    local.pwrite(b"free", 0)


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
    for texts in ((ctypes.c_char_p * 2)(b"a", b"b"), (ctypes.c_wchar_p * 2)("a", "b")):
        with pytest.raises(TypeError, match="objects"):
            backend.pwrite(texts, 0)
    assert data == bytes(64)
    assert not bitmap.count_blocks()


@pytest.mark.parametrize("kind", ["i1", ">i8", "f2", "g", "c16", "?", "S3", "V4", [("O", "i4"), ("P", "f8")]], ids=str)
def test_plain_items_are_bytes(kind):
    data = np.ones(2, kind)
    backend = files.MemoryBackend(np.zeros(2, kind), name="d")
    backend.pwrite(data, 0)
    assert backend.pread(0, data.nbytes) == data.tobytes()


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


def test_what_no_system_call_takes_is_refused(tmp_path):
    """It was an OverflowError, or a MemoryError."""
    with files.FileBackend.create(tmp_path / "d.raw", 0) as backend:
        for value in (1 << 63, 1 << 70, -1):
            for call in (backend.resize, backend.zeroes_end, backend.next_data, blkmig.DirtyBitmap):
                with pytest.raises(errors.ParameterError, match="from 0 to 2"):
                    call(value)
            with pytest.raises(errors.ParameterError, match="create_size must be from 0"):
                files.FileBackend.create(tmp_path / "new", value)
    assert not (tmp_path / "new").exists()


class Endless(blkmig.MemoryBackend):
    """A disk that says that it is as large as a number can be; what is read of it is there."""

    def __init__(self) -> None:
        super().__init__(bytearray(MiB), name="d")
        self.size = (1 << 63) - 1


def test_a_disk_that_no_memory_has_an_account_of(tmp_path):
    """A sparse file of 2^62 bytes can be made anywhere. It was a MemoryError."""
    for granularity in (1 << 16, 1 << 20):
        with pytest.raises(errors.ParameterError, match="a disk of 4611686018427387904 bytes is too large"):
            blkmig.DirtyBitmap(1 << 62, granularity)
    parameters = params.MigrationParameters()
    for digests in (False, True):
        with Endless() as backend, pytest.raises(errors.ParameterError, match="is too large"):
            blkmig.send([backend], f"file:{tmp_path}/st", digests=digests)
    with Endless() as backend, pytest.raises(errors.ParameterError, match="is too large"):
        migration.forecast([backend], parameters, seconds=0, bandwidth=1)
    coverage = block.BlockCoverage("d", 1 << 62)
    with pytest.raises(errors.OutOfRange, match="no memory for it"):
        coverage.check(((1 << 62) - MiB) // 512, 1, 0)


@pytest.mark.parametrize("why", [OSError(12, "Cannot allocate memory"), ValueError("longer than the file")], ids=str)
def test_a_map_that_cannot_be_mapped(tmp_path, monkeypatch, why):
    """Its chunks are as many as its disk's size says. It was an OSError."""

    def fail(fd, length):
        raise why

    dirtymap.create_map(tmp_path / "map", MiB)
    monkeypatch.setattr(dirtymap.mmap, "mmap", fail)
    with pytest.raises(errors.DeviceError, match="dirty map"):
        dirtymap.DirtyMap(tmp_path / "map", size=MiB, device="d")


@pytest.mark.parametrize("value", [np.array(["auto", "manual"]), np.array([1, 2]), ["auto"], {}, 5], ids=repr)
@pytest.mark.parametrize("name", ["switchover", "writers_after", "reading", "machine_compat"])
def test_a_choice_is_one_of_the_words(name, value):
    with pytest.raises(errors.ParameterError, match=f"{name} must be one of"):
        params.MigrationParameters(**{name: value})
