# SPDX-License-Identifier: GPL-2.0-or-later
"""A13: a target that does not hold the source's base is refused before anything is written to it, and both ends say so.

The bases are random, and the targets differ from them in one byte, in places that the stream never covers with a block.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lab
import pytest
import sim

import blkmig
from blkmig import errors
from blkmig.block import bulk, load, save
from blkmig.channel import receiving
from blkmig.migration import basecheck, inspection

MIB = lab.MIB
SIZE = 6 * MIB + 700
ONTO_BASE = {"incremental": True, "verify": True}
SENT = {"shared_base": True, "digests": True}


@pytest.fixture
def base() -> bytes:
    """Data, a hole of two blocks, data, and a last block that starts early."""
    rng = random.Random(5)
    return rng.randbytes(2 * MIB) + bytes(2 * MIB) + rng.randbytes(SIZE - 4 * MIB)


@pytest.fixture
def source(tmp_path: Path, base: bytes) -> Iterator[blkmig.FileBackend]:
    """Yield an overlay whose top layer holds something of block 1."""
    with overlay(tmp_path, "d", base, {MIB + 5000: b"top"}) as backend:
        yield backend


def overlay(folder: Path, name: str, base: bytes, top: dict[int, bytes]) -> blkmig.FileBackend:
    lab.sparse_file(folder / f"{name}.base", base)
    with (folder / f"{name}.top").open("wb") as file:
        file.truncate(len(base))
    backend = blkmig.FileBackend(folder / f"{name}.top", base=folder / f"{name}.base", name=name)
    for offset, data in top.items():
        backend.pwrite(data, offset)
    return backend


def contents(backend: blkmig.FileBackend) -> bytes:
    return backend.pread(0, backend.size)


def changed(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


class Target:
    """A target's file, and what it was before anybody received onto it."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = lab.sparse_file(path, content)
        os.utime(path, ns=(10**18, 10**18))
        self._content = content

    def is_untouched(self) -> bool:
        """Whether it is byte for byte what it was, and nobody has written to it."""
        return self.path.read_bytes() == self._content and self.path.stat().st_mtime_ns == 10**18


