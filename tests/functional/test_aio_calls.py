# SPDX-License-Identifier: GPL-2.0-or-later
"""What awaited migrations return and raise, many at once; contexts of callbacks, and loops that go away."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awaited
import faulty
import pytest

import blkmig
from blkmig import errors, stats


def test_many_side_by_side(tmp_path: Path) -> None:
    """More than asyncio has threads of its own; and those are not used."""
    count = 20
    contents = [os.urandom(awaited.MIB + 512 * number) for number in range(count)]

    async def pair(number: int) -> None:
        uri, listening = f"unix:{tmp_path}/{number}", awaited.Listening()
        with blkmig.MemoryBackend(bytearray(contents[number]), name="d") as disk:
            async with asyncio.TaskGroup() as tasks:
                target = {"d": tmp_path / f"{number}.raw"}
                received = tasks.create_task(blkmig.areceive(uri, target, on_progress=listening))
                await listening.wait()
                sent = tasks.create_task(blkmig.asend([disk], uri))
            assert sent.result().status == received.result().status == "completed"

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                tasks.create_task(pair(number))
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")]

    awaited.run(main())
    assert [(tmp_path / f"{number}.raw").read_bytes() for number in range(count)] == contents
    awaited.check_threads_end()


def test_a_sender_that_fails_takes_its_receiver_along(tmp_path: Path) -> None:
    async def main() -> None:
        with faulty.faulty_disk(awaited.CONTENT, reads=awaited.MIB) as disk:
            async with asyncio.TaskGroup() as tasks:
                listening = awaited.Listening()
                target = {"d": tmp_path / "d.raw"}
                tasks.create_task(blkmig.areceive(f"unix:{tmp_path}/s", target, on_progress=listening))
                await listening.wait()
                tasks.create_task(blkmig.asend([disk], f"unix:{tmp_path}/s"))

    with pytest.raises(ExceptionGroup) as caught:
        awaited.run(main())
    assert caught.group_contains(errors.DeviceError)
    awaited.check_threads_end()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: blkmig.asend(["nothing.raw"], "tcp:127.0.0.1:1"), errors.DeviceError),
        (lambda: blkmig.asend([awaited.Told()], "unix:/nowhere/s"), errors.ChannelError),
        (lambda: blkmig.asend([awaited.Told()], "tcp"), errors.ParameterError),
        (lambda: blkmig.asend([], "tcp:h:1"), errors.ParameterError),
        (lambda: blkmig.asend([awaited.Told()], "tcp:h:1", speed=3), TypeError),
        (lambda: blkmig.areceive("tcp:127.0.0.1:0"), errors.ParameterError),
        (lambda: blkmig.areceive("file:/nowhere/stream", into="."), errors.MigrationError),
    ],
)
def test_errors_are_those_of_the_plain_calls(call: Callable[[], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        awaited.run(call())
    awaited.check_threads_end()


@pytest.mark.parametrize(("raised", "comes"), [(ValueError("no"), ValueError), (StopIteration(), RuntimeError)])
def test_an_error_of_the_caller(tmp_path: Path, raised: Exception, comes: type[Exception]) -> None:
    def heard(event: stats.Event) -> None:
        raise raised

    with awaited.Told() as disk:
        with pytest.raises(comes):
            awaited.run(blkmig.asend([disk], f"file:{tmp_path}/stream", on_progress=heard))  # type: ignore[arg-type]
        assert faulty.is_free(disk)


def test_context_variables(tmp_path: Path) -> None:
    """The callback sees those of the task, in a copy."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    seen: set[tuple[str, str]] = set()

    def heard(event: stats.Event) -> None:
        seen.add((name.get(), threading.current_thread().name))

    def first(event: stats.Event) -> None:
        heard(event)
        name.set("changed")

    async def main() -> None:
        name.set("mine")
        await blkmig.asend([awaited.Told()], f"file:{tmp_path}/stream", on_progress=heard)
        await blkmig.areceive(f"file:{tmp_path}/stream", {"d": tmp_path / "new.raw"}, on_progress=first)
        assert name.get() == "mine"

    awaited.run(main())
    assert {("mine", "blkmig-asend"), ("mine", "blkmig-areceive"), ("changed", "blkmig-areceive")} == seen


# -- loops that go away ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_closed", [False, True])
def test_loop_that_is_closed(tmp_path: Path, is_closed: bool) -> None:
    """A receiver that nobody will ever wait for again is cancelled with its coroutine; its thread raises nothing."""
    raised: list[Any] = []
    loop = asyncio.new_event_loop()

    async def listen() -> None:
        listening = awaited.Listening()
        receive = blkmig.areceive(f"unix:{tmp_path}/s", {"d": tmp_path / "d.raw"}, on_progress=listening)
        kept.append((receive, asyncio.ensure_future(receive)))
        await listening.wait()

    kept: list[tuple[Any, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", raised.append)
        loop.run_until_complete(listen())
        receive, task = kept.pop()
        loop.set_exception_handler(lambda *_: None)  # it would say that the task was never ended
        if is_closed:
            loop.close()
        receive.close()
        awaited.check_threads_end()
        loop.close()
        del task
    assert not raised
    assert not list(tmp_path.iterdir())


def test_loop_that_ends_cancels_and_waits(tmp_path: Path) -> None:
    """`asyncio.run` does so with every task that is left."""

    async def main() -> None:
        listening = awaited.Listening()
        receive = blkmig.areceive(f"unix:{tmp_path}/s", {"d": tmp_path / "d.raw"}, on_progress=listening)
        tasks.append(asyncio.create_task(receive))
        await listening.wait()

    tasks: list[asyncio.Task[Any]] = []
    awaited.run(main())
    assert tasks[0].cancelled()
    awaited.check_threads_end()


def test_plain_calls_need_no_asyncio(tmp_path: Path) -> None:
    (tmp_path / "d.raw").write_bytes(bytes(awaited.MIB))
    code = (
        "import sys, blkmig; blkmig.send(['d.raw'], 'file:stream'); blkmig.receive('file:stream', {'d': 'new.raw'});"
        "print('asyncio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
