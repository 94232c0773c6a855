# SPDX-License-Identifier: GPL-2.0-or-later
"""What a sender says of its pause, and of a target that verifies after the hand-over."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import pytest

import blkmig
from blkmig import _core, block, errors, savevm, stats
from blkmig.cli import wording
from blkmig.migration import announcement, loading, taking
from blkmig.savevm import commands

MIB = lab.MIB


class SlowToRead(blkmig.MemoryBackend):
    """A target that is read back only when it is allowed to."""

    def __init__(self) -> None:
        super().__init__(bytearray(4 * MIB), name="d")
        self.may_read = threading.Event()

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        assert self.may_read.wait(30)
        return super().read_block(blk, offset, nbytes)


class Held(blkmig.MemoryBackend):
    """A source that lets its target be read back when its writers are let go."""

    def __init__(self, target: SlowToRead) -> None:
        super().__init__(bytearray(b"x" * 4 * MIB), name="d")
        self.target = target

    def release_writers(self, *, refuse: bool = False) -> None:
        assert not self.target.may_read.is_set()
        super().release_writers(refuse=refuse)
        self.target.may_read.set()


@pytest.mark.parametrize("format", ["block", "blkmig"])
@pytest.mark.parametrize("writers_after", ["release", "refuse"])
def test_the_pause_ends_before_the_target_reads_anything_back(
    tmp_path: Path, writers_after: str, format: str
) -> None:
    """B2: the hand-over comes first; what grows with the disk is done when the writers have been let go."""
    target = SlowToRead()
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": target}, verify=True)
    sent = blkmig.send([Held(target)], receiver.uri, writers_after=writers_after, digests=True, format=format)
    assert sent.status == "completed"
    assert sent.verified == (format == "blkmig")
    assert receiver.result().disks["d"].verified


class SlowToFlush(blkmig.MemoryBackend):
    """A target under whose first flush its source is written."""

    def __init__(self, source: blkmig.MemoryBackend) -> None:
        self.contents = bytearray(4 * MIB)
        super().__init__(self.contents, name="d")
        self.source: blkmig.MemoryBackend | None = source

    def flush(self) -> None:
        super().flush()
        source, self.source = self.source, None
        if source is not None:
            source.pwrite(b"w" * 4096, MIB)


class Ordered(blkmig.MemoryBackend):
    """A source whose pause is looked at."""

    def __init__(self) -> None:
        self.contents = bytearray(b"x" * 4 * MIB)
        super().__init__(self.contents, name="d")
        self.target = SlowToFlush(self)
        self.receiver: lab.Receiver | None = None
        self.said: list[str] = []

    def hold_writers(self) -> None:
        assert self.target.source is None
        super().hold_writers()
        self.said.append("held, nothing left" if self.trackers[0].bits.count() == 0 else "held, and dirty")

    def about_to_move(self) -> bool:
        self.said.append("noted")
        return super().about_to_move()

    def release_writers(self, *, refuse: bool = False) -> None:
        assert self.receiver is not None
        self.receiver.result()  # which is there while the writers are still to be refused
        self.said.append("refused")
        super().release_writers(refuse=refuse)


def test_a_move_keeps_out_of_its_pause_what_does_not_belong_there(tmp_path: Path) -> None:
    """What was written while the target flushed is sent before the pause; the target goes before the writers do."""
    source = Ordered()
    source.receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": source.target})
    assert blkmig.send([source], source.receiver.uri, writers_after="refuse").status == "completed"
    assert source.said == ["noted", "held, nothing left", "refused"]
    assert source.target.contents == source.contents


def test_who_cannot_refuse_the_writers_of_a_move_says_that_it_is_one(tmp_path: Path) -> None:
    """Its note is gone, for the caller is told: so the error has to tell it."""

    class Stuck(blkmig.MemoryBackend):
        def release_writers(self, *, refuse: bool = False) -> None:
            raise OSError(errno.EIO, "stuck")

    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "d.raw"})
    with pytest.raises(errors.DeviceError, match="stuck") as caught:
        blkmig.send([Stuck(bytearray(b"x" * MIB), name="d")], receiver.uri, writers_after="refuse")
    assert caught.value.__notes__[0] == "the target has the disks, which have moved: do not use them here"
    assert receiver.result().status == "completed"


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_receiver_keeps_out_of_the_pause_what_does_not_belong_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_prepared: bool
) -> None:
    """A taken disk has its one name with DONE, on stable storage; that it has no other one is flushed when the source
    has ended. No thread is started."""
    target = tmp_path / "d.raw"
    if is_prepared:
        target.touch()
    happened: list[str] = []

    def note(owner: Any, name: str, what: Callable[[], str]) -> None:
        original = getattr(owner, name)

        def noting(*said: Any) -> Any:
            happened.append(what())
            return original(*said)

        monkeypatch.setattr(owner, name, noting)

    note(taking.Taking, "_take_end", lambda: "END")
    note(taking.Taking, "source_knows", lambda: "the source has ended")
    note(threading.Thread, "start", lambda: "thread")
    note(os, "fsync", lambda: "flush")
    note(os, "fdatasync", lambda: "flush")
    files = (entry.name for entry in tmp_path.iterdir() if entry.is_file())
    note(commands.Commands, "done", lambda: f"DONE of {sorted(files)}")
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": target})
    blkmig.send([blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")], receiver.uri, writers_after="refuse")
    assert receiver.result().status == "completed"
    assert happened[-4:] == ["flush", "DONE of ['.d.raw.blkmig', 'd.raw']", "the source has ended", "flush"]
    assert "thread" not in happened[happened.index("END") :], "to start one takes up to a millisecond"


class Recorded:
    """What the description of a stream says, kept on its way to the loader."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: dict[str, Any] = {}
        read = announcement.read_announcement

        def reading(stream: savevm.LoadedStream, handlers: block.BlockLoadHandlers) -> announcement.Announcement:
            assert stream.vmdescription is not None
            self.said = stream.vmdescription["blkmig"]
            return read(stream, handlers)

        monkeypatch.setattr(announcement, "read_announcement", reading)


