# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrations of which an end is cancelled, or a disk fails, at any call; and what must be so afterwards.

A `Run` is one of them, with both ends in threads of this process. What it is made of, disks, targets and the way
between them, is what its kinds in ``tests/attack/test_stops*.py`` say.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import descriptors
import lab
import pauses
import processes
import stops
from faulty import is_free
from writer_threads import SteadyWriter

import blkmig
from blkmig import errors, testing
from blkmig.migration import (
    admission,
    beginning,
    bundling,
    ending,
    farewell,
    gathering,
    incomingsession,
    keyfile,
    loading,
    outgoingsession,
    proving,
    questions,
    taking,
)

SOON = 9.0
"""Less than anything waits that is not told of the end; a thousand times what an end takes that is."""

SENDER: list[tuple[Any, str]] = [
    *[(beginning, "begin")] * 3,
    (outgoingsession.OutgoingSession, "offer"),
    (outgoingsession.OutgoingSession, "begin"),
    (outgoingsession.OutgoingSession, "spread"),
    (bundling.Bundling, "_open"),
    (questions.Questions, "await_reply"),
    *[(ending.Ending, "_send_last_round")] * 2,
    (questions.Questions, "begin_end"),
    (questions.Questions, "commit"),
    (questions.Questions, "await_done"),
    (ending.Ending, "_send_the_rest"),
    (ending.Ending, "_send_eof"),
    (proving.Proving, "finish"),
]
RECEIVER: list[tuple[Any, str]] = [
    *[(loading.Loading, "load")] * 3,
    (admission, "admit"),
    (incomingsession.IncomingSession, "_take"),
    (gathering, "take"),
    (taking.Taking, "_take_end"),
    (taking.Taking, "_take_commit"),
    (taking.Taking, "_say_done"),
    (loading.Loading, "_end_with_a_word"),
    (farewell, "give_word"),
    (loading.Loading, "_verify"),
]
"""From where on calls are counted: from the beginning, from the pause, and around each word of the end."""


def play(folder: Path, make: Callable[[Path, int], Run], *, seconds: float, first: int) -> None:
    """Play runs of the seeds from `first` on for so long."""
    end = time.monotonic() + seconds
    for seed in range(first, first + (1 << 20)):
        (folder / str(seed)).mkdir()
        run = make(folder / str(seed), seed)
        try:
            with nothing_is_left():
                run.play()
        except BaseException as error:
            error.add_note(run.describe())
            raise
        if time.monotonic() > end:
            break


def first_seed(*, is_long: bool) -> int:
    """Return where the seeds begin: in the long form, where nobody has been."""
    return random.randrange(1 << 32) if is_long else 1


@contextlib.contextmanager
def nothing_is_left() -> Iterator[None]:
    """Fail if a thread, a descriptor or a child process is left of the body."""
    before = set(threading.enumerate())
    children = {child.pid for child in processes.children_of(os.getpid(), "")}
    with descriptors.given_back():
        yield
        pauses.until(lambda: set(threading.enumerate()) <= before)
    assert {child.pid for child in processes.children_of(os.getpid(), "")} <= children, "a child is left"


