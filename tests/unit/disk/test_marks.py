# SPDX-License-Identifier: GPL-2.0-or-later
"""No write goes unmarked, whatever interrupts it (A3)."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable

import pytest
from number_disks import MiB
from number_disks import backend as backend
from pauses import Call, until

from blkmig import disk, errors, files
from blkmig.disk import dirty
from blkmig.files import dirtymap, sharedmap


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
            backend.release_dirty_bitmap(bitmap)
            Call(backend.hold_writers).result()  # which waits for nobody
            backend.release_writers()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    Call(backend.close).result()  # nor does that


def test_a_mark_that_fails_for_good_marks_everything(monkeypatch):
    backend = files.MemoryBackend(bytearray(4 * MiB), name="d")
    bitmap = backend.create_dirty_bitmap(MiB)
    monkeypatch.setattr(dirty.DirtyBitmap, "mark", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backend.pwrite(b"abc", 0)
    assert bitmap.count_blocks() == 4
    Call(backend.hold_writers).result()  # which waits for nobody


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


def test_a_close_waits_for_who_reads(tmp_path):
    """A descriptor that is closed under a reader may be another file's by the time it reads on."""
    entered, go_on = threading.Event(), threading.Event()

    class SlowDisk(files.FileBackend):
        def _pread_into(self, view, offset):
            entered.set()
            assert go_on.wait(30)
            super()._pread_into(view, offset)

    (tmp_path / "d").write_bytes(b"abc" * 1000)
    backend = SlowDisk(tmp_path / "d")
    reading = Call(lambda: backend.pread(0, 3))
    assert entered.wait(30)
    closing = Call(backend.close)
    until(lambda: is_closed(backend))
    go_on.set()
    closing.result()
    assert reading.result() == b"abc"
    with pytest.raises(errors.DeviceError, match="closed"):
        backend.pread(0, 3)


def is_closed(backend: disk.LocalBackend) -> bool:
    """Return whether a disk takes no calls any more."""
    try:
        backend.check_open()
    except errors.DeviceError:
        return True
    return False
