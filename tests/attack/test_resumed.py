# SPDX-License-Identifier: GPL-2.0-or-later
"""kill -9 of either end in the middle, under writers, and then --resume: equal, and little of it sent again."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import forks
import lab
import pytest
from writer_threads import SteadyWriter

import blkmig
from blkmig import errors, stats
from blkmig.files import partial

MIB = lab.MIB
SIZE = 48 * MIB + 512
LONG_RUNS = 100


def killing(nbytes: int) -> Callable[[stats.Event], None]:
    """Return what kills this process once so many bytes have passed."""

    def look(event: stats.Event) -> None:
        if isinstance(event, stats.Progressed | stats.Received) and event.transferred >= nbytes:
            os.kill(os.getpid(), signal.SIGKILL)

    return look


class Case:
    """A disk in a file, and where it goes."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self.source, self.target = folder / "s.raw", folder / "to" / "t.raw"
        self.target.parent.mkdir(parents=True)
        self.source.write_bytes(random.Random(seed).randbytes(SIZE))
        self.uri = f"unix:{folder}/socket"

    def kill_the_sender(self, nbytes: int) -> None:
        is_away = threading.Event()

        def look(event: stats.Event) -> None:
            if isinstance(event, stats.StatusChanged) and event.status == "reconnecting":
                is_away.set()

        receiver = lab.Receiver(self.uri, {"d": self.target}, on_progress=look)

        def send() -> None:
            with blkmig.FileBackend(self.source, name="d") as disk, SteadyWriter(disk, self.seed, SIZE // 8):
                blkmig.send([disk], self.uri, max_bandwidth=100 * MIB, on_progress=killing(nbytes))

        os.waitpid(forks.start(send), 0)
        assert is_away.wait(30)
        receiver.migration.cancel()
        with pytest.raises(errors.Cancelled):
            receiver.result()

    def kill_the_receiver(self, disk: blkmig.FileBackend, nbytes: int) -> None:
        reading, ready = os.pipe()

        def receive() -> None:
            targets, look = {"d": self.target}, killing(nbytes)
            with blkmig.IncomingMigration(self.uri, targets, on_progress=look) as migration:
                os.write(ready, b"!")
                migration.run()

        pid = forks.start(receive)
        os.close(ready)
        assert os.read(reading, 1) == b"!"
        os.close(reading)
        with pytest.raises(errors.ChannelError):
            blkmig.send([disk], self.uri, max_bandwidth=100 * MIB, reconnect=0.2)
        os.waitpid(pid, 0)

    def damage(self, rng: random.Random) -> None:
        """Change what is left at the target."""
        left = self.target.with_name(partial.partial_name(self.target.name))
        with left.open("r+b") as file:
            for _ in range(5):
                file.seek(rng.randrange(SIZE))
                file.write(rng.randbytes(rng.choice((1, 4096))))

    def resume(self, disk: blkmig.FileBackend) -> stats.OutgoingStatistics:
        receiver = lab.Receiver(self.uri, {"d": self.target})
        found = blkmig.send([disk], self.uri, resume=True, writers_after="refuse", downtime_limit=2)
        receiver.result()
        return found


def run(folder: Path, seed: int, side: str, *, damages: bool) -> None:
    rng = random.Random(seed)
    case, nbytes = Case(folder, seed), rng.randrange(26, 34) * MIB
    if side == "sender":
        case.kill_the_sender(nbytes)
    with blkmig.FileBackend(case.source, name="d") as disk:
        with SteadyWriter(disk, seed + 1, SIZE // 8):
            if side == "receiver":
                case.kill_the_receiver(disk, nbytes)
            if damages:
                case.damage(rng)
            found = case.resume(disk)
        assert case.target.read_bytes() == case.source.read_bytes(), f"seed {seed}"
    assert found.same_bytes > 8 * MIB, f"seed {seed}: {found}"
    bulk = found.rounds[0].transferred
    assert bulk < SIZE * 3 // 4, f"seed {seed}: {bulk}"
    assert {path.name for path in case.target.parent.iterdir()} == {"t.raw"}


@pytest.mark.parametrize("damages", [False, True], ids=["as it was", "changed"])
@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_killed_and_resumed(tmp_path: Path, side: str, damages: bool) -> None:
    run(tmp_path, 1, side, damages=damages)


def test_again_and_again(tmp_path: Path, is_long: bool) -> None:
    first = random.randrange(1 << 32) if is_long else 5
    for number in range(LONG_RUNS if is_long else 2):
        seed = first + number
        print(f"seed {seed}")
        rng = random.Random(seed)
        run(tmp_path / str(number), seed, rng.choice(("sender", "receiver")), damages=rng.random() < 0.5)
