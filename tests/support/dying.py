# SPDX-License-Identifier: GPL-2.0-or-later
"""A sender in a process of its own, which ends or stops itself at a chosen moment, and a receiver that lives on."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import forks
import lab
from writer_threads import SteadyWriter

import blkmig
from blkmig import stats
from blkmig.migration import questions

MIB = lab.MIB
SIZE = 12 * MIB + 1536
Moment = Literal["bulk", "round", "END", "COMMIT", "DONE", "never"]
"""Of END and COMMIT, right before it is sent; of DONE, before it is waited for."""

END_SECONDS = 60


class Case:
    """`count` disks in files, with a receiver of them that lives; `chosen` is what it is told."""

    def __init__(self, folder: Path, *, seed: int = 1, count: int = 1, **chosen: Any) -> None:
        rng = random.Random(seed)
        (folder / "to").mkdir(exist_ok=True)
        self.sources = {f"d{number}": folder / f"s{number}.raw" for number in range(count)}
        self.targets = {name: folder / "to" / f"{name}.raw" for name in self.sources}
        for path in self.sources.values():
            path.write_bytes(rng.randbytes(SIZE))
        self.uri = chosen.pop("uri", f"unix:{folder}/socket")
        self.is_away = threading.Event()
        self._chosen = chosen
        self.receive()

    def receive(self) -> None:
        """Start a receiver."""
        self.receiver = lab.Receiver(self.uri, self.targets, on_progress=self._look, **self._chosen)
        self.uri = self.receiver.uri

    def has_something(self) -> bool:
        """Return whether the receiver, or the one before it, has noted that it has a part of a disk."""
        return any(path.name.endswith(".blkmig") for path in next(iter(self.targets.values())).parent.iterdir())

    def key_file(self) -> Path:
        """Return where the killed sender has left its key."""
        first = next(iter(self.sources.values()))
        return first.with_name(f".{first.name}.source.blkmig")

    def _look(self, event: stats.Event) -> None:
        if isinstance(event, stats.StatusChanged) and event.status == "reconnecting":
            self.is_away.set()

    @contextlib.contextmanager
    def disks(self, *, seed: int | None = None, writable: bool = True) -> Iterator[list[blkmig.BlockBackend]]:
        """Open the disks; with a `seed`, under writers."""
        with contextlib.ExitStack() as stack:
            opened: list[blkmig.BlockBackend] = [
                stack.enter_context(blkmig.FileBackend(path, name=name, writable=writable))
                for name, path in self.sources.items()
            ]
            if seed is not None:
                for disk in opened:
                    stack.enter_context(SteadyWriter(disk, seed, SIZE // 4))
            yield opened

    def start(self, moment: Moment, *, how: signal.Signals = signal.SIGKILL, nbytes: int = 0, **chosen: Any) -> int:
        """Start a sender that sends itself `how` at this moment; of the bulk phase, when so many bytes have passed."""
        if moment == "bulk":
            nbytes = nbytes or 4 * MIB
        return forks.start(lambda: self._send(moment, how, nbytes, chosen))

    def _send(self, moment: Moment, how: signal.Signals, nbytes: int, chosen: Mapping[str, Any]) -> None:
        def end_here(*_args: object) -> None:
            if not has_ended.is_set():
                has_ended.set()
                os.kill(os.getpid(), how)

        def look(event: stats.Event) -> None:
            if moment == "bulk" and isinstance(event, stats.Progressed) and event.transferred >= nbytes:
                end_here()

        has_ended = threading.Event()
        verbs = {"bulk": "begin_end", "END": "begin_end", "COMMIT": "commit", "DONE": "await_done"}
        if moment in verbs:
            verb = getattr(questions.Questions, verbs[moment])
            first = has_ended.set if moment == "bulk" else end_here  # too late for "bulk": it comes to its end
            setattr(questions.Questions, verbs[moment], _preceded(first, verb))
        chosen = {"max_bandwidth": 20 * MIB if moment == "bulk" else 0, "downtime_limit": 5.0, **chosen}
        writable = chosen.pop("writable", True)
        parameters = blkmig.MigrationParameters(**chosen)
        with (
            self.disks(seed=7 if writable else None, writable=writable) as opened,
            blkmig.outgoing(opened, self.uri, parameters, on_progress=look) as migration,
        ):
            if moment == "round":
                while migration.stats.rounds[-1].number < 2:
                    migration.iterate()
                end_here()
            migration.run()

    def kill(self, moment: Moment, **chosen: Any) -> None:
        """Have a sender be killed at this moment, and the receiver wait for it."""
        assert self.is_killed(moment, **chosen), "it was through before"

    def is_killed(self, moment: Moment, **chosen: Any) -> bool:
        """Do the same; return False if it was through before, because it had little to send."""
        pid = self.start(moment, **chosen)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            return False
        assert code == -signal.SIGKILL
        assert self.is_away.wait(END_SECONDS)
        self.is_away.clear()
        return True

    def resume(self, *, seed: int | None = None, **chosen: Any) -> stats.OutgoingStatistics:
        """Send to the receiver that waits, with another process's word."""
        chosen = {"resume": True, "writers_after": "refuse", "downtime_limit": 5.0, **chosen}
        with self.disks(seed=seed) as opened:
            return blkmig.send(opened, self.uri, **chosen)

    def elsewhere(self) -> Case:
        """Return the same disks as another host sees them, on which no lock of this one holds."""
        other = copy.copy(self)
        other.sources = {}
        for name, path in self.sources.items():
            other.sources[name] = path.parent / "elsewhere" / path.name
            other.sources[name].parent.mkdir(exist_ok=True)
            shutil.copy(path, other.sources[name])
        shutil.copy(self.key_file(), other.key_file())
        return other

    def source_contents(self) -> list[bytes]:
        """Return what the disks hold."""
        return [path.read_bytes() for path in self.sources.values()]

    def target_contents(self) -> list[bytes]:
        """Return what has come of them."""
        return [path.read_bytes() for path in self.targets.values()]

    def check_contents(self, what: str = "") -> None:
        """Raise unless all disks are equal."""
        for name, target in self.targets.items():
            assert target.read_bytes() == self.sources[name].read_bytes(), f"{name} {what}"

    def check_equal(self, what: str = "") -> None:
        """Raise unless all disks are equal, and nothing else is left."""
        self.check_contents(what)
        folder = next(iter(self.targets.values())).parent
        assert {path.name for path in folder.iterdir()} == {path.name for path in self.targets.values()}, what
        assert not [path.name for path in folder.parent.iterdir() if path.name.startswith(".")], what


def _preceded(first: Callable[..., None], verb: Callable[..., Any]) -> Callable[..., Any]:
    def both(*args: Any, **options: Any) -> Any:
        first()
        return verb(*args, **options)

    return both