@pytest.mark.parametrize("section", ["block", "blkmig"])
@pytest.mark.parametrize("kind", ["tcp", "unix", "pipe", "file"])
@pytest.mark.parametrize("wrong", [3, 3 * MIB, 5 * MIB + 1, SIZE - 1])
def test_a_wrong_base_is_found_before_anything_is_written(
    tmp_path: Path, source: blkmig.FileBackend, base: bytes, wrong: int, kind: str, section: str
) -> None:
    """A13: also where the base has a hole, and in the last byte. The source hears it where there is a way back."""
    target = Target(tmp_path / "t", changed(base, wrong))
    with lab.connection(kind, tmp_path) as (listen_uri, send_uri, sends_first):
        receiver = None if sends_first else lab.Receiver(listen_uri, {"d": target.path}, **ONTO_BASE)
        uri = send_uri or (receiver.uri if receiver else "")
        if kind in ("tcp", "unix"):
            with pytest.raises(errors.WrongBase, match=r"does not hold .*base.*, nothing was written") as told:
                blkmig.send([source], uri, format=section, **SENT)
            assert told.value.exit_code == 3
        else:
            with contextlib.suppress(errors.ChannelError):
                blkmig.send([source], uri, format=section, **SENT)
        receiver = receiver or lab.Receiver(listen_uri, {"d": target.path}, **ONTO_BASE)
        with pytest.raises(errors.WrongBase, match=r"'d'.* does not hold the source's base, nothing was w") as caught:
            receiver.result()
    assert (caught.value.device, caught.value.exit_code) == ("d", 3)
    start, end = (int(word.strip(":")) for word in str(caught.value).split() if word.strip(":").isdigit())
    assert start <= wrong < end <= SIZE
    assert target.is_untouched()


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each run be one block, and each section hash one of them."""
    monkeypatch.setattr(save, "SECTION_SECONDS", -1.0)
    monkeypatch.setattr(bulk, "time", types.SimpleNamespace(monotonic=itertools.count(0, 0.015).__next__))


@pytest.mark.usefixtures("one_by_one")
def test_it_is_said_where(tmp_path: Path) -> None:
    """A13: a run of blocks is as long as what is hashed in a moment."""
    base = random.Random(6).randbytes(8 * MIB)
    target = Target(tmp_path / "t", changed(base, 5 * MIB + 3))
    with overlay(tmp_path, "d", base, {}) as source:
        blkmig.send([source], f"file:{tmp_path}/stream", **SENT)
    with pytest.raises(errors.WrongBase, match=rf"between the offsets {5 * MIB} and {6 * MIB}"):
        blkmig.receive(f"file:{tmp_path}/stream", {"d": target.path}, **ONTO_BASE)


@pytest.mark.parametrize("kind", ["tcp", "pipe", "file"])
@pytest.mark.parametrize(
    "top", [{}, {0: b"x" * SIZE}, {MIB: b"y"}, {SIZE - 1: b"z", 0: b"z"}], ids=["none", "all", "one", "ends"]
)
def test_the_right_base_is_verified_as_ever(tmp_path: Path, base: bytes, kind: str, top: dict[int, bytes]) -> None:
    """A13: disks that are wholly in their base, and disks of which nothing is, are among them."""
    with overlay(tmp_path, "d", base, top) as source:
        (tmp_path / "t").write_bytes(base)
        _, received = lab.migrate(tmp_path, kind, [source], {"d": tmp_path / "t"}, receive=ONTO_BASE, **SENT)
        assert received.disks["d"].verified
        assert (tmp_path / "t").read_bytes() == contents(source)


@pytest.mark.parametrize("wrong", ["a", "b", "c"])
def test_no_disk_is_written_where_one_has_a_wrong_base(tmp_path: Path, base: bytes, wrong: str) -> None:
    """A13: of several disks, the last one, too, is looked at before the first block of the first."""
    disks = [overlay(tmp_path, name, changed(base, 9 + ord(name)), {MIB: b"top"}) for name in "abc"]
    targets = {name: Target(tmp_path / f"t{name}", changed(base, 9 + ord(name) + (name == wrong))) for name in "abc"}
    receiver = lab.Receiver("tcp:127.0.0.1:0", {name: target.path for name, target in targets.items()}, **ONTO_BASE)
    with pytest.raises(errors.WrongBase):
        blkmig.send(disks, receiver.uri, **SENT)
    with pytest.raises(errors.WrongBase, match=repr(wrong)):
        receiver.result()
    assert all(target.is_untouched() for target in targets.values())
    for disk in disks:
        disk.close()


@pytest.mark.parametrize("verify", [True, False])
def test_disks_are_numbered_as_the_source_has_them(tmp_path: Path, base: bytes, verify: bool) -> None:
    """A13: all of them are named before anything is said of their bases; of one all is sent, of another nothing is."""
    bases = [changed(base, number) for number in range(3)]
    tops = [{0: b"x" * SIZE}, {}, {3: b"top"}]
    disks = [overlay(tmp_path, name, *layers) for name, *layers in zip("abc", bases, tops, strict=True)]
    targets = {number: tmp_path / str(number) for number in range(3)}
    for number, path in targets.items():
        path.write_bytes(bases[number])
    blkmig.send(disks, f"file:{tmp_path}/stream", **SENT)
    parameters = blkmig.IncomingParameters(incremental=True, verify=verify)
    with blkmig.IncomingMigration(f"file:{tmp_path}/stream", {}, parameters, by_index=targets) as migration:
        migration.run()
    for number, disk in enumerate(disks):
        assert targets[number].read_bytes() == contents(disk)
        disk.close()


def test_a_target_that_is_larger_keeps_its_tail(tmp_path: Path, source: blkmig.FileBackend, base: bytes) -> None:
    """A13: what lies behind the disk is not the base's, even where the target has nothing but zeros there."""
    blkmig.send([source], f"file:{tmp_path}/stream", **SENT)
    for tail in (b"tail" * 1000, bytes(3 * MIB)):
        lab.sparse_file(tmp_path / "t", base + tail)
        received = blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "t"}, keep_tail=True, **ONTO_BASE)
        assert received.disks["d"].verified
        assert (tmp_path / "t").read_bytes() == contents(source) + tail
        target = Target(tmp_path / "t", changed(base, SIZE - 1) + tail)
        with pytest.raises(errors.WrongBase):
            blkmig.receive(f"file:{tmp_path}/stream", {"d": target.path}, keep_tail=True, **ONTO_BASE)
        assert target.is_untouched()


