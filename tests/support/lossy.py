# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole migrations under writers, over a relay that cuts the link again and again."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import cutter
import lab
import pytest

import blkmig
from blkmig import errors, stats
from blkmig.block import compare, save
from blkmig.disk import LocalBackend
from blkmig.migration import barriers

MIB = lab.MIB
Holds = Literal["delta", "in_place"]


@pytest.fixture
def many_barriers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a barrier every megabyte or two, and from the beginning."""
    monkeypatch.setattr(barriers, "BARRIER_SECONDS", 0.02)
    monkeypatch.setattr(barriers, "BARRIER_BYTES", 2 * MIB)


@pytest.fixture
def small_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have many ASKs and many sections, also of small disks."""
    monkeypatch.setattr(save, "SECTION_SECONDS", 0.005)
    monkeypatch.setattr(compare, "ASK_BLOCKS", 3)
    monkeypatch.setattr(compare, "FINER_BLOCKS", 2)


@contextlib.contextmanager
def writing(disks: list[LocalBackend], seed: int) -> Iterator[None]:
    """Write the disks at random, in a thread, until they are turned away or the body ends."""
    stop, raised = threading.Event(), []

    def run() -> None:
        rng = random.Random(seed)
        try:
            while not stop.wait(0.001):
                write(rng.choice(disks), rng)
        except errors.DeviceError as error:
            if "moved" not in str(error):
                raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
    assert not raised


def write(disk: LocalBackend, rng: random.Random) -> None:
    nbytes = min(rng.choice((1, 512, 4096, 70_000)), disk.size)
    offset = rng.randrange(disk.size - nbytes + 1)
    if rng.random() < 0.2:
        disk.pwrite_zeroes(offset, nbytes)
    else:
        disk.pwrite(rng.randbytes(nbytes), offset)


def cut_live(migration: blkmig.OutgoingMigration, relay: cutter.Cutter, cuts: list[tuple[float, cutter.How]]) -> None:
    """Cut the link so many seconds after it has come back each time; then let the migration end."""
    for seconds, how in cuts:
        while not (migration.status == "active" and relay.is_up and relay.is_through):
            threading.Event().wait(0.001)
        threading.Event().wait(seconds)
        relay.cut_now(how)
    migration.switchover()


