# SPDX-License-Identifier: GPL-2.0-or-later
"""The writer gate and the trackers of a disk whose writers are threads."""

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
from pauses import Call, until

from blkmig import errors, files

MiB = 1 << 20
LONG = 30  # seconds that nothing here takes


class SlowDisk(files.MemoryBackend):
    """A disk whose writes stop in the middle until they are told to go on."""

    def __init__(self) -> None:
        super().__init__(bytearray(4 * MiB), name="slow")
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.error: OSError | None = None

    def _pwrite(self, view: memoryview, offset: int) -> None:
        self.entered.release()
        assert self.go_on.acquire(timeout=LONG)
        if self.error is not None:
            raise self.error
        super()._pwrite(view, offset)


@contextlib.contextmanager
def thread(function, *args) -> Iterator[threading.Thread]:
    """Run a function beside the body; both must end."""
    runner = threading.Thread(target=function, args=args)
    runner.start()
    try:
        yield runner
    finally:
        runner.join(timeout=LONG)
        assert not runner.is_alive()


def waiting_at(condition: type[threading.Condition], monkeypatch: pytest.MonkeyPatch) -> files.MemoryBackend:
    """Return a disk whose callers wait at a condition of this kind."""
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Condition", condition)
        return files.MemoryBackend(bytearray(MiB), name="m")


