# SPDX-License-Identifier: GPL-2.0-or-later
"""Awaited migrations whose task is cancelled: in each phase, too late, with an error, and with one that hangs."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awaited
import cutter
import faulty
import lab
import pytest

import blkmig
from blkmig import aio, errors, stats
from blkmig.sources import together


def cancelling(
    is_moment: Callable[[stats.Event], bool], is_cancelled: Callable[[float], bool]
) -> Callable[[stats.Event], None]:
    """Return an `on_progress` that cancels the task of its call, once, with the first event of this kind.

    It goes on when the cancel has reached the migration.
    """
    task, loop, once = asyncio.current_task(), asyncio.get_running_loop(), threading.Event()
    assert task is not None

    def heard(event: stats.Event) -> None:
        if is_moment(event) and not once.is_set():
            once.set()
            loop.call_soon_threadsafe(task.cancel)
            assert is_cancelled(awaited.LONG)

    return heard


def is_in(status: str) -> Callable[[stats.Event], bool]:
    return lambda event: isinstance(event, stats.StatusChanged) and event.status == status


def is_waiting(event: stats.Event) -> bool:
    return isinstance(event, stats.Progressed) and event.phase == "waiting"


@pytest.mark.parametrize("status", ["setup", "active", "device"])
def test_cancelled_sender(tmp_path: Path, status: str) -> None:
    """Nothing is left of the migration when the task has ended: not on the disk, not as a file, no thread."""

    async def main() -> None:
        with awaited.Told() as disk:

            async def send() -> stats.OutgoingStatistics:
                heard = cancelling(is_in(status), disk.is_cancelled.wait)
                return await blkmig.asend([disk], f"file:{tmp_path}/stream", on_progress=heard)

            task = asyncio.create_task(send())
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert task.cancelled()
            assert isinstance(caught.value.__cause__, errors.Cancelled)
            awaited.check_threads_end()
            assert faulty.is_free(disk)

    awaited.run(main())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("writers_after", "ends_with"), [("release", asyncio.CancelledError), ("refuse", errors.InDoubt)]
)
def test_cancelled_while_the_word_is_awaited(writers_after: str, ends_with: type[BaseException]) -> None:
    """Of a move nobody knows then where the disk is: that is told, and no cancel."""

    async def main() -> None:
        with awaited.Told() as disk:

            async def send() -> stats.OutgoingStatistics:
                heard = cancelling(is_waiting, disk.is_cancelled.wait)
                uri, chosen = "exec:cat >/dev/null; sleep 1000", {"idle_timeout": 0, "writers_after": writers_after}
                return await blkmig.asend([disk], uri, on_progress=heard, **chosen)

            with pytest.raises(ends_with):
                await asyncio.create_task(send())
            awaited.check_threads_end()
            disk.release_writers()
            assert faulty.is_free(disk)

    awaited.run(main())


def test_cancelled_while_the_link_is_lost(tmp_path: Path) -> None:
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "d.raw"})
    with cutter.Cutter(receiver.uri, [(1 << 20, "reset")]) as relay:

        def is_lost(event: stats.Event) -> bool:
            if is_in("active")(event):
                relay.refuses.set()  # who comes again
            return is_in("reconnecting")(event)

        async def main() -> None:
            with awaited.Told() as disk:

                async def send() -> stats.OutgoingStatistics:
                    heard = cancelling(is_lost, disk.is_cancelled.wait)
                    return await blkmig.asend([disk], relay.uri, on_progress=heard, idle_timeout=1)

                with pytest.raises(asyncio.CancelledError):
                    await asyncio.create_task(send())
                assert faulty.is_free(disk)

        awaited.run(main())
    receiver.migration.cancel()
    with pytest.raises(errors.MigrationError):
        receiver.result()


def test_cancelled_while_disks_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.raw").write_bytes(awaited.CONTENT)
    opens, go_on, original = threading.Event(), threading.Event(), together.open_sources

    def slow(*args: Any, **options: Any) -> Any:
        opens.set()
        assert go_on.wait(awaited.LONG)
        return original(*args, **options)

    monkeypatch.setattr(together, "open_sources", slow)

    async def main() -> None:
        task = asyncio.create_task(blkmig.asend([tmp_path / "d.raw"], f"file:{tmp_path}/stream"))
        assert await asyncio.to_thread(opens.wait, awaited.LONG)
        task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()  # it has been told, and goes on waiting for the thread
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        awaited.check_threads_end()

    awaited.run(main())
    assert [path.name for path in tmp_path.iterdir()] == ["d.raw"]


def test_sender_that_waits_for_a_silent_target(tmp_path: Path) -> None:
    """And a time-out of asyncio's is one."""

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as silent, awaited.Told() as disk:
            silent.bind(f"{tmp_path}/s")
            silent.listen()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await blkmig.asend([disk], f"unix:{tmp_path}/s")
            assert faulty.is_free(disk)

    awaited.run(main())


