# SPDX-License-Identifier: GPL-2.0-or-later
"""Over an old copy, what differs travels compressed, as all else does; what is the same costs no compressing."""

from __future__ import annotations

import contextlib
import random
import struct
from pathlib import Path
from typing import Any

import lab
import pytest
import section_reader
import tapped

import blkmig
from blkmig import errors, stats, zstd
from blkmig.block import effort, extras
from blkmig.channel import link

MIB = lab.MIB
PAGE = 4096
ZSTD = struct.pack(">QI", extras.ExtraKind.ZSTD << 9 | 0x100, 4)


def text(rng: random.Random, nbytes: int) -> bytes:
    return rng.randbytes(nbytes // 2 + 1).hex().encode()[:nbytes]


def mixed(rng: random.Random, nbytes: int) -> bytes:
    """Return text, noise, zeros, or some of each."""
    kinds = [text(rng, nbytes), rng.randbytes(nbytes), bytes(nbytes)]
    at = rng.randrange(nbytes + 1)
    return rng.choice(kinds)[:at] + rng.choice(kinds)[at:]


def disk_of(rng: random.Random, size: int) -> bytes:
    return b"".join(mixed(rng, min(MIB, size - start)) for start in range(0, size, MIB))


def older(rng: random.Random, new: bytes) -> bytes:
    """Return an old copy, of which pages, runs and whole blocks are others, and of which the end may be missing."""
    old = bytearray(new)
    for _ in range(rng.randrange(1, 12)):
        nbytes = min(len(new), rng.choice((1, PAGE, 3 * PAGE, 70_000, 300_000, MIB)))
        at = rng.randrange(len(new) - nbytes + 1)
        old[at : at + nbytes] = rng.choice((text(rng, nbytes), rng.randbytes(nbytes), bytes(nbytes)))
    return bytes(old)


CHOSEN: list[dict[str, Any]] = [
    {"reading": "inline"},
    {"reading": "parallel"},
    {"zero_blocks": False},
    {"max_buffers": 1},
    {"digests": True},
]


@pytest.mark.parametrize("chosen", CHOSEN, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_walks_with_writers(tmp_path: Path, seed: int, chosen: dict[str, Any]) -> None:
    """The target is the source, and a reader of the page alone finds the same in what has passed."""
    rng = random.Random(seed)
    disks: list[blkmig.MemoryBackend] = []
    old: dict[str, bytes] = {}
    for number in range(rng.choice((1, 2))):
        content = disk_of(rng, rng.choice((512, 5000, MIB, 3 * MIB + 1536, 6 * MIB - 512)))
        disks.append(blkmig.MemoryBackend(bytearray(content), name=f"d{number}"))
        old[f"d{number}"] = older(rng, content)
        (tmp_path / f"d{number}").write_bytes(old[f"d{number}"])
    targets = {name: tmp_path / name for name in old}
    receiver = lab.Receiver(f"unix:{tmp_path}/receiver", targets, in_place=True, verify="digests" in chosen)
    tap = tapped.Tap(tmp_path, receiver.uri)
    parameters = blkmig.MigrationParameters(compress="zstd", switchover="manual", **chosen)
    with blkmig.outgoing([*disks], tap.uri, parameters) as migration:
        for _ in range(3):
            migration.iterate()
            for _ in range(rng.randrange(20)):
                disk = rng.choice(disks)
                data = mixed(rng, min(disk.size, rng.choice((1, PAGE, 300_000))))
                disk.pwrite(data, rng.randrange(disk.size - len(data) + 1))
        migration.complete()
    tap.join()
    came = receiver.result()
    for disk in disks:
        assert targets[disk.name].read_bytes() == disk.pread(0, disk.size), f"seed {seed}"
    assert migration.stats.saved_by_compression == sum(each.saved_by_compression for each in came.disks.values())
    stream = section_reader.SectionReader(bytes(tap.stream), old=old, answers=tap.digests()).read()
    stream.check_description()
    assert stream.saved == migration.stats.saved_by_compression
    for disk in disks:
        assert stream.disks[disk.name].image == disk.pread(0, disk.size), f"seed {seed}"


def sent_over(
    tmp_path: Path, new: bytes, old: bytes, **chosen: Any
) -> tuple[tapped.Tap, stats.OutgoingStatistics, stats.IncomingStatistics]:
    target = tmp_path / "t.raw"
    target.write_bytes(old)
    receiver = lab.Receiver(f"unix:{tmp_path}/receiver", {"d": target}, in_place=True)
    tap = tapped.Tap(tmp_path, receiver.uri)
    disk = blkmig.MemoryBackend(bytearray(new), name="d")
    with blkmig.outgoing([disk], tap.uri, blkmig.MigrationParameters(**{"compress": "zstd", **chosen})) as migration:
        migration.run()
    tap.join()
    came = receiver.result()
    assert target.read_bytes() == new
    return tap, migration.stats, came


def differing(count: int, nbytes: int, *, at: int = 0) -> tuple[bytes, bytes]:
    """Return a disk of text, and an old copy of which so many blocks differ in so many bytes from `at` on."""
    rng = random.Random(3)
    new = text(rng, 16 * MIB)
    old = bytearray(new)
    for block in range(count):
        old[block * MIB + at : block * MIB + at + nbytes] = rng.randbytes(nbytes)
    return new, bytes(old)


@pytest.mark.parametrize(("nbytes", "at"), [(MIB, 0), (500_000, 100_000), (PAGE, PAGE)])
def test_what_differs_costs_what_it_is_compressed(tmp_path: Path, nbytes: int, at: int) -> None:
    """Whole blocks, runs of them, and lonely pages."""
    new, old = differing(12, nbytes, at=at)
    plain, sent, _ = sent_over(tmp_path, new, old, compress="off")
    assert ZSTD not in plain.stream
    (tmp_path / "tap").unlink()
    tap, packed, came = sent_over(tmp_path, new, old)
    assert (packed.same_bytes, packed.packs, packed.blocks) == (sent.same_bytes, sent.packs, sent.blocks)
    assert tap.stream.count(ZSTD) == 12
    assert packed.saved_by_compression == came.disks["d"].saved_by_compression > 12 * nbytes // 3
    assert plain.nbytes - tap.nbytes == pytest.approx(packed.saved_by_compression, abs=12 * 100)
    assert packed.transferred < sent.transferred - 12 * nbytes // 3


def test_what_is_the_same_is_not_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a copy that only told that finer digests are to be asked for."""
    new, old = differing(5, PAGE)
    framed: list[int] = []
    frame = zstd.Compressor.frame

    def note(self: zstd.Compressor, data: bytes) -> bytes:
        framed.append(len(data))
        return frame(self, data)

    monkeypatch.setattr(zstd.Compressor, "frame", note)
    _, sent, _ = sent_over(tmp_path, new, old)
    assert sent.packs == 5
    assert framed == [PAGE] * 5


@pytest.mark.parametrize("compress", ["auto", "zstd"])
def test_to_another_machine(tmp_path: Path, compress: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There each frame has a checksum before it; into a new file that begins with the old one."""
    monkeypatch.setattr(link, "is_local", lambda sock: False)
    monkeypatch.setattr(effort.Effort, "wants", lambda self, nbytes, **others: True)
    new, old = differing(4, 300_000, at=5)
    (tmp_path / "old.raw").write_bytes(old)
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "new.raw"}, delta={"d": tmp_path / "old.raw"})
    disk = blkmig.MemoryBackend(bytearray(new), name="d")
    sent = blkmig.send([disk], receiver.uri, compress=compress)
    came = receiver.result()
    assert (tmp_path / "new.raw").read_bytes() == new
    assert sent.same_bytes == came.disks["d"].same_bytes > 14 * MIB
    assert sent.saved_by_compression == came.disks["d"].saved_by_compression > 400_000


