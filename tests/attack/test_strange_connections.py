# SPDX-License-Identifier: GPL-2.0-or-later
"""Strangers among the connections of a stream that goes over several."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

import lab
import pytest

import blkmig
from blkmig import channel, savevm, stats
from blkmig.migration import connection, gathering

MIB = lab.MIB


def wrong(bundle: savevm.Bundle) -> list[bytes]:
    """Return what none of the bundle's connections says, though some of it has its id."""
    other = savevm.Bundle(bytes(16), bundle.connections)
    out_of_range = savevm.Bundle(bundle.id, bundle.connections).preface(bundle.connections)
    version = bytearray(bundle.preface(1))
    version[23] = 2
    counted = savevm.Bundle(bundle.id, bundle.connections + 1).preface(1)
    return [other.preface(1), out_of_range, bundle.preface(0), bytes(version), counted,
            b"", b"GET / HTTP/1.0\r\n\r\n" * 3, bundle.preface(1)[:31]]  # fmt: skip


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """Have each connection of a bundle come behind a stranger of each kind."""
    opened: list[socket.socket] = []
    monkeypatch.setattr(gathering, "GATHER_SECONDS", 5.0)

    def open_another(self: connection.Connection, *, timeout: float) -> channel.OutputQEMUFile:
        host, _, port = self.uri.removeprefix("tcp:").rpartition(":")
        for said in kinds:
            sock = socket.create_connection((host, int(port)))
            sock.sendall(said)
            opened.append(sock)
        return original(self, timeout=timeout)

    kinds: list[bytes] = []
    encode = savevm.Bundle.encode

    def note(self: savevm.Bundle) -> bytes:
        kinds[:] = wrong(self)
        return encode(self)

    original = connection.Connection.open_another
    monkeypatch.setattr(savevm.Bundle, "encode", note)
    monkeypatch.setattr(connection.Connection, "open_another", open_another)
    return opened


@pytest.mark.parametrize("reconnect", [None, 0])
def test_strangers_have_no_part(tmp_path: Path, strangers: list[socket.socket], reconnect: float | None) -> None:
    """Those that were sent come in any case, and each stranger is closed at the end."""
    content = random.Random(1).randbytes(3 * MIB)
    result = send(tmp_path, content, reconnect)
    assert (result.connections, result.notes) == (3, [])
    for sock in strangers:
        sock.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        sock.close()
    assert len(strangers) == 16


def send(folder: Path, content: bytes, reconnect: float | None) -> stats.OutgoingStatistics:
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": folder / "t.raw"})
    disk = blkmig.MemoryBackend(bytearray(content), name="d")
    chosen = blkmig.MigrationParameters(connections=3, reconnect=reconnect)
    with blkmig.outgoing([disk], receiver.uri, chosen) as migration:
        migration.run()
    receiver.result()
    assert (folder / "t.raw").read_bytes() == content
    return migration.stats


@pytest.mark.parametrize("reconnect", [None, 0])
def test_an_index_that_comes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reconnect: float | None) -> None:
    """The second one is closed, and what was asked for is not there: the stream stays where it is."""
    monkeypatch.setattr(gathering, "GATHER_SECONDS", 0.3)
    preface = savevm.Bundle.preface
    monkeypatch.setattr(savevm.Bundle, "preface", lambda self, index: preface(self, 1))
    content = random.Random(2).randbytes(2 * MIB)
    result = send(tmp_path, content, reconnect)
    assert result.connections == 1
    assert result.notes == ["the stream goes over one connection, not 3: the target has not taken them all in time"]


@pytest.mark.parametrize("data", [b"", bytes(17), bytes(16) + b"\0\1", bytes(16) + b"\0\x11", bytes(19)])
def test_a_bundle_that_no_blkmig_asks_for(data: bytes, tmp_path: Path) -> None:
    """Its length and its count are checked before anything else."""
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    with channel.connect(receiver.uri, timeout=30) as f:
        state = savevm.SaveState()
        state.state_header(f)
        state.send_command(f, savevm.MIG_CMD_BUNDLE, data)
    with pytest.raises(blkmig.errors.StreamError, match="BUNDLE"):
        receiver.result()


def test_a_bundle_before_the_disks(tmp_path: Path) -> None:
    receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"})
    with channel.connect(receiver.uri, timeout=30) as f:
        state = savevm.SaveState()
        state.state_header(f)
        state.send_command(f, savevm.MIG_CMD_BUNDLE, savevm.Bundle(bytes(16), 4).encode())
    with pytest.raises(blkmig.errors.StreamError, match="before the disks are known"):
        receiver.result()