def test_receiver_that_nobody_connects_to(tmp_path: Path) -> None:
    async def main() -> None:
        listening = awaited.Listening()
        receive = blkmig.areceive(f"unix:{tmp_path}/s", {"d": tmp_path / "d.raw"}, on_progress=listening)
        task = asyncio.create_task(receive)
        await listening.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        awaited.check_threads_end()

    awaited.run(main())
    assert not list(tmp_path.iterdir())


def test_cancelled_receiver(tmp_path: Path) -> None:
    """In the middle of a stream: the target is in nobody's use, and its source hears of it."""

    class Target(awaited.Told):
        def write_block(self, *args: Any) -> None:
            loop.call_soon_threadsafe(listens.cancel)
            assert self.is_cancelled.wait(awaited.LONG)
            super().write_block(*args)

    async def main() -> None:
        nonlocal loop, listens
        loop = asyncio.get_running_loop()
        with awaited.Told() as disk, Target(bytes(3 * awaited.MIB)) as target:
            listening = awaited.Listening()
            uri = f"unix:{tmp_path}/s"
            listens = asyncio.create_task(blkmig.areceive(uri, {"d": target}, on_progress=listening))
            await listening.wait()
            sent = asyncio.create_task(blkmig.asend([disk], uri, reconnect=0))
            with pytest.raises(asyncio.CancelledError):
                await listens
            assert faulty.is_free(target)
            with pytest.raises(errors.MigrationError):
                await sent
            assert faulty.is_free(disk)

    loop: asyncio.AbstractEventLoop
    listens: asyncio.Task[Any]
    awaited.run(main())


@pytest.mark.parametrize("end", ["asend", "areceive"])
def test_cancel_that_comes_too_late(tmp_path: Path, end: str) -> None:
    """What was completed is told as such, for the disks may have moved."""
    (tmp_path / "d.raw").write_bytes(awaited.CONTENT)
    blkmig.send([tmp_path / "d.raw"], f"file:{tmp_path}/stream")

    async def main() -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def heard(event: stats.Event) -> None:
            if isinstance(event, stats.StatusChanged) and event.status == "completed":
                asked = threading.Event()
                loop.call_soon_threadsafe(lambda: (task.cancel(), loop.call_soon(asked.set)))
                assert asked.wait(awaited.LONG)

        done: stats.OutgoingStatistics | stats.IncomingStatistics
        if end == "asend":
            done = await blkmig.asend([tmp_path / "d.raw"], f"file:{tmp_path}/again", on_progress=heard)
        else:
            done = await blkmig.areceive(f"file:{tmp_path}/stream", {"d": tmp_path / "new.raw"}, on_progress=heard)
        assert done.status == "completed"
        assert task.cancelling() == 1
        task.uncancel()

    awaited.run(main())


def test_an_error_is_not_hidden_by_a_cancel(tmp_path: Path) -> None:
    reads = threading.Event()

    class Failing(awaited.Told):
        def read_block(self, *args: Any) -> bool:
            reads.set()
            assert self.is_cancelled.wait(awaited.LONG)
            raise errors.DeviceError("cannot read", device="d", cause=OSError(errno.EIO, "gone"))

    async def main() -> None:
        with Failing() as disk:
            task = asyncio.create_task(blkmig.asend([disk], f"file:{tmp_path}/stream"))
            assert await asyncio.to_thread(reads.wait, awaited.LONG)
            task.cancel()
            with pytest.raises(errors.DeviceError):
                await task
            assert faulty.is_free(disk)

    awaited.run(main())


def test_the_wait_for_the_end_has_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(aio, "CANCEL_SECONDS", 0.05)
    reads, go_on = threading.Event(), threading.Event()

    class Stuck(awaited.Told):
        def read_block(self, *args: Any) -> bool:
            reads.set()
            assert go_on.wait(awaited.LONG)
            return super().read_block(*args)

    async def main() -> None:
        with Stuck() as disk:
            task = asyncio.create_task(blkmig.asend([disk], f"file:{tmp_path}/stream"))
            assert await asyncio.to_thread(reads.wait, awaited.LONG)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert caught.value.__notes__ == ["blkmig-asend: the migration still holds its disks, and ends by itself"]
            assert "blkmig-asend: cancelled, and not over" in caplog.text
            go_on.set()
            await asyncio.to_thread(awaited.check_threads_end)
            assert faulty.is_free(disk)

    awaited.run(main())
