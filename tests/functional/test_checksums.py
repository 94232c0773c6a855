# SPDX-License-Identifier: GPL-2.0-or-later
"""Payloads have checksums on a link that leaves this machine, and one that was damaged is not stored."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import lab
import pytest
from faulty import is_free
from pauses import disk_of

import blkmig
from blkmig import errors
from blkmig.block import checksums, extras
from blkmig.channel import link
from blkmig.savevm import words

MIB = lab.MIB
CHECKS = struct.pack(">QI", extras.ExtraKind.CHECKS << 9 | 0x100, 8)


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every link leads to another machine."""
    monkeypatch.setattr(link, "is_local", lambda sock: False)


class Proxy:
    """Passes a stream on to the receiver at `uri`, with one bit of its byte `flip` turned over; keeps what came."""

    def __init__(self, folder: Path, uri: str, *, flip: int = -1) -> None:
        self.uri = f"unix:{folder}/proxy"
        self.came = bytearray()
        self._target, self._flip = uri.removeprefix("unix:"), flip
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(f"{folder}/proxy")
        self._server.listen(1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with self._server, self._server.accept()[0] as source, socket.socket(socket.AF_UNIX) as target:
            target.connect(self._target)
            back = threading.Thread(target=self._pass_back, args=(target, source), daemon=True)
            back.start()
            with contextlib.suppress(OSError):
                while piece := bytearray(source.recv(1 << 20)):
                    at = self._flip - len(self.came)
                    self.came += piece
                    if 0 <= at < len(piece):
                        piece[at] ^= 0x10
                    target.sendall(piece)
                target.shutdown(socket.SHUT_WR)
            back.join(30)

    def _pass_back(self, target: socket.socket, source: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := target.recv(4096):
                source.sendall(piece)
            source.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def proxied(
    folder: Path, disks: dict[str, blkmig.MemoryBackend], *, flip: int = -1
) -> Iterator[tuple[Proxy, lab.Receiver]]:
    receiver = lab.Receiver(f"unix:{folder}/s", disks)
    proxy = Proxy(folder, receiver.uri, flip=flip)
    yield proxy, receiver
    proxy.join()


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("reading", ["inline", "parallel"])
def test_what_is_sent_under_writers_arrives(tmp_path: Path, kind: str, reading: str) -> None:
    rng = random.Random(7)
    (tmp_path / "s.raw").write_bytes(rng.randbytes(6 * MIB + 1536))
    disk = blkmig.FileBackend(tmp_path / "s.raw", name="d")

    def drive(migration: blkmig.OutgoingMigration) -> None:
        for _ in range(6):
            migration.iterate()
            for _ in range(20):
                disk.pwrite(rng.randbytes(512), rng.randrange(12_000) * 512)
            disk.pwrite(rng.randbytes(MIB), rng.randrange(5) * MIB)
        migration.complete()

    sent, came = lab.migrate(tmp_path, kind, [disk], {"d": tmp_path / "t.raw"}, drive=drive, reading=reading)
    assert sent.packs > 0
    assert came.disks["d"].resent_blocks
    assert (tmp_path / "t.raw").read_bytes() == (tmp_path / "s.raw").read_bytes()
    disk.close()


@pytest.mark.usefixtures("far")
def test_each_payload_has_one_and_zeros_have_none(tmp_path: Path) -> None:
    disk = blkmig.MemoryBackend(bytearray(b"x" * 2 * MIB + bytes(3 * MIB)), name="d")
    target = blkmig.MemoryBackend(bytearray(5 * MIB), name="t")
    with proxied(tmp_path, {"d": target}) as (proxy, receiver):
        blkmig.send([disk], proxy.uri, compress="off")
        receiver.result()
    assert proxy.came.count(CHECKS) == 2
    at = proxy.came.index(CHECKS) + len(CHECKS)
    assert int.from_bytes(proxy.came[at : at + 8], "big") == checksums.of(b"x" * MIB, 0)


@pytest.mark.usefixtures("far")
def test_a_bit_that_turns_over_on_the_way(tmp_path: Path) -> None:
    disk, target = disk_of(4), blkmig.MemoryBackend(bytearray(4 * MIB), name="t")
    with proxied(tmp_path, {"d": target}, flip=MIB * 3 // 2) as (proxy, receiver):
        with pytest.raises(errors.DamagedOnTheWay, match=r"the target .*: what came is not what was sent") as sent:
            blkmig.send([disk], proxy.uri, compress="off")
        with pytest.raises(errors.DamagedOnTheWay) as came:
            receiver.result()
    assert (came.value.device, came.value.offset, came.value.exit_code) == ("d", MIB, 5)
    assert (sent.value.device, sent.value.offset, sent.value.exit_code) == ("d", MIB, 5)
    assert target.pread(0, 4 * MIB) == b"x" * MIB + bytes(3 * MIB), "what was damaged is not stored"
    assert is_free(disk)


@pytest.mark.parametrize("is_known", [True, False])
def test_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool) -> None:
    """Within a machine, and where one end has nothing to compute them with."""
    if not is_known:
        monkeypatch.setattr(words, "OURS", words.Ability(0))
        monkeypatch.setattr(link, "is_local", lambda sock: False)
    with proxied(tmp_path, {"d": blkmig.MemoryBackend(bytearray(3 * MIB), name="t")}) as (proxy, receiver):
        sent = blkmig.send([disk_of(3)], proxy.uri)
        receiver.result()
    assert sent.format == "blkmig"
    assert CHECKS not in proxy.came


def test_the_function_is_xxh3() -> None:
    assert checksums.of(b"", 0) == 0x2D06800538D394C2
    assert checksums.record(b"", 0) == CHECKS + bytes.fromhex("2d06800538d394c2")
    assert checksums.of(b"x", 0) != checksums.of(b"x", 2048), "the place counts"


def test_what_a_receiver_expects() -> None:
    expected = checksums.Expected()
    with pytest.raises(errors.StreamError, match="CHECKS"):
        expected.take(b"short", 5)
    expected.take(checksums.BODY.pack(checksums.of(b"abc", 9)), 5)
    with pytest.raises(errors.StreamError, match="CHECKS"):
        expected.take(bytes(8), 6)
    about = {"uri": "tcp:a:1", "device": "d", "offset": 9 * 512}
    expected.check(b"abc", 9, **about)  # type: ignore[arg-type]
    with pytest.raises(errors.DamagedOnTheWay, match="disk 'd' was at offset 4608"):
        expected.check(b"abc", 9, **about)  # type: ignore[arg-type]  # it came without one
