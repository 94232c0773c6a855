# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever the system answers to a disk's calls, only errors of the tree come out (C7)."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from blkmig import _core, disk, errors, files

MiB = 1 << 20
SIZE = 3 * MiB
ERRNOS = sorted(errno.errorcode)


class Failing:
    """Stands in the place of a function: the calls through it fail while `error` is set."""

    def __init__(self, function: Callable[..., Any], state: dict[str, int]) -> None:
        self._function = function
        self._state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if number := self._state.get("errno"):
            self._state["failed"] = 1
            if self._function is os.close:
                self._function(*args)  # Linux closes all the same
            raise OSError(number, os.strerror(number))
        return self._function(*args, **kwargs)


VERBS = ("next_data", "punch_hole", "zero_range", "zero_out", "pread_full", "pwrite_full", "start_writeback", "Mapping")
SYSTEM = ("open", "close", "lseek", "fstat", "stat", "ftruncate", "fdatasync", "fsync", "pread", "unlink")


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Put a Failing around every system call that disks make: those of `_core`, of os, and of fcntl."""
    found: dict[str, int] = {}
    for name in VERBS:
        monkeypatch.setattr(_core, name, Failing(getattr(_core, name), found))
    for name in SYSTEM:
        monkeypatch.setattr(os, name, Failing(getattr(os, name), found))
    for name in ("ioctl", "fcntl"):
        monkeypatch.setattr(fcntl, name, Failing(getattr(fcntl, name), found))
    return found


class Broken(bytearray):
    """A buffer whose flush fails, as that of an mmap of a file may."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.state: dict[str, int] = {}

    def flush(self) -> None:
        Failing(lambda: None, self.state)()


def memory(_: pathlib.Path, state: dict[str, int]) -> disk.LocalBackend:
    buffer = Broken(SIZE)
    buffer.state = state
    return files.MemoryBackend(buffer, name="d")


def raw(path: pathlib.Path, _: dict[str, int]) -> disk.LocalBackend:
    return files.FileBackend.create(path / "d", SIZE)


def overlay(path: pathlib.Path, _: dict[str, int]) -> disk.LocalBackend:
    (path / "base").write_bytes(b"b" * SIZE)
    files.FileBackend.create(path / "d", SIZE).close()
    return files.FileBackend(path / "d", base=path / "base")


def blk(movable: bool = False) -> _core.BlockBuffer:
    block = _core.BlockBuffer("moved" if movable else "mapped")
    block.data[:] = b"x" * MiB
    block.filled(MiB)
    return block


#: Every public verb of a disk that may ask the system for something.
CALLS: dict[str, Callable[[Any], object]] = {
    "pread": lambda d: d.pread(100, 1000),
    "pwrite": lambda d: d.pwrite(b"y" * 1000, 100),
    "pwrite_zeroes": lambda d: d.pwrite_zeroes(100, 100_000),
    "mark_dirty": lambda d: d.mark_dirty(0, 10),
    "read_block": lambda d: d.read_block(_core.BlockBuffer(), 0, MiB),
    "write_block": lambda d: d.write_block(blk(), 0, MiB),
    "write_block behind": lambda d: d.write_block(blk(movable=True), MiB, MiB),
    "read_extents": lambda d: d.read_extents(_core.BlockBuffer(), [(0, 512), (MiB, 4096)]),
    "write_extents": lambda d: d.write_extents(blk(), [(0, 512), (MiB, 4096)]),
    "write_zeroes": lambda d: d.write_zeroes(0, 2 * MiB),
    "next_data": lambda d: d.next_data(0),
    "next_allocated": lambda d: d.next_allocated(0, SIZE),
    "zeroes_end": lambda d: d.zeroes_end(0),
    "sync_dirty": lambda d: d.sync_dirty(),
    "check_source": lambda d: d.check_source(),
    "resize": lambda d: d.resize(2 * MiB),
    "flush": lambda d: d.flush(),
    "close": lambda d: d.close(),
}


@pytest.mark.parametrize("make", [memory, raw, overlay], ids=lambda make: make.__name__)
@pytest.mark.parametrize("verb", CALLS)
def test_only_errors_of_the_tree_come_out_of_a_disk(make, verb, tmp_path, state):
    """Each errno of each call: a DeviceError that knows it, and the disk can still be closed."""
    told = []
    for number in ERRNOS[:: 1 if verb in ("flush", "pwrite") else 6]:
        backend = make(tmp_path, state)
        CALLS["write_block"](backend)
        state.update(errno=number, failed=0)
        try:
            CALLS[verb](backend)
        except errors.DeviceError as error:
            told.append((error.device, error.errno == number))
        finally:
            state["errno"] = 0
        backend.close()
        backend.close()
        for path in (tmp_path / "d", tmp_path / "base"):
            path.unlink(missing_ok=True)
    assert {device for device, _ in told} <= {"d"}
    if verb in ("pread", "pwrite", "read_block", "flush", "close", "resize") and make is raw:
        assert (verb, True) in {(verb, known) for _, known in told}, "nothing failed"


@pytest.mark.parametrize("number", ERRNOS[::2], ids=errno.errorcode.get)
def test_only_errors_of_the_tree_come_out_of_opening(number, tmp_path, state):
    (tmp_path / "there").write_bytes(bytes(SIZE))
    told = []
    for options in ({}, {"base": tmp_path / "there"}, {"create_size": SIZE}, {"direct": True}):
        path = tmp_path / ("new" if "create_size" in options else "there")
        state.update(errno=number)
        try:
            made = files.FileBackend(path, name="d", **options)
        except errors.DeviceError as error:
            told.append(error.device)
        else:
            made.close()
        finally:
            state["errno"] = 0
    assert set(told) == {"d"}


def test_a_flush_of_a_real_mapping(tmp_path):
    (tmp_path / "f").write_bytes(bytes(SIZE))
    with (tmp_path / "f").open("r+b") as file, mmap.mmap(file.fileno(), SIZE) as mapped:
        with files.MemoryBackend(mapped, name="d") as backend:
            backend.pwrite(b"x", 0)
            backend.flush()
    assert (tmp_path / "f").read_bytes()[:1] == b"x"
