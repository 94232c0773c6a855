# SPDX-License-Identifier: GPL-2.0-or-later
"""An end stops at any call, as in `test_stops.py`, and its link is another one: one that is cut meanwhile, one that was
lost before and is resumed, a stream in a file, and those of migrations that an event loop awaits.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cutter
import lab
import pauses
import pytest
import stop_runs
import stops

import blkmig
from blkmig import channel, errors, stats
from blkmig.migration import barriers, connection, incomingsession

MIB = lab.MIB
SECONDS, LONG_SECONDS = 1.5, 150.0
LONGEST_WAIT = 5.0
"""More than a first sender, which tries for two seconds, is waited for."""


@pytest.fixture(autouse=True)
def small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small disks acknowledged, too, and a source that is lost waited for little longer than it tries."""
    monkeypatch.setattr(barriers, "BARRIER_SECONDS", 0.0)
    monkeypatch.setattr(barriers, "BARRIER_BYTES", MIB // 2)
    monkeypatch.setattr(incomingsession, "DEAD_SECONDS", 0.5)
    monkeypatch.setattr(incomingsession, "GRACE_SECONDS", 1.0)


class Run(stop_runs.Run):
    """One migration of files over a link of a kind."""

    name: str
    tries_again = True

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed, type(self).name)
        self.chosen: dict[str, Any] = {"writers_after": "refuse" if self.moves else "release"}

    def open(self, stack: contextlib.ExitStack) -> None:
        """Make disks in files, and both ends."""
        self.make_sources(stack)
        self.incoming = stack.enter_context(
            blkmig.IncomingMigration(self.address(), self.make_targets(), blkmig.IncomingParameters(**self.receiving()))
        )
        self.make_migration(self.way_to(stack, self.incoming.uri))

    def make_migration(self, uri: str) -> None:
        """Make the source's end."""
        self.migration = blkmig.outgoing(self.sources, uri, blkmig.MigrationParameters(**self.chosen))

    def address(self) -> str:
        """Return where the receiver listens."""
        return "tcp:127.0.0.1:0"

    def receiving(self) -> dict[str, Any]:
        """Return what the receiver is told."""
        return {"accept_timeout": 60}

    def way_to(self, _stack: contextlib.ExitStack, uri: str) -> str:
        """Return the address that the sender is told, for a receiver at `uri`."""
        return uri


