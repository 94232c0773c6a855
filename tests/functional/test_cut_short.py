# SPDX-License-Identifier: GPL-2.0-or-later
"""A receiver that is cancelled when its source has its word: the disk is there, and nothing it says denies that."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lab
import messages
import pauses
import pytest

import blkmig
from blkmig import errors, testing
from blkmig.migration import readback, safekeeping

MIB = lab.MIB
CONTENT = random.Random(1).randbytes(2 * MIB + 1536)


@pytest.mark.parametrize("is_there", [False, True], ids=["new target", "target that was there"])
@pytest.mark.parametrize("moves", [True, False], ids=["move", "copy"])
@pytest.mark.parametrize("section", ["blkmig", "block"])
def test_a_cancel_behind_the_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, moves: bool, is_there: bool
) -> None:
    target = tmp_path / "t.raw"
    if is_there:
        target.write_bytes(b"o" * len(CONTENT))
    owner, name = (readback.ReadBack, "finish") if section == "blkmig" else (safekeeping, "verify")
    compare = getattr(owner, name)

    def cancelled(*args: Any, **options: Any) -> None:
        receiver.migration.cancel()
        compare(*args, **options)

    monkeypatch.setattr(owner, name, cancelled)
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": target}, verify=True)
    disk = blkmig.MemoryBackend(bytearray(CONTENT), name="d")
    after = "refuse" if moves else "release"

    def send() -> None:
        blkmig.send([disk], receiver.uri, digests=True, writers_after=after, format=section, downtime_limit=30)

    if section == "block":  # which has no word for what a target finds later
        send()
    else:
        with pytest.raises(errors.NotVerified, match="the target has taken everything and is complete"):
            send()
    with pytest.raises(errors.NotVerified, match="is complete here, but it is not verified") as caught:
        receiver.result()
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "incomplete" not in said
    assert "a part of the disk" not in said
    assert "may not know" not in said
    assert caught.value.exit_code == 3
    assert receiver.migration.stats.status == "failed"
    assert target.read_bytes() == CONTENT


def test_a_difference_says_nothing_else_of_the_disk(tmp_path: Path) -> None:
    """The one who is told that they differ must not read that a part is missing, or that the source does not know."""

    class Damaged(blkmig.FileBackend):
        def flush(self) -> None:
            super().flush()
            with target.open("r+b") as file:
                file.write(b"damaged")

    target = tmp_path / "t.raw"
    target.write_bytes(b"o" * len(CONTENT))
    with Damaged(target, name="d") as there:
        receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": there}, verify=True)
        disk = blkmig.MemoryBackend(bytearray(CONTENT), name="d")
        blkmig.send([disk], receiver.uri, digests=True, format="block", downtime_limit=30)
        with pytest.raises(errors.ContentMismatch) as caught:
            receiver.result()
    assert "a part of the disk" not in "\n".join(getattr(caught.value, "__notes__", ()))


@pytest.mark.parametrize("moves", [True, False], ids=["move", "copy"])
def test_a_link_that_is_lost_behind_the_word(tmp_path: Path, moves: bool) -> None:
    """Neither end sounds as if it were to be tried again: the disk is the target's."""
    target, disk = tmp_path / "t.raw", blkmig.MemoryBackend(bytearray(CONTENT), name="d")
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": target}, verify=True, idle_timeout=1)
    after = "refuse" if moves else "release"
    with messages.MessageCutter(receiver.uri, [("DONE", "behind", "silence")]) as relay:
        with pytest.raises(errors.NotVerified, match="the target has taken everything and is complete") as caught:
            blkmig.send(
                *([disk], relay.uri), digests=True, writers_after=after, reconnect=0, idle_timeout=1, downtime_limit=30
            )
        with pytest.raises(errors.NotVerified, match="is complete here, but it is not verified: the link broke"):
            receiver.result()
    assert isinstance(caught.value.__cause__, errors.ChannelError)
    assert target.read_bytes() == CONTENT
    assert pauses.outcome_of_write(disk) == ("refused" if moves else "done")


def test_a_target_that_cannot_be_read_back_behind_the_word_of_the_first_edition(tmp_path: Path) -> None:
    """The source has ended well by then."""
    disk = blkmig.MemoryBackend(bytearray(b"x" * 3 * MIB), name="d")
    target = testing.FaultyDisk(blkmig.MemoryBackend(bytearray(3 * MIB), name="d"))
    target.inject(testing.Fault(verb="read", times=None, error=5))
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": target}, verify=True)
    blkmig.send([disk], receiver.uri, digests=True, format="block")
    with pytest.raises(errors.NotVerified, match="complete here, but it is not verified: disk 'd': cannot read"):
        receiver.result()
