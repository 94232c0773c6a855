# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration that was lost goes on with what it has left, and what that holds is compared, never believed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import cutter
import lab
import pytest
from pauses import Call

import blkmig
from blkmig import errors
from blkmig.files import partial

MIB = lab.MIB
SIZE = 24 * MIB + 1536
CONTENT = random.Random(1).randbytes(SIZE)


def hidden(path: Path) -> Path:
    return path.with_name(partial.partial_name(path.name))


def lose(target: Path, disk: blkmig.BlockBackend, *, nbytes: int = 12 * MIB, **options: Any) -> None:
    """Receive a part of a disk, until the link is lost for good."""
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target}, **options)
    with cutter.Cutter(receiver.uri, [(nbytes, "reset")]) as relay:

        def give_up(event: object) -> None:
            if isinstance(event, blkmig.stats.Reconnecting):
                migration.cancel()

        migration = blkmig.outgoing([disk], relay.uri, on_progress=give_up)
        with pytest.raises(errors.Cancelled), migration:
            migration.run()
        receiver.join()
    with pytest.raises((errors.ChannelError, errors.TruncatedStream)) as caught:
        receiver.result()
    assert "send with --resume" in "".join(caught.value.__notes__)
    assert hidden(target).exists()
    assert not target.exists()


def resume(target: Path, disk: blkmig.BlockBackend, **options: Any) -> blkmig.stats.OutgoingStatistics:
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target}, **options)
    try:
        found = blkmig.send([disk], receiver.uri, resume=True)
    except errors.MigrationError:
        receiver.join()
        raise
    receiver.result()
    return found


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "to").mkdir()
    return tmp_path / "to" / "t.raw"


def memory(content: bytes = CONTENT) -> blkmig.MemoryBackend:
    return blkmig.MemoryBackend(bytearray(content), name="d")


def test_what_has_come_does_not_come_again(target: Path) -> None:
    disk = memory()
    lose(target, disk, nbytes=16 * MIB)
    disk.pwrite(b"written since", 5 * MIB)
    found = resume(target, disk)
    assert target.read_bytes() == disk.pread(0, SIZE)
    assert found.same_bytes > 8 * MIB
    assert found.transferred < SIZE - 8 * MIB
    assert {path.name for path in target.parent.iterdir()} == {"t.raw"}


def test_twice(target: Path) -> None:
    disk = memory()
    lose(target, disk, nbytes=6 * MIB)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target})
    with cutter.Cutter(receiver.uri, [(8 * MIB, "reset")]) as relay, pytest.raises(errors.ChannelError):
        blkmig.send([disk], relay.uri, resume=True, reconnect=0)
    with pytest.raises((errors.ChannelError, errors.TruncatedStream)):
        receiver.result()
    found = resume(target, disk)
    assert target.read_bytes() == CONTENT
    assert found.same_bytes > 8 * MIB


@pytest.mark.parametrize("how", ["reset", "silence"])
def test_the_link_of_one_that_resumes_comes_back(target: Path, how: cutter.How) -> None:
    disk = memory()
    lose(target, disk, nbytes=6 * MIB)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target})
    cuts: list[tuple[int, cutter.How]] = [(700, how), (-100, how), (5 * MIB, how), (300, how)]
    with cutter.Cutter(receiver.uri, cuts) as relay:
        found = blkmig.send([disk], relay.uri, resume=True, idle_timeout=1)
        received = receiver.result()  # before the relay resets what is still on its way
    assert (found.reconnects, received.reconnects) == (4, 4)
    assert target.read_bytes() == CONTENT
    assert found.same_bytes > 3 * MIB
    assert {path.name for path in target.parent.iterdir()} == {"t.raw"}


