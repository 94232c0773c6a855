# SPDX-License-Identifier: GPL-2.0-or-later
"""The link is lost at each message of the end: the source asks again, and nobody is in doubt if it comes back."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command
import cutter
import lab
import pytest
from messages import Cut, Message, MessageCutter, Where
from pauses import outcome_of_write

import blkmig
from blkmig import errors, stats
from blkmig.migration import made

MIB = lab.MIB
CONTENT = random.Random(1).randbytes(3 * MIB + 1536)
MESSAGES: tuple[Message, ...] = ("END", "READY", "COMMIT", "DONE")
WHERE: tuple[Where, ...] = ("before", "within", "behind")
HOWS: tuple[cutter.How, ...] = ("reset", "end", "silence")


class LastCut(MessageCutter):
    """A relay that lets nobody through any more once it has cut the link."""

    def _cut(self, link: cutter.Link, how: cutter.How) -> None:
        self.refuses.set()
        super()._cut(link, how)


class Case:
    """One migration of a disk through a relay that makes `cuts`; `after` is what becomes of the writers."""

    def __init__(self, folder: Path, cuts: list[Cut], *, moves: bool, **chosen: Any) -> None:
        self.target = folder / "t.raw"
        verify = chosen.get("digests", False)
        self.receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": self.target}, verify=verify)
        self.relay = MessageCutter(self.receiver.uri, cuts)
        self.disk = blkmig.MemoryBackend(bytearray(CONTENT), name="d")
        idle = 3.0 if any(how == "silence" for *_, how in cuts) else 30.0  # what is silent is found only by that
        options = {"idle_timeout": idle, "connect_timeout": 5.0, "reconnect": 20, "downtime_limit": 30, **chosen}
        parameters = blkmig.MigrationParameters(writers_after="refuse" if moves else "release", **options)
        self.on_loss: Callable[[], None] = lambda: None
        self.migration = blkmig.outgoing([self.disk], self.relay.uri, parameters, on_progress=self._tell)

    def _tell(self, event: stats.Event) -> None:
        if isinstance(event, stats.Reconnecting):
            self.on_loss()

    def stay_away(self) -> None:
        """Have no link come back, and nobody wait for one."""
        self.relay.refuses.set()
        self.receiver.migration.cancel()

    def send(self) -> None:
        with self.migration:
            self.migration.run()

    def result(self) -> stats.IncomingStatistics:
        """Wait for the receiver, and end the relay."""
        with self.relay:
            return self.receiver.result()


@pytest.mark.parametrize("moves", [True, False], ids=["move", "copy"])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("message", MESSAGES)
def test_a_link_that_comes_back(tmp_path: Path, message: Message, where: Where, moves: bool) -> None:
    for how in HOWS if where == "behind" and message != "DONE" else HOWS[:2]:
        (folder := tmp_path / how).mkdir()
        case = Case(folder, [(message, where, how)], moves=moves)
        case.send()
        if (message, where) == ("DONE", "behind"):  # what is lost is the rest, and nobody will come
            case.receiver.migration.cancel()
        else:
            assert case.migration.stats.reconnects == 1
        incoming = case.result()
        assert incoming.reconnects == case.migration.stats.reconnects
        assert case.relay.done == 1
        assert case.target.read_bytes() == CONTENT
        assert outcome_of_write(case.disk) == ("refused" if moves else "done")
        assert moves or {path.name for path in folder.iterdir()} == {"t.raw"}


@pytest.mark.parametrize("message", MESSAGES)
def test_what_is_proven_is_so_on_the_next_link(tmp_path: Path, message: Message) -> None:
    case = Case(tmp_path, [(message, "within", "reset")], moves=True, digests=True)
    case.send()
    assert case.result().disks["d"].verified
    assert case.migration.stats.verified
    assert (case.relay.done, case.migration.stats.reconnects) == (1, 1)


def test_link_after_link(tmp_path: Path, is_long: bool) -> None:
    """Any messages, any places, again and again."""
    seed = random.randrange(1 << 32) if is_long else 1
    rng = random.Random(seed)
    print(f"seed {seed}")
    for number in range(100 if is_long else 4):
        (folder := tmp_path / str(number)).mkdir()
        cuts: list[Cut] = [
            (rng.choice(MESSAGES[:2]), rng.choice(WHERE), rng.choice(HOWS[:2])) for _ in range(rng.randrange(3))
        ]
        cuts += [(rng.choice(MESSAGES[2:]), rng.choice(WHERE[:2]), rng.choice(HOWS[:2])) for _ in range(3)]
        moves = rng.random() < 0.6
        case = Case(folder, cuts, moves=moves)
        case.send()
        case.result()
        # Once COMMIT has begun to leave, neither END nor READY comes again: a cut that waits for one is not made.
        assert 0 < case.relay.done <= len(cuts), f"seed {seed}, {cuts}"
        assert case.target.read_bytes() == CONTENT, f"seed {seed}, {cuts}"
        assert outcome_of_write(case.disk) == ("refused" if moves else "done"), f"seed {seed}, {cuts}"


@pytest.mark.parametrize("moves", [True, False], ids=["move", "copy"])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("message", MESSAGES)
def test_a_link_that_stays_away(tmp_path: Path, message: Message, where: Where, moves: bool) -> None:
    """Whoever cannot know says so; the target has the disk, or never will."""
    case = Case(tmp_path, [(message, where, "reset")], moves=moves, reconnect=0.3)
    case.on_loss = case.stay_away
    outcome = "done"
    try:
        case.send()
    except errors.InDoubt:
        outcome = "in doubt"
    except errors.MigrationError:
        outcome = "failed"
    case.receiver.migration.cancel()
    has_taken = True
    try:
        case.result()
    except errors.MigrationError:
        has_taken = False
    assert has_taken == case.target.exists()
    assert not has_taken or case.target.read_bytes() == CONTENT
    expected = {"done": "refused" if moves else "done", "in doubt": "held", "failed": "done"}[outcome]
    assert outcome_of_write(case.disk) == expected
    assert outcome != "done" or has_taken
    assert not moves or outcome != "failed" or not has_taken, "two owners"
    assert outcome != "in doubt" or (moves and message in MESSAGES[2:])


def test_a_receiver_that_waits_for_nothing_more_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """Its disks are its own, so the end is a good one."""
    case = Case(tmp_path, [("DONE", "before", "reset")], moves=True, reconnect=0.5)
    case.on_loss = case.stay_away
    with pytest.raises(errors.InDoubt, match=r"did not come back within 0\.5 s"):
        case.send()
    notes = case.result().notes
    assert any("they have moved all the same" in note for note in notes), notes
    assert case.target.read_bytes() == CONTENT
    case.disk.release_writers()


@pytest.mark.parametrize("moves", [True, False], ids=["move", "copy"])
def test_who_waits_for_a_lost_link_says_so(tmp_path: Path, moves: bool) -> None:
    """At both ends: for what, how long at most, and that the target has everything; an interrupt ends that well."""
    source, target = tmp_path / "s.raw", tmp_path / "t.raw"
    source.write_bytes(CONTENT)
    with command.receiver("tcp:127.0.0.1:0", f"d={target}") as receiver:
        with LastCut(receiver.uri, [("DONE", "before", "reset")]) as relay:
            move = ["--move"] if moves else []
            sent = command.run("send", f"d={source}", relay.uri, "--reconnect=0.5", "--progress=none", *move)
            said = receiver.read_until("at most")
            receiver.process.send_signal(signal.SIGINT)
            received = receiver.finish()
    assert "the link was lost, and is opened again, for 0.5 s at most" in sent.stderr, sent.stderr
    assert sent.exit_code == (7 if moves else 5), sent.stderr
    assert "all disks are complete here, and the link was lost: their source is waited for, for 51 s at most" in said
    assert "Ctrl-C" in said
    assert received.exit_code == 0, received.stderr
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("when", ["behind DONE", "before DONE"])
@pytest.mark.parametrize("reconnect", [0, 20])
def test_a_cancel_is_heard_while_the_end_of_the_stream_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reconnect: int, when: str
) -> None:
    """From a source that stands still behind DONE, with no time-out at all; the end is a good one."""
    target, disk = tmp_path / "t.raw", blkmig.MemoryBackend(bytearray(CONTENT), name="d")
    give_names = made.MadeTargets.give_names

    def cancelled(self: made.MadeTargets) -> dict[str, errors.MigrationError]:
        if when == "before DONE":
            receiver.migration.cancel()
        return give_names(self)

    monkeypatch.setattr(made.MadeTargets, "give_names", cancelled)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target}, idle_timeout=0)
    with MessageCutter(receiver.uri, [("DONE", "behind", "silence")]) as relay:
        blkmig.send(
            [disk], relay.uri, writers_after="refuse", reconnect=reconnect, idle_timeout=5, downtime_limit=30
        )
        if when == "behind DONE":
            receiver.migration.cancel()
        notes = receiver.result().notes
    assert any("they have moved all the same" in note for note in notes), notes
    assert target.read_bytes() == CONTENT
    assert outcome_of_write(disk) == "refused"
