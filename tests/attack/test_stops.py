# SPDX-License-Identifier: GPL-2.0-or-later
"""Either end is cancelled, or a disk of it fails, at any call: both end soon, say what is so, and leave nothing behind.

Runs for a few seconds, with ``--long`` for ten minutes and with seeds of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import random
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import descriptors
import lab
import pauses
import pytest
import stops
import tls
import tls_links
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

MIB = lab.MIB
SECONDS, LONG_SECONDS = 6.0, 600.0
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


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the two ends are told."""

    uri: str = "unix:{0}/s"
    send: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    receive: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_compared: bool = False
    """The target begins with an old copy of each disk."""


PROVEN: dict[str, Any] = {"send": {"digests": True}, "receive": {"verify": True}}
KINDS = {
    "plain": Kind(),
    "tcp": Kind("tcp:127.0.0.1:0"),
    "several connections": Kind(send={"connections": 3}),
    "a token": Kind("tls:127.0.0.1:0"),
    "several with a token": Kind("tls:127.0.0.1:0", send={"connections": 3}),
    "certificates": Kind("tls:127.0.0.1:0", receive={"tls": True}),
    "old copies": Kind(is_compared=True),
    "in place": Kind(is_compared=True, receive={"in_place": True}),
    "proven": Kind(**PROVEN),
    "several, proven": Kind(send={"digests": True, "connections": 2}, receive={"verify": True}),
    "no session": Kind(send={"reconnect": 0, "connections": 2}),
    "compressed": Kind(send={"compress": "zstd"}),
    "the first edition": Kind(send={"format": "block"}),
    "the first edition, verified": Kind(send={"format": "block", "digests": True}, receive={"verify": True}),
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> blkmig.TlsParameters:
    """Return what both ends trust."""
    return tls_links.trusting(tls.make_certificates(tmp_path_factory.mktemp("certificates") / "pki", host="localhost"))


def test_stops_at_any_call(tmp_path: Path, certificates: blkmig.TlsParameters, is_long: bool) -> None:
    first = random.randrange(1 << 32) if is_long else 1
    end = time.monotonic() + (LONG_SECONDS if is_long else SECONDS)
    for seed in range(first, first + (1 << 20)):
        (tmp_path / str(seed)).mkdir()
        run = Run(tmp_path / str(seed), seed, certificates)
        try:
            with nothing_is_left():
                run.play()
        except BaseException as error:
            error.add_note(run.describe())
            raise
        if time.monotonic() > end:
            break


@contextlib.contextmanager
def nothing_is_left() -> Iterator[None]:
    """Fail if a thread or a descriptor is left of the body."""
    before = set(threading.enumerate())
    with descriptors.given_back():
        yield
        pauses.until(lambda: set(threading.enumerate()) <= before)


class Run:
    """One migration, and what happens to it."""

    def __init__(self, folder: Path, seed: int, certificates: blkmig.TlsParameters) -> None:
        self._rng = rng = random.Random(seed)
        self._folder, self._seed = folder, seed
        self._name = list(KINDS)[seed % len(KINDS)]
        self._kind = KINDS[self._name]
        self._moves = rng.random() < 0.6
        self._contents = {f"d{n}": lab.random_disk(rng, rng.choice(lab.SIZES)) for n in range(rng.choice((1, 1, 2, 3)))}
        self._what = rng.choice(("cancel sender", "cancel receiver", "cancel both", "fail source", "fail target"))
        self._owner, self._place = rng.choice(SENDER if rng.random() < 0.6 else RECEIVER)
        self._stop = stops.Stop(rng.choice((0, *[int(10 ** (rng.random() * 3.5))] * 9)), self._happen)
        self._fault = testing.Fault(
            verb=rng.choice(("read", "read", "hold") if "source" in self._what else ("write", "zeroes", "flush")),
            times=None,
            error=rng.choice((errno.EIO, errno.ENOSPC, errno.ENOMEM)),
        )
        self._certificates = certificates
        self._sources: list[testing.FaultyDisk] = []
        self._targets: dict[str, testing.FaultyDisk] = {}
        (folder / "from").mkdir()
        (folder / "into").mkdir()

    def describe(self) -> str:
        """Return what to say where it goes wrong."""
        place = f"{getattr(self._owner, '__name__', '')}.{self._place}"
        kind = "a move" if self._moves else "a copy"
        return f"seed {self._seed}: {self._name}, {kind}, {self._what}, behind {place}: {self._stop.where}"

    def _happen(self) -> None:
        if "sender" in self._what or "both" in self._what:
            self._migration.cancel()
        if "receiver" in self._what or "both" in self._what:
            self._incoming.cancel()
        for disk in self._sources if "source" in self._what else self._targets.values():
            if self._what.startswith("fail"):
                disk.inject(self._fault)

    def play(self) -> None:
        """Play it, and look at what has become of both ends."""
        with contextlib.ExitStack() as stack:
            self._open(stack)
            with self._stop.behind(self._owner, self._place):
                receiver = pauses.Call(self._receive)
                sender = pauses.Call(self._send)
                try:
                    assert sender.is_over(SOON), "the sender does not end"
                    if not receiver.is_over(0.2) and self._incoming.stats.status == "setup":
                        self._incoming.cancel()  # no stream has begun that it could see the end of
                    assert receiver.is_over(SOON), "the receiver does not end"
                finally:
                    self._migration.cancel()
                    self._incoming.cancel()
            self._look(outcome(sender), outcome(receiver))

    def _open(self, stack: contextlib.ExitStack) -> None:
        receive, olds = dict(self._kind.receive), {}
        for name, content in self._contents.items():
            path = lab.sparse_file(self._folder / "from" / f"{name}.raw", content)
            disk = testing.FaultyDisk(blkmig.FileBackend(path, name=name))
            self._sources.append(stack.enter_context(disk))
            if self._what == "fail target":
                self._targets[name] = testing.FaultyDisk(blkmig.MemoryBackend(bytearray(len(content)), name=name))
            elif self._kind.is_compared:
                where = "into" if "in_place" in receive else "from"
                olds[name] = self._folder / where / f"{name}{'' if where == 'into' else '.old'}.raw"
                olds[name].write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
        if olds and "in_place" not in receive:
            receive["delta"] = {name: str(path) for name, path in olds.items()}
        if "tls" in receive:
            receive["tls"] = self._certificates
        targets: Mapping[str, Any] = self._targets or {name: self._target(name) for name in self._contents}
        self._incoming = stack.enter_context(
            blkmig.IncomingMigration(
                self._kind.uri.format(self._folder), targets, blkmig.IncomingParameters(accept_timeout=60, **receive)
            )
        )
        uri, send = tls_links.named(self._incoming.uri), dict(self._kind.send)
        if uri.startswith("tls:"):
            send["tls"] = receive.get("tls") or blkmig.TlsParameters(token=self._incoming.token)
        self._migration = blkmig.outgoing(
            self._sources, uri, blkmig.MigrationParameters(writers_after="refuse" if self._moves else "release", **send)
        )

    def _target(self, name: str) -> Path:
        return self._folder / "into" / f"{name}.raw"

    def _receive(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.push(self._incoming)  # it is entered
            self._incoming.run()

    def _send(self) -> None:
        with contextlib.ExitStack() as stack:
            for disk in self._sources if self._moves else ():
                stack.enter_context(SteadyWriter(disk, self._seed, max(1, disk.size - 65536)))
            try:
                with self._migration:
                    self._migration.run()
            except errors.InDoubt:
                self._keep_contents()
                for disk in self._sources:
                    disk.release_writers()  # or those that write here would hang
                raise
            except errors.NotVerified:
                self._keep_contents()
                raise
            self._keep_contents()

    def _keep_contents(self) -> None:
        """Keep what the target is to hold, if it has the disks: nobody writes them until this returns."""
        self._contents = {disk.name: disk.pread(0, disk.size) for disk in self._sources}

    # -- what has become of it ---------------------------------------------------------------------------------------

    def _look(self, sent: BaseException | None, came: BaseException | None) -> None:
        """Compare what both ends say with what is so."""
        said = f"sender: {sent!r}, receiver: {came!r}"
        assert all(error is None or isinstance(error, errors.MigrationError) for error in (sent, came)), said
        is_there = isinstance(came, errors.NotVerified | errors.InDoubt | None)
        is_sent = isinstance(sent, errors.NotVerified | None)
        assert is_there or not is_sent, f"nobody has the disks: {said}"
        if self._moves:
            assert is_sent or isinstance(sent, errors.InDoubt) or not is_there, f"two owners: {said}"
        if is_there:
            assert self._targets_hold() == self._contents, f"they differ: {said}"
        for disk in self._sources:
            if is_sent and self._moves:
                assert pauses.outcome_of_write(disk) == "refused", said
            else:
                assert is_free(disk), said
        self._look_at_files(said, is_sent=is_sent, is_there=is_there)
        if not isinstance(sent, errors.InDoubt):
            keys = f"{keyfile.SUFFIX}.blkmig"  # which stay where nobody knows who waits
            assert all(name.endswith(keys) for name in hidden(self._folder / "from")), said

    def _targets_hold(self) -> dict[str, bytes]:
        if self._targets:
            return {name: disk.pread(0, disk.size) for name, disk in self._targets.items()}
        return {name: self._target(name).read_bytes() for name in self._contents}

    def _look_at_files(self, said: str, *, is_sent: bool, is_there: bool) -> None:
        """Only what is complete has its name; what is known to be complete leaves nothing else."""
        if not (is_there or "in_place" in self._kind.receive):
            assert not [path for path in map(self._target, self._contents) if path.exists()], said
        if is_sent:
            assert not hidden(self._folder / "from"), said
            was_heard = not any("not heard to its end" in note for note in self._incoming.stats.notes)
            if self._incoming.stats.status == "completed" and was_heard:
                assert not hidden(self._folder / "into"), said


def hidden(folder: Path) -> list[str]:
    """Return what somebody has left there."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def outcome(call: pauses.Call) -> BaseException | None:
    """Return what a call that is over has raised."""
    try:
        call.result()
    except BaseException as error:
        return error
    return None