@pytest.mark.parametrize("size", [SIZE - 1, SIZE - MIB, SIZE + 1])
def test_a_target_of_another_size_is_refused_first(
    tmp_path: Path, source: blkmig.FileBackend, base: bytes, size: int
) -> None:
    """A13: it is untouched, too."""
    target = Target(tmp_path / "t", (base + bytes(MIB))[:size])
    blkmig.send([source], f"file:{tmp_path}/stream", **SENT)
    with pytest.raises(errors.DeviceError, match="nothing was written"):
        blkmig.receive(f"file:{tmp_path}/stream", {"d": target.path}, **ONTO_BASE)
    assert target.is_untouched()


def test_who_does_not_verify_does_not_look(tmp_path: Path, source: blkmig.FileBackend, base: bytes) -> None:
    """A13: without --verify the statements are passed over, as by a receiver that wants the whole of each disk."""
    (tmp_path / "t").write_bytes(changed(base, 3))
    blkmig.send([source], f"file:{tmp_path}/stream", **SENT)
    blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "t"}, incremental=True)
    assert (tmp_path / "t").read_bytes() == changed(contents(source), 3)
    assert inspection.inspect(lab.input_file(tmp_path, (tmp_path / "stream").read_bytes())).verdict == "incremental"
    with pytest.raises(errors.IncompleteMigration, match="--incremental"):
        blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "new"}, verify=True)


