# SPDX-License-Identifier: GPL-2.0-or-later
"""Payloads travel compressed where both ends can, and the disk that arrives is the one that was sent."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import cutter
import lab
import peers
import pytest
import section_reader
import tee
import tls
import tls_links
from lossy import Lossy, many_barriers

import blkmig
from blkmig import cli, errors, savevm, stats, zstd
from blkmig.block import effort, extras
from blkmig.channel import link, sending
from blkmig.savevm import words

MIB = lab.MIB
ZSTD = struct.pack(">QI", extras.ExtraKind.ZSTD << 9 | 0x100, 4)
CHECKS = struct.pack(">QI", extras.ExtraKind.CHECKS << 9 | 0x100, 8)
__all__ = ["many_barriers"]


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every link leads to another machine."""
    monkeypatch.setattr(link, "is_local", lambda sock: False)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have auto compress from the first payload on, before it is seen what the link takes."""
    monkeypatch.setattr(effort.Effort, "wants", lambda self, nbytes, **others: True)


def text(rng: random.Random, nbytes: int) -> bytes:
    return rng.randbytes(nbytes // 2 + 1).hex().encode()[:nbytes]


def mixed(rng: random.Random, size: int) -> bytes:
    """Return a disk of blocks of text, of random bytes, of zeros, and of some of each."""
    image = bytearray(size)
    for start in range(0, size, MIB // 2):
        nbytes = min(MIB // 2, size - start)
        kind = rng.randrange(4)
        if kind == 0:
            image[start : start + nbytes] = text(rng, nbytes)
        elif kind == 1:
            image[start : start + nbytes] = rng.randbytes(nbytes)
        elif kind == 2:
            image[start : start + nbytes] = (b"%d " % rng.randrange(100) * nbytes)[:nbytes]
    return bytes(image)


def write_text(disk: blkmig.MemoryBackend, rng: random.Random) -> None:
    nbytes = min(rng.choice((1, 512, 4096, 70_000, MIB)), disk.size)
    data = text(rng, nbytes) if rng.random() < 0.7 else rng.randbytes(nbytes)
    disk.pwrite(data, rng.randrange(disk.size - nbytes + 1))


def said(recorded: tee.Tee) -> bytes:
    recorded.join()
    return bytes(recorded.data)


def check_both(sent: stats.OutgoingStatistics, came: stats.IncomingStatistics) -> None:
    assert sent.saved_by_compression == sum(disk.saved_by_compression for disk in came.disks.values())


@pytest.mark.parametrize("chosen", [{}, {"reading": "parallel"}, {"zero_blocks": False}, {"max_buffers": 1}], ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_walks_with_writers(tmp_path: Path, seed: int, chosen: dict[str, Any]) -> None:
    """Whatever is written meanwhile, the target is the source, and a reader of the page alone finds the same."""
    rng = random.Random(seed)
    sizes = [rng.choice((512, 4096, MIB, 3 * MIB + 1536, 5 * MIB - 100)) for _ in range(rng.choice((1, 2)))]
    disks = [blkmig.MemoryBackend(bytearray(mixed(rng, size)), name=f"d{i}") for i, size in enumerate(sizes)]
    targets = {disk.name: tmp_path / f"{disk.name}.raw" for disk in disks}
    receiver = lab.Receiver(f"unix:{tmp_path}/s", targets)
    recorded = tee.Tee(tmp_path, f"{tmp_path}/s")
    parameters = blkmig.MigrationParameters(compress="zstd", switchover="manual", reconnect=0, **chosen)
    with blkmig.outgoing(disks, recorded.uri, parameters) as migration:
        for _ in range(6):
            migration.iterate()
            for _ in range(rng.randrange(30)):
                write_text(rng.choice(disks), rng)
        migration.complete()
    came = receiver.result()
    for disk in disks:
        assert targets[disk.name].read_bytes() == disk.pread(0, disk.size), f"seed {seed}"
    check_both(migration.stats, came)
    assert sum(sizes) < MIB or migration.stats.saved_by_compression > 0
    stream = section_reader.SectionReader(said(recorded)).read()
    stream.check_description()
    assert stream.saved == migration.stats.saved_by_compression
    for disk in disks:
        assert stream.disks[disk.name].image == disk.pread(0, disk.size), f"seed {seed}"


def text_disk(nbytes: int = 6 * MIB + 1536) -> blkmig.MemoryBackend:
    return blkmig.MemoryBackend(
        bytearray(random.Random(1).randbytes(nbytes // 2 + 1).hex().encode()[:nbytes]), name="d"
    )


def sent_to(tmp_path: Path, **chosen: Any) -> tuple[bytes, stats.OutgoingStatistics]:
    """Return what a migration of a disk of text has put on the wire; a disk that differs is an error."""
    disk, target = text_disk(), tmp_path / "t.raw"
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": target}, verify=chosen.get("digests", False))
    recorded = tee.Tee(tmp_path, f"{tmp_path}/s")
    with blkmig.outgoing([disk], recorded.uri, blkmig.MigrationParameters(**chosen)) as migration:
        migration.run()
    check_both(migration.stats, receiver.result())
    assert target.read_bytes() == disk.pread(0, disk.size)
    return said(recorded), migration.stats


def test_a_link_within_the_machine_is_left_alone(tmp_path: Path) -> None:
    """With auto nothing is looked at, hashed or compressed there."""
    data, sent = sent_to(tmp_path)
    assert ZSTD not in data
    assert sent.saved_by_compression == 0


@pytest.mark.usefixtures("far", "eager")
@pytest.mark.parametrize("chosen", [{}, {"compress": "zstd"}, {"digests": True}, {"granularity": MIB}], ids=str)
def test_a_link_that_leaves_the_machine(tmp_path: Path, chosen: dict[str, Any]) -> None:
    data, sent = sent_to(tmp_path, **chosen)
    assert len(data) < 4 * MIB
    assert sent.saved_by_compression > 2 * MIB
    assert data.index(CHECKS) < data.index(ZSTD), "a frame has a checksum, as any payload"
    # The last two blocks overlap, so their proof, 32 bytes for each 4 KiB, comes behind the end.
    proof = 512 * 32 if "digests" in chosen else 0
    assert proof <= len(data) - sent.transferred < proof + 500, "nothing but the end of a proof comes on top"


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("chosen", [{"compress": "off"}, {"format": "block"}], ids=str)
def test_what_nobody_wants_is_not_done(tmp_path: Path, chosen: dict[str, Any]) -> None:
    data, _ = sent_to(tmp_path, **chosen)
    assert ZSTD not in data
    assert len(data) > 6 * MIB


@pytest.mark.usefixtures("far")
def test_a_target_that_is_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the ability in HELLO nothing is compressed; who has asked for it by name hears why it cannot be."""
    monkeypatch.setattr(words, "OURS", words.OURS & ~savevm.Ability.ZSTD)
    monkeypatch.setattr(savevm, "OURS", words.OURS)
    data, _ = sent_to(tmp_path)
    assert ZSTD not in data
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "u.raw"})
    with pytest.raises(errors.ParameterError, match=r"the target cannot decompress.*leave --compress to 'auto'"):
        blkmig.send([text_disk()], receiver.uri, compress="zstd")
    with pytest.raises(errors.MigrationError):
        receiver.result()
    assert not (tmp_path / "u.raw").exists()


