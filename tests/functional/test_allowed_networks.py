# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may connect to a receiver, by address, and what one that anybody can reach does not answer."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import command
import lab
import pytest

import blkmig
from blkmig import errors, stats

MIB = 1 << 20


def send(uri: str, content: bytes, **chosen: object) -> stats.OutgoingStatistics:
    disk = blkmig.MemoryBackend(bytearray(content), name="d")
    parameters = blkmig.MigrationParameters(**chosen)  # type: ignore[arg-type]
    with blkmig.outgoing([disk], uri, parameters) as migration:
        migration.run()
    return migration.stats


def to_loopback(uri: str) -> str:
    """Return where a receiver that listens at all addresses is reached on this machine."""
    return f"tcp:127.0.0.1:{uri.rpartition(':')[2]}"


@pytest.mark.parametrize("uri", ["tcp:127.0.0.1:0", "tcp::0"])
@pytest.mark.parametrize("allow", [["127.0.0.0/8"], ["192.0.2.0/24", "127.0.0.1"], ["::ffff:127.0.0.0/104"]], ids=str)
def test_who_is_allowed(tmp_path: Path, uri: str, allow: list[str]) -> None:
    receiver = lab.Receiver(uri, {"d": tmp_path / "t.raw"}, allow=allow)
    assert not receiver.migration.is_exposed
    send(to_loopback(receiver.uri), b"x" * MIB)
    receiver.result()


def test_who_is_not(tmp_path: Path) -> None:
    """It is closed before it has said anything, and the receiver goes on waiting."""
    parameters = blkmig.IncomingParameters(allow=["192.0.2.0/24"], accept_timeout=0.5)
    with blkmig.incoming("tcp:127.0.0.1:0", {"d": tmp_path / "t.raw"}, parameters) as incoming:
        host, _, port = incoming.uri.removeprefix("tcp:").rpartition(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.settimeout(30)
            with pytest.raises(errors.ChannelTimeout, match="nobody connected"):
                incoming.run()
            assert sock.recv(1) == b""


@pytest.mark.parametrize("uri", ["unix:{}/s", "file:{}/stream", "exec:cat {}/stream"])
def test_where_there_are_no_addresses(tmp_path: Path, uri: str) -> None:
    parameters = blkmig.IncomingParameters(allow=["192.0.2.0/24"])
    with pytest.raises(errors.ParameterError, match="is not reached by a network"):
        blkmig.incoming(uri.format(tmp_path), {"d": tmp_path / "t.raw"}, parameters).__enter__()


def test_what_is_no_network_is_exit_2(tmp_path: Path) -> None:
    outcome = command.run("receive", "--allow", "10.0.0.1/8", "tcp:127.0.0.1:0", f"d={tmp_path}/t.raw")
    assert outcome.exit_code == 2
    assert "'10.0.0.1/8' is no network: behind its prefix an address has zeros only" in outcome.stderr


@pytest.mark.parametrize(
    ("chosen", "compares"),
    [({}, False), ({"insecure": True}, True), ({"allow": ["127.0.0.0/8"]}, True), ({"uri": "tcp:127.0.0.1:0"}, True)],
    ids=str,
)
def test_old_copies_are_not_for_anybody(tmp_path: Path, chosen: dict[str, object], compares: bool) -> None:
    """All of the disk comes, and the receiver says why."""
    content = random.Random(1).randbytes(2 * MIB)
    (tmp_path / "t.raw").write_bytes(content)
    chosen = {"uri": "tcp::0", "in_place": True, **chosen}
    receiver = lab.Receiver(str(chosen.pop("uri")), {"d": tmp_path / "t.raw"}, **chosen)
    result = send(to_loopback(receiver.uri), content)
    came = receiver.result()
    assert (result.same_bytes == 2 * MIB) is compares
    assert (tmp_path / "t.raw").read_bytes() == content
    assert any("anybody could have asked" in note for note in came.notes) is not compares


def test_nothing_is_resumed_for_anybody(tmp_path: Path) -> None:
    receiver = lab.Receiver("tcp::0", {"d": tmp_path / "t.raw"})
    with pytest.raises(errors.ParameterError, match="anybody can reach it"):
        send(to_loopback(receiver.uri), b"x" * MIB, resume=True)
    receiver.migration.cancel()
