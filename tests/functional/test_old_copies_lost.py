# SPDX-License-Identifier: GPL-2.0-or-later
"""Old copies and top layers, and a link that is cut, a sender or a receiver that is killed: what the user is told to do
then ends equal, and nobody waits without a bound.

The grid: what the target holds before, what is lost, and whether the next sender says --resume.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import cutter
import dying
import forks
import lab
import pytest
from writer_threads import SteadyWriter

import blkmig
from blkmig import errors, savevm, stats
from blkmig.migration import comparing

MIB = lab.MIB
SIZE = 10 * MIB + 1536
Holds = Literal["delta", "in_place", "incremental", "verified"]
HOLDS: tuple[Holds, ...] = ("delta", "in_place", "incremental", "verified")
CUT = 3 * MIB


class Case:
    """A disk and its target, which holds something of it."""

    def __init__(self, folder: Path, holds: Holds) -> None:
        rng = random.Random(7)
        self.holds, self.folder = holds, folder
        self.is_top = holds in ("incremental", "verified")
        (folder / "to").mkdir()
        self.target = folder / "to" / "t.raw"
        self.old = folder / "old.raw"
        base = rng.randbytes(SIZE)
        (folder / "base").write_bytes(base)
        with (folder / "s.raw").open("wb") as file:
            file.truncate(SIZE)
        with self.disk(writable=True) as disk:
            for start in range(0, 8 * MIB, MIB):
                disk.pwrite(rng.randbytes(MIB - 4096), start)
        (self.old if holds == "delta" else self.target).write_bytes(base)
        self.waiting: lab.Receiver | None = None

    @contextlib.contextmanager
    def disk(self, *, writable: bool = False) -> Iterator[blkmig.BlockBackend]:
        with blkmig.FileBackend(
            self.folder / "s.raw", base=self.folder / "base", name="d", writable=writable
        ) as disk:
            yield disk

    @property
    def receives(self) -> dict[str, Any]:
        """What the receiver is told."""
        return {
            "delta": {"delta": {"d": self.old}},
            "in_place": {"in_place": True},
            "incremental": {"incremental": True},
            "verified": {"incremental": True, "verify": True},
        }[self.holds]

    @property
    def sends(self) -> dict[str, Any]:
        """What the sender is told."""
        return {"shared_base": self.is_top, "digests": self.holds == "verified", "max_bandwidth": 40 * MIB}

    def receiver(self) -> lab.Receiver:
        return lab.Receiver("tcp:127.0.0.1:0", {"d": self.target}, **self.receives)

    def check_equal(self) -> None:
        with self.disk() as disk:
            assert self.target.read_bytes() == disk.pread(0, SIZE)
        assert {path.name for path in self.target.parent.iterdir()} == {"t.raw"}
        assert not list(self.folder.glob(".*"))


def killing(event: stats.Event) -> None:
    if isinstance(event, stats.Progressed | stats.Received) and event.transferred >= CUT:
        os.kill(os.getpid(), signal.SIGKILL)


def cut(case: Case) -> None:
    """Cut the link, which comes back."""
    receiver = case.receiver()
    with case.disk() as disk, cutter.Cutter(receiver.uri, [(CUT, "reset")]) as relay:
        assert blkmig.send([disk], relay.uri, **case.sends).reconnects == 1
        receiver.result()  # before the relay resets what is still on its way


def kill_sender(case: Case) -> None:
    """Kill a sender; a receiver waits for it, or for one that resumes, says so to others, and may be ended."""
    case.waiting = receiver = case.receiver()

    def send() -> None:
        with case.disk() as disk:
            blkmig.send([disk], receiver.uri, on_progress=killing, **case.sends)

    os.waitpid(forks.start(send), 0)
    with case.disk() as disk, pytest.raises(errors.TargetFailed, match="end this receiver first, and start it"):
        blkmig.send([disk], receiver.uri, **case.sends)


def end(receiver: lab.Receiver) -> None:
    receiver.migration.cancel()
    with pytest.raises(errors.Cancelled) as caught:
        receiver.result()
    assert "what had come of it is removed" in caught.value.__notes__[0] or "do not use it" in caught.value.__notes__[0]


def kill_receiver(case: Case) -> None:
    reading, ready = os.pipe()

    def receive() -> None:
        parameters = blkmig.IncomingParameters(**case.receives)
        targets = {"d": case.target}
        with blkmig.IncomingMigration("tcp:127.0.0.1:0", targets, parameters, on_progress=killing) as migration:
            os.write(ready, migration.uri.encode())
            migration.run()

    pid = forks.start(receive)
    os.close(ready)
    uri = os.read(reading, 100).decode()
    os.close(reading)
    with case.disk() as disk, pytest.raises(errors.ChannelError) as caught:
        blkmig.send([disk], uri, reconnect=0.2, **case.sends)
    assert any("start the receiv" in note for note in caught.value.__notes__)
    os.waitpid(pid, 0)


LOSSES = {"cut": cut, "sender": kill_sender, "receiver": kill_receiver}


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("holds", HOLDS)
def test_what_is_to_be_done_then(tmp_path: Path, holds: Holds, loss: str, resumes: bool) -> None:
    case = Case(tmp_path, holds)
    LOSSES[loss](case)
    if loss == "cut":
        case.check_equal()
        return
    if case.is_top and resumes:
        if case.waiting is not None:
            end(case.waiting)
        with pytest.raises(errors.ParameterError, match=r"does not go with --incremental \(shared_base\)"):
            blkmig.MigrationParameters(resume=True, **case.sends)
        return
    receiver = case.waiting
    if receiver is None or not resumes:
        if receiver is not None:
            end(receiver)
        receiver = case.receiver()
    with case.disk() as disk:
        found = blkmig.send([disk], receiver.uri, resume=resumes, **case.sends)
    incoming = receiver.result()
    case.check_equal()
    assert case.is_top or found.same_bytes > 0
    assert holds != "verified" or incoming.disks["d"].verified


@pytest.mark.parametrize("how", ["reset", "end", "silence"])
@pytest.mark.parametrize("nbytes", [200, 240, 280, 310, 340])
def test_a_link_that_is_lost_while_the_bases_are_compared(tmp_path: Path, nbytes: int, how: cutter.How) -> None:
    """It comes back, and all of that is said again; so is what was lost while it was said again."""
    case = Case(tmp_path, "verified")
    receiver = case.receiver()
    cuts: list[tuple[int, cutter.How]] = [(nbytes, how), (33, how), (nbytes - 150, how)]
    with case.disk() as disk, cutter.Cutter(receiver.uri, cuts) as relay:
        found = blkmig.send([disk], relay.uri, idle_timeout=1, **case.sends)
        received = receiver.result()  # before the relay resets what is still on its way
    assert found.reconnects == 3
    assert received.disks["d"].verified
    case.check_equal()


@pytest.mark.parametrize("nbytes", [200, 280, 340])
def test_a_wrong_base_is_found_on_another_link(tmp_path: Path, nbytes: int) -> None:
    """Before anything is written, as on the first one."""
    case = Case(tmp_path, "verified")
    before = bytearray(case.target.read_bytes())
    before[-5000] ^= 1  # where only the base holds something
    case.target.write_bytes(before)
    receiver = case.receiver()
    with case.disk() as disk, cutter.Cutter(receiver.uri, [(nbytes, "reset")]) as relay:
        with pytest.raises((errors.WrongBase, errors.ChannelError)) as sent:
            blkmig.send([disk], relay.uri, **case.sends | {"reconnect": 5})
        with pytest.raises(errors.WrongBase):
            receiver.result()
    if nbytes < 340:  # else all may have come that the receiver needs, and its reason is lost with the link
        assert isinstance(sent.value, errors.WrongBase)
        assert relay.connections >= 2
    assert case.target.read_bytes() == before


@pytest.mark.parametrize("nbytes", [200, 280, 340])
def test_an_older_target_does_not_hear_the_bases_again(
    tmp_path: Path, nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "abilities", lambda *_: savevm.OURS & ~savevm.Ability.RECOMPARE)
    case = Case(tmp_path, "verified")
    before = case.target.read_bytes()
    receiver = case.receiver()
    with case.disk() as disk, cutter.Cutter(receiver.uri, [(nbytes, "reset")]) as relay:
        with pytest.raises(errors.ChannelError) as caught:
            blkmig.send([disk], relay.uri, **case.sends)
        assert "start the receiver again" in "".join(caught.value.__notes__)
        with pytest.raises(errors.MigrationError):  # before the relay resets what the sender says last
            receiver.result()
    assert case.target.read_bytes() == before


@pytest.mark.parametrize("holds", ["incremental", "verified"])
def test_cut_again_and_again_under_writers(tmp_path: Path, holds: Holds, is_long: bool) -> None:
    """What is verified is so on the last of the links, too."""
    first = random.randrange(1 << 32) if is_long else 1
    for number in range(30 if is_long else 2):
        seed = first + number
        print(f"seed {seed}")
        rng = random.Random(seed)
        (folder := tmp_path / str(number)).mkdir()
        case = Case(folder, holds)
        receiver = case.receiver()
        cuts: list[tuple[int, cutter.How]] = [(rng.randrange(MIB, 6 * MIB), "reset") for _ in range(3)]
        cuts = [(rng.randrange(200, 345), "reset"), (rng.randrange(50, 200), "end"), *cuts]
        with (
            case.disk(writable=True) as disk,
            SteadyWriter(disk, seed, dying.SIZE // 4),
            cutter.Cutter(receiver.uri, cuts) as relay,
        ):
            found = blkmig.send([disk], relay.uri, writers_after="refuse", downtime_limit=5, **case.sends)
            assert found.reconnects >= 1, f"seed {seed}"
            received = receiver.result()  # before the relay is closed, which resets what it has not heard
        assert received.disks["d"].verified == (holds == "verified"), f"seed {seed}"
        case.check_equal()