def test_a_target_that_takes_block_alone(tmp_path: Path) -> None:
    with pytest.raises(errors.ParameterError, match="nothing of the section 'block' is compressed"):
        blkmig.MigrationParameters(compress="zstd", format="block")
    with pytest.raises(errors.ParameterError, match="nothing of the section 'block' is compressed"):
        blkmig.MigrationParameters(compress="zstd", qemu=True)
    with pytest.raises(errors.ParameterError, match="section 'block' is compressed: say --format=blkmig"):
        blkmig.send([text_disk()], f"file:{tmp_path}/f", compress="zstd")


def test_without_the_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zstd, "is_available", lambda: False)
    with pytest.raises(errors.ParameterError, match=r"pip install 'blkmig\[zstd\]'"):
        blkmig.MigrationParameters(compress="zstd")
    (tmp_path / "d.raw").write_bytes(b"x" * MIB)
    assert cli.main(["send", f"{tmp_path}/d.raw", f"file:{tmp_path}/f", "--compress=zstd"]) == 2
    assert "pip install 'blkmig[zstd]'" in capfd.readouterr().err


# -- files -----------------------------------------------------------------------------------------------------------


def recorded_file(tmp_path: Path, disk: blkmig.MemoryBackend, **chosen: Any) -> bytes:
    return lab.record(tmp_path, [disk], format="blkmig", compress="zstd", **chosen)