class TestHold:
    def test_it_waits_for_writers_in_flight_and_finds_their_marks(self):
        backend = SlowDisk()
        bitmap = backend.create_dirty_bitmap(MiB)
        held = threading.Event()

        def hold() -> None:
            backend.hold_writers()
            held.set()

        with thread(backend.pwrite, b"abc", 2 * MiB):
            assert backend.entered.acquire(timeout=LONG)
            with thread(hold):
                until(lambda: backend.is_held)
                assert not held.is_set()
                assert not bitmap.is_dirty(2)
                backend.go_on.release()
                assert held.wait(timeout=LONG)
                assert bitmap.is_dirty(2)
                assert backend.pread(2 * MiB, 3) == b"abc"

    @pytest.mark.parametrize("write", ["pwrite", "pwrite_zeroes", "mark_dirty", "writing"])
    def test_held_writers_wait_and_then_go_on(self, write):
        backend = files.MemoryBackend(bytearray(b"x" * MiB), name="m")
        bitmap = backend.create_dirty_bitmap(MiB)

        def own_write() -> None:
            with backend.writing(0, 3):
                pass

        calls = {
            "pwrite": lambda: backend.pwrite(b"abc", 0),
            "pwrite_zeroes": lambda: backend.pwrite_zeroes(0, 3),
            "mark_dirty": lambda: backend.mark_dirty(0, 3),
            "writing": own_write,
        }
        backend.hold_writers()
        done = threading.Event()

        def run() -> None:
            calls[write]()
            done.set()

        with thread(run):
            assert not done.wait(timeout=0.05)
            assert bitmap.count_blocks() == 0
            assert backend.pread(0, 3) == b"xxx"
            backend.release_writers()
            assert done.wait(timeout=LONG)
        assert bitmap.count_blocks() == 1

    def test_refused_writers_are_told_that_the_disk_has_moved(self):
        backend = files.MemoryBackend(bytearray(MiB), name="vda")
        backend.hold_writers()
        refused = threading.Event()

        def write() -> None:
            with pytest.raises(errors.DeviceError, match="disk 'vda': cannot be written: the disk has moved"):
                backend.pwrite(b"abc", 0)
            refused.set()

        with thread(write):
            backend.release_writers(refuse=True)
        assert refused.is_set()
        backend.release_writers()  # not held: nothing changes
        for late in (lambda: backend.pwrite(b"a", 0), lambda: backend.mark_dirty(0, 1)):
            with pytest.raises(errors.DeviceError, match="has moved"):
                late()
        assert backend.pread(0, 3) == bytes(3)

    def test_release_without_hold_does_nothing(self):
        backend = files.MemoryBackend(bytearray(MiB), name="m")
        backend.release_writers(refuse=True)
        backend.pwrite(b"abc", 0)
        backend.hold_writers()
        backend.hold_writers()
        backend.release_writers()
        backend.pwrite(b"abc", 0)

    def test_a_release_ends_a_hold_that_waits(self):
        backend = SlowDisk()
        cancelled = threading.Event()

        def hold() -> None:
            with pytest.raises(errors.Cancelled):
                backend.hold_writers()
            cancelled.set()

        with thread(backend.pwrite, b"abc", 0):
            assert backend.entered.acquire(timeout=LONG)
            with thread(hold):
                while not cancelled.is_set():
                    backend.release_writers()
            backend.go_on.release()
        assert not backend.is_held
        Call(backend.hold_writers).result()  # nobody is inside

    def test_a_cancel_ends_a_hold_that_waits(self):
        """B5: a writer that hangs inside the gate does not keep a cancel from being heard."""
        backend = SlowDisk()
        cancelled = threading.Event()

        def hold() -> None:
            with pytest.raises(errors.Cancelled, match="while its writers were being held"):
                backend.hold_writers()
            cancelled.set()

        with thread(backend.pwrite, b"abc", 0):
            assert backend.entered.acquire(timeout=LONG)
            with thread(hold):
                while not cancelled.is_set():
                    backend.cancel()
            backend.go_on.release()
        assert not backend.is_held
        backend.cancel()
        backend.hold_writers()  # which does not wait
        backend.release_writers()

    def test_what_went_through_the_gate_is_counted(self):
        backend = files.MemoryBackend(bytearray(MiB), name="m")
        backend.pwrite(b"abc", 0)
        backend.pwrite_zeroes(0, 100)
        backend.mark_dirty(0, 1000)
        assert backend.written_bytes() == 1103

    def test_an_interrupted_hold_lets_writers_go_on(self, monkeypatch):
        class Interrupted(threading.Condition):
            def wait_for(self, predicate, timeout=None):
                raise KeyboardInterrupt

        backend = waiting_at(Interrupted, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            backend.hold_writers()
        backend.pwrite(b"abc", 0)


class TestFailedWrites:
    def test_a_write_that_fails_marks_and_leaves_the_gate(self):
        backend = SlowDisk()
        bitmap = backend.create_dirty_bitmap(MiB)
        backend.error = OSError(5, "Input/output error")
        backend.go_on.release()
        message = "cannot write at offset 1048576, 3 bytes: Input/output error"
        with pytest.raises(errors.DeviceError, match=message) as caught:
            backend.pwrite(b"abc", MiB)
        assert (caught.value.errno, caught.value.offset, caught.value.nbytes) == (5, MiB, 3)
        assert caught.value.__cause__ is backend.error
        assert bitmap.is_dirty(1)
        backend.hold_writers()  # does not wait for anybody

    def test_a_body_of_writing_that_fails_marks_and_leaves_the_gate(self):
        backend = files.MemoryBackend(bytearray(2 * MiB), name="m")
        bitmap = backend.create_dirty_bitmap(MiB)
        with contextlib.suppress(ZeroDivisionError), backend.writing(MiB, 10):
            assert bitmap.count_blocks() == 0
            raise ZeroDivisionError
        assert bitmap.is_dirty(1)
        backend.hold_writers()

    def test_a_write_outside_is_refused_whole_and_marks_nothing(self):
        backend = files.MemoryBackend(bytearray(1000), name="m")
        bitmap = backend.create_dirty_bitmap(MiB)
        for offset in (-1, 998, 1000, 1 << 70):
            for call in (lambda at: backend.pwrite(b"abc", at), lambda at: backend.pwrite_zeroes(at, 3),
                         lambda at: backend.mark_dirty(at, 3), lambda at: backend.pread(at, 3)):
                with pytest.raises(errors.DeviceError, match="outside the disk of 1000 bytes"):
                    call(offset)
        assert bitmap.count_blocks() == 0
        assert backend.pread(0, 1000) == bytes(1000)

    def test_a_guests_read_only_disk_is_not_written(self, tmp_path):
        (tmp_path / "cd.iso").write_bytes(bytes(2048))
        with (
            files.FileBackend(tmp_path / "cd.iso", read_only=True) as backend,
            pytest.raises(errors.DeviceError, match="it is read-only"),
        ):
            backend.pwrite(b"a", 0)


class TestTrackers:
    def test_each_tracker_has_marks_of_its_own(self):
        backend = files.MemoryBackend(bytearray(4 * MiB), name="m")
        first = backend.create_dirty_bitmap(MiB)
        backend.pwrite(b"a", 0)
        second = backend.create_dirty_bitmap(65536)
        backend.pwrite(b"a", MiB)
        assert (first.count_blocks(), second.count_blocks()) == (2, 1)
        assert first.take_block(1)
        assert second.is_dirty(1)
        backend.release_dirty_bitmap(first)
        backend.release_dirty_bitmap(first)
        backend.pwrite_zeroes(2 * MiB, 5)
        assert not first.is_dirty(2)
        assert second.is_dirty(2)

    def test_a_target_marks_nothing(self):
        backend = files.MemoryBackend(bytearray(4 * MiB), name="m")
        bitmap = backend.create_dirty_bitmap(MiB)
        backend.write_zeroes(0, 4 * MiB)
        assert bitmap.count_blocks() == 0

    def test_a_tracker_that_comes_while_a_write_is_in_flight_gets_its_mark(self):
        backend = SlowDisk()
        with thread(backend.pwrite, b"abc", 0):
            assert backend.entered.acquire(timeout=LONG)
            bitmap = backend.create_dirty_bitmap(MiB)
            backend.go_on.release()
        assert bitmap.is_dirty(0)


class TestUse:
    def test_one_migration_at_a_time(self):
        backend = files.MemoryBackend(bytearray(512), name="vda")
        with (
            backend.block_use("a migration"),
            pytest.raises(errors.DeviceBusy, match="'vda': cannot be used: it is already used for a migration"),
            backend.block_use("another"),
        ):
            pass
        with backend.block_use("another"):
            pass

    @pytest.mark.parametrize("name", ["", "x" * 256, "ä" * 128])
    def test_names_that_do_not_fit_the_wire(self, name):
        with pytest.raises(errors.ParameterError, match="1 to 255 bytes"):
            files.MemoryBackend(bytearray(512), name=name)


class TestClose:
    def test_it_waits_for_writers_inside_and_turns_the_held_ones_away(self):
        backend = SlowDisk()
        turned_away = threading.Event()

        def late_write() -> None:
            with pytest.raises(errors.DeviceError, match="device without a medium"):
                backend.pwrite(b"abc", 0)
            turned_away.set()

        backend.hold_writers()
        with thread(late_write):
            backend.close()
        assert turned_away.is_set()

    def test_every_call_afterwards_says_so(self):
        backend = files.MemoryBackend(bytearray(512), name="m")
        bitmap = backend.create_dirty_bitmap(MiB)
        backend.close()
        backend.close()
        for call in (
            lambda: backend.pwrite(b"a", 0),
            lambda: backend.pwrite_zeroes(0, 1),
            lambda: backend.write_zeroes(0, 1),
            lambda: backend.pread(0, 1),
            lambda: backend.flush(),
            lambda: backend.mark_dirty(0, 1),
            lambda: backend.create_dirty_bitmap(MiB),
        ):
            with pytest.raises(errors.DeviceError, match="device without a medium \\(closed\\)"):
                call()
        backend.release_dirty_bitmap(bitmap)
        backend.release_writers()

class TestThrottle:
    def test_a_throttled_writer_enters_in_its_slice_only(self, monkeypatch):
        waited = []
        clock = [100.0 + 0.02]

        class Noted(threading.Condition):
            def wait(self, timeout=None):
                waited.append(round(timeout, 6))
                clock[0] += timeout
                return False

        backend = waiting_at(Noted, monkeypatch)
        assert backend.throttle_writers(0.25)
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        backend.pwrite(b"a", 0)  # too late in the first slice: waits for the second
        backend.pwrite(b"b", 1)
        clock[0] += 0.012
        backend.pwrite(b"c", 2)
        clock[0] += 0.001
        backend.pwrite(b"d", 3)
        assert waited == [0.03, 0.037]
        assert backend.pread(0, 4) == b"abcd"

    def test_lifting_it_wakes_those_who_wait(self):
        backend = files.MemoryBackend(bytearray(MiB), name="m")
        backend.throttle_writers(1e-9)
        done = threading.Event()

        def write():
            backend.pwrite(b"abc", 0)
            done.set()

        with thread(write):
            assert not done.wait(timeout=0.02)
            backend.hold_writers()
            backend.release_writers()
            backend.throttle_writers(1)
            assert done.wait(timeout=LONG)

    def test_a_closed_disk_does_not_keep_throttled_writers(self):
        backend = files.MemoryBackend(bytearray(MiB), name="m")
        backend.throttle_writers(1e-9)
        turned_away = threading.Event()

        def write():
            with pytest.raises(errors.DeviceError, match="without a medium"):
                backend.pwrite(b"abc", 0)
            turned_away.set()

        with thread(write):
            backend.close()
        assert turned_away.is_set()