def test_what_resumes(tmp_path: Path) -> None:
    new, old = differing(7, MIB)
    target = tmp_path / "t.raw"
    target.write_bytes(old)
    receiver = lab.Receiver(f"unix:{tmp_path}/receiver", {"d": target}, in_place=True)
    disk = blkmig.MemoryBackend(bytearray(new), name="d")
    sent = blkmig.send([disk], receiver.uri, compress="zstd", resume=True)
    receiver.result()
    assert target.read_bytes() == new
    assert sent.same_bytes == 9 * MIB
    assert sent.saved_by_compression > 2 * MIB


# -- somebody changes what passes -------------------------------------------------------------------------------------


class Change:
    """Changes the first frame that passes: bit `bit` of its byte number `at`, or all of it."""

    def __init__(self, at: int, bit: int = 0, frame: bytes | None = None) -> None:
        self._at, self._bit, self._frame = at, bit, frame
        self._held = b""
        self.is_done = False

    def __call__(self, piece: bytes) -> bytes:
        data, self._held = self._held + piece, b""
        start = data.find(ZSTD)
        if self.is_done or start < 0:
            return data
        self.is_done = True
        (nbytes,) = struct.unpack_from(">I", data, start + len(ZSTD))
        first = start + len(ZSTD) + 4 + 10  # behind the head of a block of the disk "d"
        if self._frame is None:
            at = start + self._at
            return data[:at] + bytes([data[at] ^ 1 << self._bit]) + data[at + 1 :]
        rest = self._frame.ljust(nbytes, b"\0")[:nbytes]
        return data[:first] + rest[: len(data) - first] + data[first + len(rest) :]


def attacked(tmp_path: Path, change: Change) -> str:
    """Send over an old copy of which two blocks differ; return what the receiver has raised.

    Whatever was changed, each block of the target is the old one or the new one, and success is the source.
    """
    new = text(random.Random(4), 3 * MIB)
    old = bytes(MIB) + new[MIB : 2 * MIB] + bytes(MIB)
    target = tmp_path / "t.raw"
    target.write_bytes(old)
    receiver = lab.Receiver(f"unix:{tmp_path}/receiver", {"d": target}, in_place=True)
    tap = tapped.Tap(tmp_path, receiver.uri, edit=change)
    disk = blkmig.MemoryBackend(bytearray(new), name="d")
    with contextlib.suppress(errors.MigrationError):
        blkmig.send([disk], tap.uri, compress="zstd", idle_timeout=1.0, reconnect=0)
    tap.join()
    found = ""
    try:
        receiver.result()
    except errors.MigrationError as error:
        found = str(error)
    assert change.is_done
    held = target.read_bytes()
    if not found:
        assert held == new
    return found


HOSTILE = {
    "a bomb": zstd.Compressor(1, has_checksum=False).frame(bytes(1 << 24)),
    "fewer bytes": zstd.Compressor(1, has_checksum=False).frame(b"x" * 1000),
    "noise": random.Random(1).randbytes(100_000),
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_frames(tmp_path: Path, name: str) -> None:
    assert "compressed payload cannot be used" in attacked(tmp_path, Change(0, frame=HOSTILE[name]))
    assert (tmp_path / "t.raw").read_bytes()[:MIB] == bytes(MIB), "nothing was stored"


@pytest.mark.parametrize("at", range(len(ZSTD) + 4 + 10 + 12))
def test_flipped_bits_before_and_in_a_frame(tmp_path: Path, at: int) -> None:
    attacked(tmp_path, Change(at, bit=at % 8))