@pytest.mark.parametrize("seed", range(4))
def test_a_file(tmp_path: Path, seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    """It is received, inspected, and read by somebody who knows the page alone."""
    rng = random.Random(seed)
    disk = blkmig.MemoryBackend(bytearray(mixed(rng, rng.choice((4096, MIB, 5 * MIB + 1536)))), name="d")
    data = recorded_file(tmp_path, disk, digests=bool(seed % 2))
    stream = section_reader.SectionReader(data).read()
    stream.check_description()
    assert stream.disks["d"].image == disk.pread(0, disk.size), f"seed {seed}"
    assert cli.main(["inspect", f"{tmp_path}/recorded", "--records"]) == 0
    out = capfd.readouterr().out
    assert "\ncomplete: " in out
    assert ("compressed" in out) == bool(stream.frames)
    came = blkmig.receive(f"file:{tmp_path}/recorded", {"d": tmp_path / "t.raw"}, verify=bool(seed % 2))
    assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, disk.size), f"seed {seed}"
    assert came.disks["d"].saved_by_compression == stream.saved


def test_a_file_of_zeros_and_noise_is_no_larger(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(random.Random(5).randbytes(3 * MIB) + bytes(2 * MIB)), name="d")
    assert len(recorded_file(tmp_path, disk)) < 3 * MIB + 8192


def test_a_file_for_whom_the_library_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded_file(tmp_path, text_disk())
    monkeypatch.setattr(zstd, "LIBRARY", "no_such_library")
    with pytest.raises(errors.UnsupportedStream, match=r"is compressed, and .* pip install 'blkmig\[zstd\]'"):
        blkmig.receive(f"file:{tmp_path}/recorded", {"d": tmp_path / "t.raw"})
    assert not (tmp_path / "t.raw").exists()
    assert cli.main(["inspect", f"{tmp_path}/recorded"]) == 0, "what is in it needs no library"


# -- links that are lost ---------------------------------------------------------------------------------------------


class LossyText(Lossy):
    """Disks of text, that is."""

    @staticmethod
    def made(rng: random.Random, nbytes: int) -> bytes:
        return text(rng, nbytes)


@pytest.mark.usefixtures("many_barriers", "far", "eager")
@pytest.mark.parametrize("compress", ["zstd", "auto"])
@pytest.mark.parametrize("seed", range(4))
def test_a_lost_link_comes_back(tmp_path: Path, seed: int, compress: str) -> None:
    """Blocks in flight, in the middle of being compressed, and on the wire are all sent again."""
    rng = random.Random(seed)
    sizes = rng.choice(((9 * MIB + 1536,), (3 * MIB, 512, 6 * MIB + 1000)))
    cuts: list[tuple[int, cutter.How]] = [
        (rng.randrange(sum(sizes) // 24), rng.choice(("reset", "end"))) for _ in range(4)
    ]
    run = LossyText(
        tmp_path, seed, cuts, *sizes, compress=compress, reading=rng.choice(("inline", "parallel")), idle_timeout=10.0
    )
    run.run(is_file=bool(seed % 2))
    assert run.outgoing.saved_by_compression > 0


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("compress", ["zstd", "auto"])
def test_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: str) -> None:
    """TLS notices damage by itself, so neither payloads nor frames have checksums; the disk is proven as well."""
    peers.require("openssl")
    monkeypatch.setattr(sending.SendingFile, "is_local", property(lambda self: False))
    trust = tls_links.trusting(tls.make_certificates(tmp_path / "pki", host="localhost"))
    disk, made, compressor = text_disk(), set[bool](), zstd.Compressor

    def make(level: int, *, has_checksum: bool) -> zstd.Compressor:
        made.add(has_checksum)
        return compressor(level, has_checksum=has_checksum)

    monkeypatch.setattr(zstd, "Compressor", make)
    with tls_links.receiving(tmp_path / "t.raw", trust, verify=True) as (uri, outcome):
        sent = blkmig.send([disk], uri, tls=trust, digests=True, compress=compress)
        came = outcome.result(30)
    assert (tmp_path / "t.raw").read_bytes() == disk.pread(0, disk.size)
    assert sent.verified
    assert sent.saved_by_compression > 2 * MIB
    assert isinstance(came, stats.IncomingStatistics)
    check_both(sent, came)
    assert made == {False}
