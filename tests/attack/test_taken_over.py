# SPDX-License-Identifier: GPL-2.0-or-later
"""kill -9 of the sender, again and again and at any moment, under writers, with one receiver that lives: equal.

Each sender that is killed is followed by one that resumes; the last one comes to the end. Between two of them the disks
are written, too, and sometimes a sender of something else comes, or an old one wakes up.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dying
import pytest
import receivers

import blkmig
from blkmig import errors, savevm

LONG_RUNS = 60
MOMENTS: tuple[dying.Moment, ...] = ("bulk", "bulk", "bulk", "round", "END", "COMMIT")


def disturb(case: dying.Case, rng: random.Random) -> None:
    """Have what is none of the session come, and the disks be written."""
    if rng.random() < 0.3:
        with pytest.raises(errors.TargetFailed):
            blkmig.send([blkmig.MemoryBackend(bytearray(512), name="x")], case.uri, resume=rng.random() < 0.5)
    for path in case.sources.values():
        with path.open("r+b") as file:
            file.seek(rng.randrange(dying.SIZE - 4096))
            file.write(rng.randbytes(4096))


def run(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    verifies = rng.random() < 0.3
    case = dying.Case(folder, seed=seed, count=rng.choice((1, 1, 3)), verify=verifies)
    moves = rng.random() < 0.5
    after = "refuse" if moves else "release"
    for number in range(rng.randrange(1, 5)):
        is_first = number == 0
        nbytes = rng.randrange(1 << 20, 11 << 20) if is_first else rng.randrange(100, 100_000)
        # Where a sender that resumes has too little to send to be killed, a copy would go on being written.
        moment = rng.choice(MOMENTS if is_first or moves else MOMENTS[3:])
        chosen = {"writers_after": after, "idle_timeout": 20.0, "digests": verifies}
        if not case.is_killed(moment, nbytes=nbytes, resume=not is_first, **chosen):
            break
        disturb(case, rng)
    else:
        case.resume(seed=seed, writers_after="refuse", digests=verifies)
    case.receiver.result()
    case.check_equal(f"seed {seed}")


def test_killed_again_and_again(tmp_path: Path, is_long: bool) -> None:
    first = random.randrange(1 << 32) if is_long else 11
    for number in range(LONG_RUNS if is_long else 4):
        seed = first + number
        print(f"seed {seed}")
        (folder := tmp_path / str(number)).mkdir()
        run(folder, seed)


def kill_sometime(case: dying.Case, seconds: float, **chosen: Any) -> None:
    """Kill a sender after so many seconds, whatever it is at."""
    pid = case.start("never", max_bandwidth=20 << 20, idle_timeout=20.0, **chosen)
    killer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
    killer.start()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # the number stays its own until it is waited for
    killer.cancel()
    killer.join()
    os.waitpid(pid, 0)


def is_complete(case: dying.Case) -> bool:
    """Return whether the receiver has all; one that has failed is started anew. It may still wait for a source."""
    if not case.receiver.is_over:
        return False
    try:
        case.receiver.result()
    except errors.MigrationError:
        case.receive()
        return False
    return True


def test_killed_at_any_moment(tmp_path: Path, is_long: bool) -> None:
    """From outside: also before there is a session, while the next one is welcomed, and behind COMMIT."""
    first = random.randrange(1 << 32) if is_long else 3
    for number in range(LONG_RUNS if is_long else 2):
        seed = first + number
        print(f"seed {seed}")
        rng = random.Random(seed)
        (folder := tmp_path / str(number)).mkdir()
        case = dying.Case(folder, seed=seed)
        # What the disks held when a process ended: the last one may have handed them over, and the writers of the next
        # one not know that.
        held: list[list[bytes]] = []
        for attempt in range(6):
            resumes = attempt > 0 and case.has_something()
            kill_sometime(case, rng.random() * 1.2, resume=resumes, writers_after="refuse")
            held.append(case.source_contents())
            if is_complete(case):
                break
        finish(case, seed)
        assert case.target_contents() in [*held, case.source_contents()], f"seed {seed}"


def finish(case: dying.Case, seed: int) -> None:
    """Send until all is there."""
    for _ in range(4):
        if is_complete(case):
            return
        try:
            case.resume(resume=case.has_something())
        except errors.MigrationError as error:
            print(f"seed {seed}: {error}")
        case.receiver.join()
    assert is_complete(case), f"seed {seed}: it does not end"


def strange_words(key: bytes, rng: random.Random) -> Iterator[bytes]:
    """Yield how connections begin that a receiver with this session must not take."""
    other = rng.randbytes(16)
    yield savevm.Session(other, 2, 1, 60).resume()
    yield savevm.Session(other, 1, 2, 60).again()
    yield savevm.Session(key, 1, 1, 60).resume()
    yield savevm.Session(key, 0, 1, 60).resume()
    yield savevm.Session(key, 2, 9, 60).again()
    yield savevm.Session(key, 2, 9, 0).again()
    yield savevm.RESUME_MAGIC + key + bytes(12)
    yield savevm.RESUME_MAGIC + rng.randbytes(28)
    yield savevm.QEMU_VM_FILE_MAGIC + rng.randbytes(rng.randrange(4, 60))
    yield b"GET / HTTP/1.0\r\n\r\n"


def test_who_may_not_goes_on_with_nothing(tmp_path: Path) -> None:
    """Again and again, while a sender is at work: that one goes on, and nobody else."""
    rng = random.Random(1)
    case = dying.Case(tmp_path)
    with case.disks() as opened:
        parameters = blkmig.MigrationParameters(switchover="manual", writers_after="refuse")
        with blkmig.outgoing(opened, case.uri, parameters) as migration:
            migration.iterate()
            key = case.key_file().read_bytes().split(b'"key":"')[1][:32]
            for said in [*strange_words(bytes.fromhex(key.decode()), rng)] * 3:
                with contextlib.closing(receivers.connected(case.uri)) as sock:
                    sock.sendall(said)
                    sock.settimeout(20)
                    with contextlib.suppress(ConnectionError):
                        assert not sock.recv(4096).startswith(b"\x80\x0e"), said
                migration.iterate()
            migration.switchover()
            migration.run()
            assert migration.stats.reconnects == 0
    case.receiver.result()
    case.check_equal()