@pytest.mark.parametrize("shared_base", [False, True])
@pytest.mark.parametrize(("writers_after", "knows", "is_tree"), [
    ("refuse", True, True),
    ("refuse", False, False),
    ("release", True, False),
])  # fmt: skip
def test_digests_of_a_move_do_not_grow_with_the_disk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writers_after: str,
    knows: bool,
    is_tree: bool,
    shared_base: bool,
) -> None:
    """B2: what a receiver of before can read is sent to one that does not say that it knows better."""
    if not knows:
        load = savevm.LoadVM

        def load_as_before(state: savevm.SaveState, f: Any, **options: Any) -> savevm.LoadVM:
            return load(state, f, observer=options["observer"])

        monkeypatch.setattr(loading, "LoadVM", load_as_before)
    recorded = Recorded(monkeypatch)
    disks = [
        blkmig.MemoryBackend(bytearray(b"x" * 4 * MIB), name="d"),
        blkmig.MemoryBackend(bytearray(b"y" * 700), name="e"),
    ]
    targets = {key: blkmig.MemoryBackend(bytearray(size), name=key) for key, size in (("d", 4 * MIB), ("e", 700))}
    receiver = lab.Receiver(f"unix:{tmp_path}/s", targets, verify=True, incremental=shared_base)
    blkmig.send(
        disks, receiver.uri, writers_after=writers_after, digests=True, shared_base=shared_base, format="block"
    )
    assert all(disk.verified for disk in receiver.result().disks.values())
    keys = {"tree_digest"} if is_tree else {"disk_digest" if shared_base else "digest"}
    for about in recorded.said["disks"]:
        assert {key for key in about if key.endswith("digest")} >= keys
        assert ("tree_digest" in about) == is_tree == ("digest" not in about)
    assert ("tree_digest" in recorded.said) == is_tree == ("digest" not in recorded.said)


def test_a_target_that_differs_is_found_by_its_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(blkmig.MemoryBackend):
        def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
            super().write_block(blk, offset, nbytes)
            if offset == 2 * MIB:
                self.pwrite(b"?", offset)

    recorded = Recorded(monkeypatch)
    disk = blkmig.MemoryBackend(bytearray(b"x" * 4 * MIB), name="d")
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": Forgetful(bytearray(4 * MIB), name="d")}, verify=True)
    blkmig.send([disk], receiver.uri, writers_after="refuse", digests=True, format="block")
    with pytest.raises(errors.ContentMismatch, match="disk 'd'"):
        receiver.result()
    assert "tree_digest" in recorded.said


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"downtime": 0.02}, "20 ms"),
        ({"downtime": 0.4}, "400 ms, which is over the limit of 300 ms"),
        ({"downtime": 0.02, "pauses_given_up": 1, "downtime_given_up": 1.2}, "1.2 s in a pause that was given up"),
        ({"downtime": 0.02, "pauses_given_up": 2, "downtime_given_up": 2.4}, "2.4 s in 2 pauses that were given up"),
    ],
)
def test_a_limit_that_was_not_kept_is_said(figures: dict[str, float], words: str) -> None:
    """E12: and so are pauses that were given up."""
    result = stats.OutgoingStatistics(downtime_limit=0.3, **figures)  # type: ignore[arg-type]
    assert words in wording.describe_downtime(result)