class Cut(Run):
    """The link is cut at random bytes, and by what happens, too."""

    name = "cut"
    WHATS = (*stop_runs.Run.WHATS, "cut", "silence", "cut for good", "silence for good", "silence, both")
    soon = 14.0
    """Silence is noticed, two seconds to come again, two for each of the last words."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed)
        total = sum(map(len, self.contents.values()))
        hows: list[cutter.How] = ["reset", "silence", "end"]
        self._cuts = [
            (self.rng.choice((self.rng.randrange(200), self.rng.randrange(total + 4096))), self.rng.choice(hows))
            for _ in range(self.rng.choice((0, 1, 2)))
        ]
        self.chosen |= {"reconnect": 2.0, "idle_timeout": 0.5, "connect_timeout": 2.0}
        self.chosen["connections"] = self.rng.choice((1, 1, 2))
        self._relay: cutter.Cutter

    def describe(self) -> str:
        """Say where it is cut, too."""
        return f"{super().describe()}, cuts {self._cuts}"

    def receiving(self) -> dict[str, Any]:
        """Have silence noticed."""
        return {**super().receiving(), "idle_timeout": 0.5}

    def way_to(self, stack: contextlib.ExitStack, uri: str) -> str:
        """Go over a relay."""
        self._relay = stack.enter_context(cutter.Cutter(uri, self._cuts))
        return self._relay.uri

    def happen(self) -> None:
        """Cut, or what happens to others."""
        if "for good" in self.what:
            self._relay.refuses.set()
        if "cut" in self.what or "silence" in self.what:
            with contextlib.suppress(IndexError):  # there is no link yet
                self._relay.cut_now("silence" if "silence" in self.what else "reset")
        super().happen()


class Resumed(Run):
    """The link was lost for good, and another sender resumes what the target has, with the receiver that waits or a
    new one."""

    name = "resumed"
    soon = 14.0

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed)
        self.contents = {name: self.rng.randbytes(3 * MIB + 1536) for name in self.contents}
        self._waits = self.what != "fail target" and self.rng.random() < 0.5
        self._lost_after = self.rng.randrange(MIB, 5 * MIB // 2)
        self.name = "resumed, by who waits" if self._waits else "resumed"
        self.chosen["resume"] = True
        self._early: pauses.Call | None = None

    def way_to(self, stack: contextlib.ExitStack, uri: str) -> str:
        """Lose a first link before."""
        if self._waits:
            self._early = pauses.Call(super().receive)
            self._lose(uri, lambda: self.incoming.stats.status == "reconnecting")
            return uri
        with blkmig.IncomingMigration("tcp:127.0.0.1:0", self.make_targets()) as first:
            receiver = pauses.Call(first.run)
            self._lose(first.uri, receiver.is_over)
        return uri

    def open(self, stack: contextlib.ExitStack) -> None:
        """Have the link of a first sender be lost, which has a receiver of its own unless this one waits."""
        if self._waits:
            super().open(stack)
            return
        self.make_sources(stack)
        self.way_to(stack, "")
        self.incoming = stack.enter_context(
            blkmig.IncomingMigration(self.address(), self.make_targets(), blkmig.IncomingParameters(accept_timeout=60))
        )
        self.make_migration(self.incoming.uri)

    def _lose(self, uri: str, is_lost: Callable[[], bool]) -> None:
        """Send a part, and be gone without a word if somebody is to wait; return when it is lost for the receiver."""
        with cutter.Cutter(uri, [(self._lost_after, "reset")]) as relay, pytest.MonkeyPatch.context() as patch:

            def give_up(event: stats.Event) -> None:
                if isinstance(event, stats.Reconnecting):
                    if self._waits:
                        patch.setattr(connection.Connection, "another", nowhere)
                    migration.cancel()

            first = blkmig.MigrationParameters(reconnect=2)
            migration = blkmig.outgoing(self.sources, relay.uri, first, on_progress=give_up)
            with contextlib.suppress(errors.MigrationError), migration:
                migration.run()
            pauses.until(is_lost)

    def await_ends(self, sender: pauses.Call, receiver: pauses.Call) -> None:
        """End a receiver that waits for its source for as long as --reconnect says: one that is cancelled before it
        has heard whom it has met does not say that it goes."""
        assert sender.is_over(self.soon), "the sender does not end"
        if self._waits and not receiver.is_over(LONGEST_WAIT) and self.incoming.stats.status == "reconnecting":
            self.incoming.cancel()
        super().await_ends(sender, receiver)

    def receive(self) -> None:
        """Be the receiver, which may have begun before."""
        if self._early is None:
            super().receive()
        else:
            self._early.result()


class Awaited(Run):
    """An event loop awaits the sender, and what is cancelled is its task."""

    name = "awaited"

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def make_migration(self, uri: str) -> None:
        """The call makes it."""
        self._uri = uri

    def migrate(self) -> None:
        """Await it."""

        async def main() -> None:
            self._task = asyncio.current_task()
            self._loop = asyncio.get_running_loop()
            await blkmig.asend(self.sources, self._uri, **self.chosen)

        try:
            asyncio.run(main())
        except asyncio.CancelledError as error:
            if isinstance(error.__cause__, errors.Cancelled):
                raise error.__cause__ from None
            raise

    def cancel_sender(self) -> None:
        """Cancel the task."""
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._task.cancel)


class InFile(Run):
    """The stream goes to a file, and from there to the targets: each end alone."""

    name = "file:"
    WHATS = ("cancel sender", "fail source", "full", "cancel receiver", "fail target")

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed)
        self._stream = folder / "stream" / "s"
        self._stream.parent.mkdir()
        self._is_receivers = self.what in ("cancel receiver", "fail target")
        if self._is_receivers or self.rng.random() < 0.3:
            self.chosen["digests"] = True
        if self._is_receivers:
            self._owner, self._place = self.rng.choice(stop_runs.RECEIVER)

    def happen(self) -> None:
        """Leave no room, or what happens to others."""
        if self.what == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        super().happen()

    def play(self) -> None:
        """Send, then receive."""
        with contextlib.ExitStack() as stack:
            self.make_sources(stack)
            nowhere = stops.Stop(0, lambda: None)
            self.make_migration(f"file:{self._stream}")
            with with_room(), self._armed(nowhere if self._is_receivers else self.stop):
                sender = pauses.Call(self.send)
                assert sender.is_over(self.soon), "the sender does not end"
            sent = stop_runs.outcome(sender)
            self._look_at_stream(sent)
            if stop_runs.is_success(sent):
                self._load(stack)

    def _armed(self, stop: stops.Stop) -> contextlib.AbstractContextManager[None]:
        return stop.behind(self._owner, self._place)

    def _look_at_stream(self, sent: BaseException | None) -> None:
        said = f"sender: {sent!r}"
        assert sent is None or isinstance(sent, errors.MigrationError), said
        assert not isinstance(sent, errors.InDoubt), said
        names = [path.name for path in self._stream.parent.iterdir()]
        assert names == (["s"] if sent is None else []), f"{said}, {names}"
        self.look_at_sources(sent, said, is_sent=sent is None)
        assert not stop_runs.hidden(self.folder / "from"), said

    def _load(self, stack: contextlib.ExitStack) -> None:
        """Load the stream, and again if something has happened."""
        for stop in (self.stop if self._is_receivers else stops.Stop(0, lambda: None), None):
            parameters = blkmig.IncomingParameters(verify="digests" in self.chosen)
            targets = self.make_targets()
            self.incoming = stack.enter_context(blkmig.IncomingMigration(f"file:{self._stream}", targets, parameters))
            with contextlib.nullcontext() if stop is None else self._armed(stop):
                receiver = pauses.Call(self.receive)
                assert receiver.is_over(self.soon), "the receiver does not end"
            came = stop_runs.outcome(receiver)
            said = f"receiver: {came!r}"
            if came is None:
                self.look_at_targets(said)
                assert not stop_runs.hidden(self.folder / "into"), said
                return
            assert stop is not None, said
            assert isinstance(came, errors.MigrationError), said
            assert not list((self.folder / "into").iterdir()), said
            for disk in self.targets.values():
                disk.heal()


def nowhere(_connection: connection.Connection) -> channel.Connector:
    """Be a way to a target that is not there any more."""
    raise errors.ChannelError("connecting", uri="", cause="there is no way")


@contextlib.contextmanager
def with_room() -> Iterator[None]:
    """Have the limit of a file's size as it was behind the ``with``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", [Cut, Resumed, Awaited, InFile])
def test_stops_at_any_call(tmp_path: Path, kind: type[Run], is_long: bool) -> None:
    stop_runs.play(
        tmp_path,
        kind,
        seconds=LONG_SECONDS if is_long else SECONDS,
        first=stop_runs.first_seed(is_long=is_long),
    )