@pytest.mark.parametrize("seed", range(4))
def test_what_was_changed_in_between_is_found(target: Path, seed: int) -> None:
    disk, rng = memory(), random.Random(seed)
    lose(target, disk)
    with hidden(target).open("r+b") as file:
        for _ in range(20):
            file.seek(rng.randrange(SIZE))
            file.write(rng.randbytes(rng.choice((1, 512, 70_000))))
        file.truncate(rng.choice((MIB, SIZE, SIZE + 5 * MIB, 0)))
    resume(target, disk)
    assert target.read_bytes() == CONTENT, f"seed {seed}"


def test_without_resume_it_begins_anew(target: Path) -> None:
    disk = memory(bytes(SIZE))
    lose(target, memory())
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target})
    found = blkmig.send([disk], receiver.uri)
    receiver.result()
    assert target.read_bytes() == bytes(SIZE)
    assert found.same_bytes == 0
    assert {path.name for path in target.parent.iterdir()} == {"t.raw"}


def test_a_receiver_that_nobody_comes_to_leaves_it(target: Path) -> None:
    disk = memory()
    lose(target, disk)
    with blkmig.IncomingMigration("tcp:127.0.0.1:0", {"d": target}) as receiver:
        receiver.cancel()
        with pytest.raises(errors.Cancelled):
            receiver.run()
    assert resume(target, disk).same_bytes > 8 * MIB
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("case", ["gone", "another file", "another size", "no session file", "links", "readable"])
def test_what_is_not_certainly_the_same_is_refused(target: Path, case: str) -> None:
    disk = memory()
    lose(target, disk)
    left = hidden(target)
    if case == "gone":
        left.unlink()
    elif case == "another file":
        left.rename(target.parent / "kept")
        left.write_bytes(b"x" * MIB)
        left.chmod(0o600)
    elif case == "another size":
        disk = memory(CONTENT + bytes(512))
    elif case == "no session file":
        (target.parent / ".t.raw.blkmig").unlink()
    elif case == "links":
        (target.parent / "other").hardlink_to(left)
    elif case == "readable":
        left.chmod(0o644)
    with pytest.raises(errors.TargetFailed, match="cannot resume "):
        resume(target, disk)
    disk.pwrite(b"in use", 0)
    assert not target.exists()


def test_an_existing_target_is_compared(target: Path) -> None:
    """Whatever it holds: it has its name, and its size is that of the disk."""
    target.write_bytes(CONTENT[: 16 * MIB] + bytes(SIZE - 16 * MIB))
    found = resume(target, memory())
    assert found.same_bytes >= 15 * MIB
    assert target.read_bytes() == CONTENT


def test_who_cannot_compare_is_not_resumed(target: Path) -> None:
    with (
        blkmig.IncomingMigration("tcp:127.0.0.1:0", {}, blkmig.IncomingParameters(incremental=True), into=target.parent)
        as receiver
    ):
        thread = Call(receiver.run)
        with pytest.raises(errors.ParameterError, match="nothing can be resumed"):
            blkmig.send([memory()], receiver.uri, resume=True)
        with pytest.raises(errors.MigrationError):
            thread.result()
    with pytest.raises(errors.ParameterError, match="nothing can be resumed"):
        blkmig.send([memory()], "exec:cat > /dev/null", resume=True)


@pytest.mark.parametrize(
    "chosen", [{"delta": False}, {"shared_base": True}, {"format": "block"}, {"return_path": False}, {"qemu": True}]
)
def test_what_does_not_go_with_it(chosen: dict[str, Any]) -> None:
    with pytest.raises(errors.ParameterError, match="resume compares"):
        blkmig.MigrationParameters(resume=True, **chosen)


def test_the_second_of_two_senders_is_refused(target: Path) -> None:
    disk = memory()
    lose(target, disk)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target})
    first = blkmig.MigrationParameters(resume=True, switchover="manual")
    with blkmig.outgoing([disk], receiver.uri, first) as migration:
        migration.iterate()
        with pytest.raises(errors.TargetFailed, match="another migration has begun at this receiver"):
            blkmig.send([memory()], receiver.uri, resume=True, connect_timeout=2)
        migration.switchover()
        migration.run()
    receiver.result()
    assert target.read_bytes() == CONTENT