def test_a_receiver_that_knows_no_statements_loads_the_stream(
    tmp_path: Path, source: blkmig.FileBackend, base: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A13: to a blkmig that knows sizes, and nothing of bases, the words are the first one once more."""

    def take_marks(self: Any, f: Any, marks: int, position: int) -> None:
        if marks & 2:
            assert (marks >> 2 & 0x3FF, marks >> 12 & 0x3FF) == (1, 0)
            self.is_described, self.described_disks = True, (1, 0)
            self.on_described(1, 0)
        elif not marks & 1:
            self.sizes.take(marks, most=1, position=position)

    blkmig.send([source], f"file:{tmp_path}/stream", **SENT)
    monkeypatch.setattr(load.BlockLoadHandlers, "take_marks", take_marks)
    (tmp_path / "t").write_bytes(base)
    received = blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "t"}, **ONTO_BASE)
    assert received.disks["d"].verified
    (tmp_path / "t").write_bytes(changed(base, 3))
    with pytest.raises(errors.ContentMismatch) as caught:
        blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "t"}, **ONTO_BASE)
    assert type(caught.value) is errors.ContentMismatch, "at the end, as ever"


@pytest.mark.usefixtures("one_by_one")
def test_a_cancel_is_heard_while_bases_are_hashed(tmp_path: Path, base: bytes) -> None:
    """A13: the phase goes by sections, and says nothing that is not so."""
    disk = sim.LayeredDisk(base, base=base)
    migration = blkmig.outgoing([disk], f"file:{tmp_path}/stream", blkmig.MigrationParameters(**SENT))
    disk.step = lambda: migration.cancel() if len(disk.reads) == 2 else None
    with pytest.raises(errors.Cancelled), migration:
        migration.run()
    assert len(disk.reads) == 2
    assert not (tmp_path / "stream").exists()


def test_an_end_that_comes_early_gives_the_phase_up(tmp_path: Path, base: bytes) -> None:
    """A13: whoever completes before all bases are hashed has the rest hashed later, as without that phase."""
    disks = [overlay(tmp_path, name, base, {MIB: b"top"}) for name in "ab"]
    for sections in range(3):
        with blkmig.outgoing(disks, f"file:{tmp_path}/stream", blkmig.MigrationParameters(**SENT)) as migration:
            for _ in range(sections):
                migration.iterate()
            migration.complete()
        for name in "ab":
            (tmp_path / f"t{name}").write_bytes(base)
        targets = {name: tmp_path / f"t{name}" for name in "ab"}
        received = blkmig.receive(f"file:{tmp_path}/stream", targets, **ONTO_BASE)
        assert all(disk.verified for disk in received.disks.values())


def test_the_commands_say_so(tmp_path: Path, source: blkmig.FileBackend, base: bytes) -> None:
    """A13: exit 3 at both ends, and what to do."""
    source.close()
    target = Target(tmp_path / "t", changed(base, 3))
    listening = ("receive", "--progress=none", "--incremental", "--verify", "tcp:127.0.0.1:0", f"d={target.path}")
    words = [sys.executable, "-m", "blkmig"]
    with subprocess.Popen([*words, *listening], stderr=subprocess.PIPE, text=True) as receiver:
        assert receiver.stderr is not None
        uri = receiver.stderr.readline().removeprefix("listening on ").strip()
        disk = f"d={tmp_path}/d.top,base={tmp_path}/d.base"
        sending = [*words, "send", "--progress=none", "--incremental", "--verify", disk, uri]
        sent = subprocess.run(sending, capture_output=True, text=True, timeout=60, check=False)
        told = receiver.stderr.read()
    assert (sent.returncode, receiver.returncode) == (3, 3), (sent.stderr, told)
    for said in (sent.stderr, told):
        assert re.search(r"does not hold .*base.*, nothing was written.* a copy of .*base", said)
    assert target.is_untouched()


def test_a_target_that_takes_its_time_says_so(
    tmp_path: Path, source: blkmig.FileBackend, base: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A13: the source waits for it, and is not told by the signs of life that all is compared."""
    monkeypatch.setattr(basecheck, "heartbeat", types.SimpleNamespace(BEAT_SECONDS=0.0))
    (tmp_path / "t").write_bytes(base)
    _, received = lab.migrate(tmp_path, "tcp", [source], {"d": tmp_path / "t"}, receive=ONTO_BASE, **SENT)
    assert received.disks["d"].verified


def test_each_statement_is_progress(
    tmp_path: Path, source: blkmig.FileBackend, base: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A13: a source that hashes its base for longer than the idle time-out is not idle, whoever receives."""
    monkeypatch.setattr(save, "SECTION_SECONDS", -1.0)
    blkmig.send([source], f"file:{tmp_path}/stream", **SENT)
    came = []
    monkeypatch.setattr(receiving.ReceivingFile, "payload_came", lambda self: came.append(self.position))
    (tmp_path / "t").write_bytes(base)
    blkmig.receive(f"file:{tmp_path}/stream", {"d": tmp_path / "t"}, incremental=True)
    assert came
    assert came == sorted(set(came))


EMPTY_PART = re.compile(b"\2\0\0\0\1(.{8})\x7e\0\0\0\1", re.DOTALL)


def test_statements_that_are_cut_or_come_late(tmp_path: Path, source: blkmig.FileBackend, base: bytes) -> None:
    """A13: a statement without its end or its beginning, and one behind a block, are damage."""
    stream, target = tmp_path / "stream", Target(tmp_path / "t", base)
    blkmig.send([source], f"file:{stream}", **SENT)
    data = stream.read_bytes()
    said = [part for part in EMPTY_PART.finditer(data) if int.from_bytes(part[1], "big") & 0x5FF == 0x402]
    first, end = said[0].start(), data.rindex(b"\3\0\0\0\1")
    words = [part[0] for part in said]
    pieces = itertools.pairwise([first, *(place for part in said for place in part.span()), end])
    rest = b"".join(data[slice(*piece)] for piece in list(pieces)[::2])
    assert len(words) > 5
    for changed_data in (
        b"".join([data[:first], *words[:-1], rest, data[end:]]),
        b"".join([data[:first], *words[1:], rest, data[end:]]),
        b"".join([data[:first], rest, *words, data[end:]]),
    ):
        stream.write_bytes(changed_data)
        is_late = changed_data.index(rest) == first
        with pytest.raises(errors.StreamError, match="bases is damaged"):
            blkmig.receive(f"file:{stream}", {"d": target.path}, **ONTO_BASE)
        assert target.is_untouched() != is_late


def test_a_receiver_that_compares_can_be_cancelled(tmp_path: Path, source: blkmig.FileBackend, base: bytes) -> None:
    """A13: before each block; the target is as it was."""
    blkmig.send([source], f"file:{tmp_path}/stream", **SENT)
    target = sim.LayeredDisk(base)
    with blkmig.IncomingMigration(
        f"file:{tmp_path}/stream", {"d": target}, blkmig.IncomingParameters(**ONTO_BASE)
    ) as migration:
        target.step = migration.cancel
        with pytest.raises(errors.Cancelled):
            migration.run()
    assert len(target.reads) == 1
    assert target.image == base