class Run(abc.ABC):
    """One migration of a kind called `name`, and what happens to it."""

    WHATS: ClassVar[tuple[str, ...]] = (
        "cancel sender",
        "cancel receiver",
        "cancel both",
        "fail source",
        "fail target",
    )
    SIZES: ClassVar[tuple[int, ...]] = lab.SIZES

    soon = SOON
    """The bound of whatever waits."""

    is_in_place = False
    """The targets are written where they are, and hold anything after a failure."""

    tries_again = False
    """A next plain try must work, where it is known who has the disks."""

    def __init__(self, folder: Path, seed: int, name: str) -> None:
        self.rng = rng = random.Random(seed)
        self.folder, self.seed, self.name = folder, seed, name
        self.moves = rng.random() < 0.6
        count = rng.choice((1, 1, 2, 3))
        self.contents = {f"d{number}": lab.random_disk(rng, rng.choice(self.SIZES)) for number in range(count)}
        self.what = rng.choice(self.WHATS)
        self._owner, self._place = rng.choice(SENDER if rng.random() < 0.6 else RECEIVER)
        self.stop = stops.Stop(rng.choice((0, *[int(10 ** (rng.random() * 3.5))] * 9)), self.happen)
        self.fault = testing.Fault(
            verb=rng.choice(("read", "read", "hold") if "source" in self.what else ("write", "zeroes", "flush")),
            times=None,
            error=rng.choice((errno.EIO, errno.ENOSPC, errno.ENOMEM)),
        )
        self.sources: list[Any] = []
        self.targets: dict[str, testing.FaultyDisk] = {}
        """Disks of this process, if those are the targets, and not files."""

        self.incoming: blkmig.IncomingMigration
        self.migration: blkmig.OutgoingMigration
        (folder / "from").mkdir()
        (folder / "into").mkdir()

    def describe(self) -> str:
        """Return what to say where it goes wrong."""
        place = f"{getattr(self._owner, '__name__', '')}.{self._place}"
        kind = "a move" if self.moves else "a copy"
        return f"seed {self.seed}: {self.name}, {kind}, {self.what}, behind {place}: {self.stop.where}"

    def happen(self) -> None:
        """Do what is to happen, in the middle of a call of either end's thread."""
        if "sender" in self.what or "both" in self.what:
            self.cancel_sender()
        if "receiver" in self.what or "both" in self.what:
            self.incoming.cancel()
        for disk in self.sources if "source" in self.what else self.targets.values():
            if self.what.startswith("fail"):
                disk.inject(self.fault)

    def cancel_sender(self) -> None:
        """Cancel the source's end."""
        self.migration.cancel()

    @abc.abstractmethod
    def open(self, stack: contextlib.ExitStack) -> None:
        """Make the disks, the targets and both ends; what is to be closed goes to the stack."""

    def make_sources(self, stack: contextlib.ExitStack) -> None:
        """Make disks in files, and where a target is to fail, one of this process for each of them."""
        for name, content in self.contents.items():
            path = lab.sparse_file(self.folder / "from" / f"{name}.raw", content)
            disk = testing.FaultyDisk(blkmig.FileBackend(path, name=name))
            self.sources.append(stack.enter_context(disk))
            if self.what == "fail target":
                self.targets[name] = testing.FaultyDisk(blkmig.MemoryBackend(bytearray(len(content)), name=name))

    def play(self) -> None:
        """Play it, and look at what has become of both ends."""
        with contextlib.ExitStack() as stack:
            self.open(stack)
            with self.stop.behind(self._owner, self._place):
                receiver = pauses.Call(self.receive)
                sender = pauses.Call(self.send)
                try:
                    self.await_ends(sender, receiver)
                finally:
                    self.cancel_sender()
                    self.incoming.cancel()
            sent = outcome(sender)
            self.look(sent, outcome(receiver))
            if self.tries_again and not (isinstance(sent, errors.InDoubt) or (self.moves and is_success(sent))):
                self.try_again()

    def await_ends(self, sender: pauses.Call, receiver: pauses.Call) -> None:
        """Fail unless both end in time."""
        assert sender.is_over(self.soon), "the sender does not end"
        if not receiver.is_over(0.2) and self.incoming.stats.status == "setup":
            self.incoming.cancel()  # no stream has begun that it could see the end of
        assert receiver.is_over(self.soon), "the receiver does not end"

    def try_again(self) -> None:
        """Send a copy of all disks plainly, and fail unless it is equal."""
        for disk in (*self.sources, *self.targets.values()):
            if isinstance(disk, testing.FaultyDisk):
                disk.heal()
        shutil.rmtree(self.folder / "into")
        (self.folder / "into").mkdir()
        receiver = lab.Receiver("tcp:127.0.0.1:0", self.make_targets())
        blkmig.send(self.sources, receiver.uri)
        receiver.result()
        self.keep_contents()
        self.look_at_targets("of a next try")

    def make_targets(self) -> Mapping[str, Any]:
        """Return the targets, made anew."""
        return self.targets or {name: self.target(name) for name in self.contents}

    def target(self, name: str) -> Path:
        """Return the file of a target."""
        return self.folder / "into" / f"{name}.raw"

    def receive(self) -> None:
        """Be the receiver."""
        with contextlib.ExitStack() as stack:
            stack.push(self.incoming)  # it is entered
            self.incoming.run()

    def migrate(self) -> None:
        """Send the disks."""
        with self.migration:
            self.migration.run()

    def send(self) -> None:
        """Be the sender, with somebody who writes a disk that moves."""
        with contextlib.ExitStack() as stack:
            self.begin_to_write(stack)
            try:
                self.migrate()
            except errors.InDoubt:
                self.keep_contents()
                for disk in self.sources:
                    disk.release_writers()  # or those that write here would hang
                raise
            except errors.NotVerified:
                self.keep_contents()
                raise
            self.keep_contents()

    def begin_to_write(self, stack: contextlib.ExitStack) -> None:
        """Have somebody write the disks that move."""
        for disk in self.sources if self.moves else ():
            stack.enter_context(SteadyWriter(disk, self.seed, max(1, disk.size - 65536)))

    def keep_contents(self) -> None:
        """Keep what the target is to hold, if it has the disks: nobody writes them until this returns."""
        self.contents = {disk.name: disk.pread(0, disk.size) for disk in self.sources}

    # -- what has become of it ---------------------------------------------------------------------------------------

    def look(self, sent: BaseException | None, came: BaseException | None) -> None:
        """Compare what both ends say with what is so."""
        said = f"sender: {sent!r}, receiver: {came!r}"
        assert all(error is None or isinstance(error, errors.MigrationError) for error in (sent, came)), said
        is_there = isinstance(came, errors.NotVerified | errors.InDoubt | None)
        is_sent = is_success(sent)
        assert is_there or not is_sent, f"nobody has the disks: {said}"
        if self.moves:
            assert is_sent or isinstance(sent, errors.InDoubt) or not is_there, f"two owners: {said}"
        if is_there:
            self.look_at_targets(said)
        self.look_at_sources(sent, said, is_sent=is_sent)
        self.look_at_files(said, is_sent=is_sent, is_there=is_there)
        if not isinstance(sent, errors.InDoubt):
            keys = f"{keyfile.SUFFIX}.blkmig"  # which stay where nobody knows who waits
            assert all(name.endswith(keys) for name in hidden(self.folder / "from")), said

    def look_at_targets(self, said: str) -> None:
        """Fail unless the targets hold the disks."""
        assert self.targets_hold() == self.contents, f"they differ: {said}"

    def targets_hold(self) -> Mapping[str, bytes]:
        """Return what is at the target."""
        if self.targets:
            return {name: disk.pread(0, disk.size) for name, disk in self.targets.items()}
        return {name: self.target(name).read_bytes() for name in self.contents}

    def look_at_sources(self, sent: BaseException | None, said: str, *, is_sent: bool) -> None:
        """Fail unless the sources can be written, or are refused where they have moved."""
        for disk in self.sources:
            if is_sent and self.moves:
                assert pauses.outcome_of_write(disk) == "refused", said
            else:
                assert is_free(disk), said

    def look_at_files(self, said: str, *, is_sent: bool, is_there: bool) -> None:
        """Only what is complete has its name; what is known to be complete leaves nothing else."""
        if not (is_there or self.is_in_place):
            assert not [path for path in map(self.target, self.contents) if path.exists()], said
        if is_sent:
            assert not hidden(self.folder / "from"), f"{hidden(self.folder / 'from')}, {said}"
            was_heard = not any("not heard to its end" in note for note in self.incoming.stats.notes)
            if self.incoming.stats.status == "completed" and was_heard:
                assert not hidden(self.folder / "into"), said


def hidden(folder: Path) -> list[str]:
    """Return what somebody has left there."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def is_success(sent: BaseException | None) -> bool:
    """Return whether a sender says that the target has the disks."""
    return isinstance(sent, errors.NotVerified | None)


def outcome(call: pauses.Call) -> BaseException | None:
    """Return what a call that is over has raised."""
    try:
        call.result()
    except BaseException as error:
        return error
    return None