class Lossy:
    """One move of `sizes` random disks with so many cuts; `outgoing` and `incoming` are the figures of both ends.

    With `verify` the disks are proven, too; at a `uri` of tls: the receiver's token makes both ends trust each other.
    With `holds` the receiver has an old copy of each disk, in `old`, as the targets or as files beside them.
    """

    made: Callable[[random.Random, int], bytes] = random.Random.randbytes
    """What makes the contents of a disk."""

    def __init__(self, folder: Path, seed: int, cuts: list[tuple[int, cutter.How]], *sizes: int, **chosen: Any) -> None:
        self._folder, self._seed, self._cuts, self._sizes = folder, seed, cuts, sizes
        self._verify = chosen.pop("verify", False)
        self._uri = chosen.pop("uri", "tcp:127.0.0.1:0")
        self._holds: Holds | None = chosen.pop("holds", None)
        self._chosen = {"writers_after": "refuse", "idle_timeout": 1.0, "connect_timeout": 5.0, **chosen}
        self._chosen["digests"] = self._verify or self._chosen.get("digests", False)
        self.migration: blkmig.OutgoingMigration
        self.outgoing: stats.OutgoingStatistics
        self.incoming: stats.IncomingStatistics
        self.told: list[stats.Event] = []

    def _old_copies(self, rng: random.Random, targets: dict[str, Path], contents: list[bytes]) -> dict[str, Any]:
        """Make the old copies, and return what the receiver is told of them."""
        if self._holds is None:
            return {}
        olds = {name: path.with_suffix(".old") if self._holds == "delta" else path for name, path in targets.items()}
        for path, content in zip(olds.values(), contents, strict=True):
            path.write_bytes(old_copy(rng, content))
        return {"delta": olds} if self._holds == "delta" else {"in_place": True}

    def run(
        self,
        *,
        is_file: bool = False,
        live: list[tuple[float, cutter.How]] | None = None,
        some: bool = False,
        on_progress: Callable[[stats.Event], None] = lambda event: None,
    ) -> None:
        """Run it, and compare both ends; with `live`, cut again after so many seconds each, before the switchover.

        With `some`, not all cuts need be reached, and one that comes before a connection has a part is no loss.
        """
        rng = random.Random(self._seed)
        names = [f"d{number}" for number in range(len(self._sizes))]
        contents = [type(self).made(rng, size) for size in self._sizes]
        targets = {name: self._folder / f"{name}.raw" for name in names}
        receiver = lab.Receiver(self._uri, targets, verify=self._verify, **self._old_copies(rng, targets, contents))
        if receiver.migration.token:
            self._chosen["tls"] = blkmig.TlsParameters(token=receiver.migration.token)
        with contextlib.ExitStack() as stack:
            disks: list[LocalBackend] = []
            for name, content in zip(names, contents, strict=True):
                disk: LocalBackend = blkmig.MemoryBackend(bytearray(content), name=name)
                if is_file:
                    disk = blkmig.FileBackend(lab.sparse_file(self._folder / f"{name}.src", content), name=name)
                disks.append(stack.enter_context(disk))
            relay = stack.enter_context(cutter.Cutter(receiver.uri, self._cuts))

            def tell(event: stats.Event) -> None:
                self.told.append(event)
                on_progress(event)

            chosen = blkmig.MigrationParameters(**self._chosen)
            self.migration = migration = blkmig.outgoing(disks, relay.uri, chosen, on_progress=tell)
            with writing(disks, self._seed), migration:
                if live is not None:
                    threading.Thread(target=cut_live, args=(migration, relay, live), daemon=True).start()
                migration.run()
            self.outgoing, self.incoming = migration.stats, receiver.result()
            for name, disk in zip(names, disks, strict=True):
                target = (self._folder / f"{name}.raw").read_bytes()
                assert target == disk.pread(0, disk.size), f"seed {self._seed}, {self._cuts}: disk {name!r} differs"
        assert self.outgoing.verified == self._verify, f"seed {self._seed}, {self._cuts}"
        assert all(disk.verified == self._verify for disk in self.incoming.disks.values())
        # A link that is cut before it has been answered is no link.
        assert self.incoming.reconnects >= self.outgoing.reconnects, f"seed {self._seed}, {self._cuts}"
        if some:
            assert self.outgoing.reconnects <= relay.done > 0, f"seed {self._seed}, {self._cuts}"
            return
        count = len(self._cuts) + len(live or ())
        assert 0 < self.outgoing.reconnects <= relay.done == count, f"seed {self._seed}, {self._cuts}, {live}"


def old_copy(rng: random.Random, content: bytes) -> bytes:
    """Return what is like `content` but for runs of some kilobytes, and for a block here and there; maybe shorter."""
    old = bytearray(content)
    for _ in range(len(old) // MIB + 1):
        nbytes = rng.choice((1, 4096, 70_000, 70_000, MIB))
        at = rng.randrange(len(old))
        old[at : at + nbytes] = rng.choice((rng.randbytes, bytes))(len(old[at : at + nbytes]))
    return bytes(old[: rng.choice((len(old), len(old), len(old) * 2 // 3))])


def compared_cuts(rng: random.Random, count: int, *hows: cutter.How) -> list[tuple[int, cutter.How]]:
    """Return cuts at random bytes of questions and of answers, the first one of them when there is a session."""

    def cut() -> tuple[int, cutter.How]:
        nbytes = rng.choice((rng.randrange(1, 300), rng.randrange(1, 4000), rng.randrange(1, 200_000)))
        return rng.choice((nbytes, -(nbytes // 20 or 1))), rng.choice(hows)

    return [(rng.randrange(350, 3000), rng.choice(hows)), *(cut() for _ in range(count - 1))]


def random_cuts(rng: random.Random, count: int, nbytes: int, *hows: cutter.How) -> list[tuple[int, cutter.How]]:
    """Return cuts at random bytes, none of which comes behind `nbytes` of the whole stream.

    The first one comes when there is a session; then some hit the first words of a link.
    """
    most = nbytes // count
    cuts = [(rng.randrange(4096, most), rng.choice(hows))]
    while len(cuts) < count:
        cuts.append((rng.choice((rng.randrange(200), rng.randrange(most))), rng.choice(hows)))
    return cuts
