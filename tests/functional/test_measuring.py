# SPDX-License-Identifier: GPL-2.0-or-later
"""E9: the link is measured with a receiver, which goes on waiting, and nobody else notices that it was asked."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
import threading
from pathlib import Path

import command
import descriptors
import forks
import pytest
from receivers import connected, receiving

import blkmig
from blkmig import channel, migration
from blkmig.channel import listening, measured, measuring, sockets

MIB = 1 << 20
TIMEOUT = 30


@pytest.fixture(params=["tcp", "tcp6", "any", "unix"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    kinds = {"tcp": "tcp:127.0.0.1:0", "tcp6": "tcp:[::1]:0", "any": "tcp::0", "unix": f"unix:{tmp_path}/s"}
    return kinds[request.param]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.2)
    monkeypatch.setattr(measuring, "ASK_AGAIN_SECONDS", (0.05, 0.05))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "d.raw").write_bytes(random.Random(1).randbytes(2 * MIB))
    return tmp_path / "d.raw"


@pytest.mark.usefixtures("short")
def test_a_receiver_is_measured_and_then_serves_its_migration(uri: str, source: Path, tmp_path: Path) -> None:
    with receiving(uri, tmp_path / "copy.raw") as (where, running):
        for _ in range(2):
            found = channel.measure(where, timeout=TIMEOUT)
            assert found.bandwidth > MIB
            assert found.delay >= 0
        assert not (tmp_path / "copy.raw").exists()
        blkmig.send([source], where)
        assert running.result(TIMEOUT)
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("listening_at", ["tcp:0.0.0.0:0", "tcp::0"])
def test_a_receiver_on_all_addresses_answers_from_the_one_that_was_asked(listening_at: str, tmp_path: Path) -> None:
    """Asked at 127.0.0.2, a socket of no address would answer from 127.0.0.1."""
    with receiving(listening_at, tmp_path / "copy.raw") as (where, _):
        port = where.rpartition(":")[2]
        for address in ("127.0.0.1", "127.0.0.2"):
            assert channel.measure(f"tcp:{address}:{port}", timeout=TIMEOUT).bandwidth > MIB


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_who_may_be_a_qemu_sees_no_connection(scheme: str, tmp_path: Path) -> None:
    """A QEMU with -incoming ends with the first one; an older blkmig knows no questions either."""
    address = f"unix:{tmp_path}/s" if scheme == "unix" else "tcp:127.0.0.1:0"
    with listening.listen(channel.parse_uri(address)) as sock:  # type: ignore[arg-type]
        where = address if scheme == "unix" else f"tcp:127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(channel.NotMeasured, match="no receiver that can be measured answers at"):
            channel.measure(where, timeout=TIMEOUT)
        with pytest.raises(BlockingIOError):
            sock.accept()


@pytest.mark.parametrize("address", ["exec:cat", "fd:0", "file:/dev/null", "-"])
def test_what_has_no_other_end_yet_is_not_measured(address: str) -> None:
    with pytest.raises(channel.NotMeasured, match="cannot be measured beforehand"):
        channel.measure(address, timeout=TIMEOUT)


@pytest.mark.usefixtures("short")
def test_another_user_at_the_abstract_name_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "senders", lambda ancillary: [os.getuid() + 1])
    with (
        receiving(f"unix:{tmp_path}/s", tmp_path / "copy.raw") as (where, _),
        pytest.raises(channel.NotMeasured, match="no receiver that can be measured"),
    ):
        channel.measure(where, timeout=TIMEOUT)


def test_who_measures_for_ever_holds_nobody_up(source: Path, tmp_path: Path) -> None:
    with receiving("tcp:127.0.0.1:0", tmp_path / "copy.raw") as (where, running), connected(where) as flood:
        flood.sendall(measuring.HEADER)

        def push() -> None:
            with contextlib.suppress(OSError):
                while True:
                    flood.sendall(bytes(MIB))

        pushing = threading.Thread(target=push, daemon=True)
        pushing.start()
        assert flood.recv(8), "it is counted"
        with connected(where) as second:
            second.sendall(measuring.HEADER)
            assert second.recv(8) == b"", "one at a time"
        blkmig.send([source], where)
        assert running.result(TIMEOUT)
        pushing.join(TIMEOUT)
        assert not pushing.is_alive(), "the end of the connection tells it"


@pytest.mark.parametrize(("name", "value"), [("COUNTING_SECONDS", 0.05), ("COUNTING_NBYTES", MIB)])
def test_what_is_counted_has_bounds(name: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, name, value)
    with receiving("tcp:127.0.0.1:0", tmp_path / "copy.raw") as (where, _), connected(where) as sock:
        sock.sendall(measuring.HEADER)
        with contextlib.suppress(OSError):
            if name == "COUNTING_NBYTES":
                sock.sendall(bytes(4 * MIB))
            while sock.recv(4096):
                pass


def test_a_forked_child_hears_no_question() -> None:
    """B6: else the next receiver at this port could not be asked while the child lives."""
    before = descriptors.open_descriptors()
    with channel.listen("tcp:127.0.0.1:0"):

        def hears() -> bool:
            return any(map(is_datagram_socket, descriptors.open_descriptors() - before))

        def look() -> None:
            assert not hears()

        assert hears()
        assert forks.in_a_child(look) == ""


def is_datagram_socket(fd: int) -> bool:
    """Return whether a descriptor is one that questions come to."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.type == socket.SOCK_DGRAM


def test_a_question_has_one_answer_as_long_as_itself_and_nothing_else_has_any(tmp_path: Path) -> None:
    with receiving("tcp:127.0.0.1:0", tmp_path / "copy.raw") as (where, _):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", int(where.rpartition(":")[2])))
            sock.settimeout(TIMEOUT)
            for said in (b"", b"x", measuring.ASK, measuring.ASK + bytes(64), bytes(24)):
                sock.send(said)
            question = measuring.ASK + b"n" * measuring.NONCE_NBYTES
            sock.send(question)
            assert sock.recv(1000) == measuring.ANSWER + b"n" * measuring.NONCE_NBYTES
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1000)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("scheme", ["tcp:127.0.0.1:0", "unix:s"])
def test_who_measures_second_is_told_that_somebody_else_may(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with receiving(scheme, tmp_path / "copy.raw") as (where, _), connected(where) as first:
        first.sendall(measuring.HEADER + b"x")
        assert first.recv(8), "it is counted"
        with pytest.raises(channel.NotMeasured, match="somebody else measures, a migration came in"):
            channel.measure(where, timeout=TIMEOUT)


def test_speed_is_that_of_the_steady_part() -> None:
    reports = [(0.1 * number, 1000 * number + 5000 * (number > 1)) for number in range(1, 11)]
    found = measuring.speed_of(0.0, 16_000, reports)
    assert found.bandwidth == pytest.approx(10_000)
    assert found.delay == pytest.approx(0.1)
    for too_little in ([], reports[:2], [(0.1, 0)] * 3):
        with pytest.raises(channel.NotMeasured, match="took too little"):
            measuring.speed_of(0.0, 100, too_little)


# -- strangers: what answers may be anything ---------------------------------------------------------------------------


class Stranger:
    """Answers questions as a receiver does, and says `said` to whoever connects, until that one has gone."""

    def __init__(self, said: bytes, *, again: bool) -> None:
        self._said, self._again = said, again
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._asked.bind(self._listening.getsockname())
        self.uri = f"tcp:127.0.0.1:{self._asked.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return self.uri

    def __exit__(self, *exc_info: object) -> None:
        self._thread.join(TIMEOUT)
        self._asked.close()
        self._listening.close()

    def _run(self) -> None:
        measured.answer(self._asked)
        sock, _ = self._listening.accept()
        with sock, contextlib.suppress(OSError):
            sock.recv(MIB)
            sock.sendall(self._said)
            while self._again:
                sock.sendall(self._said)
            while sock.recv(MIB):
                pass


def _counts(*counts: int) -> bytes:
    return b"".join(map(measuring.REPORT.pack, counts))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", _counts(1, 2, 1 << 60), _counts(8, 7, 8), _counts(8, 16, 0)],
    ids=["text", "more than was sent", "falling", "back to nothing"],
)
def test_a_stranger_is_not_believed(said: bytes) -> None:
    with Stranger(said, again=False) as where, pytest.raises(channel.NotMeasured, match="counts what cannot be"):
        channel.measure(where, timeout=TIMEOUT)


@pytest.mark.usefixtures("short")
def test_a_flood_of_reports_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    speed_of = measuring.speed_of
    monkeypatch.setattr(measuring, "speed_of", lambda *args: kept.extend(args[2]) or speed_of(*args))
    with Stranger(_counts(8) * 4096, again=True) as where:
        channel.measure(where, timeout=TIMEOUT)
    assert len(kept) > 3
    assert all(later[0] - when >= measuring.KEEP_SECONDS for (when, _), later in zip(kept, kept[2:], strict=False))


def test_reports_that_came_near_each_other_tell_no_speed() -> None:
    """Else a receiver that says all at the end would be taken for a link without bounds."""
    found = measuring.speed_of(0.0, 1000, [(0.1, 1), (0.2, 2), (0.9999, 3), (1.0, 1000)])
    assert found.bandwidth == pytest.approx(1000)


# -- the forecast ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["as fast as the disks are read", "not measured: no receiver that can be measured", "say what"]),
        (["--max-bandwidth=1M"], ["1.0 MiB/s, by --max-bandwidth", "not measured"]),
        (["--bandwidth=2M"], ["2.0 MiB/s, by --bandwidth", "not measured"]),
        (["--qemu"], ["not measured: a QEMU would take it for its migration"]),
    ],
)
def test_what_was_not_measured_is_said(options: list[str], words: list[str], source: Path) -> None:
    told = command.run("send", "--dry-run=0.1", *options, source, "tcp:127.0.0.1:1")
    assert told.exit_code == 0, told.stderr
    assert all(word in told.stdout for word in words), told.stdout


def test_a_receiver_that_waits_is_measured_by_a_dry_run(source: Path, tmp_path: Path) -> None:
    with command.receiver("tcp:127.0.0.1:0", f"d={tmp_path}/copy.raw") as receiver:
        found = command.run("send", "--dry-run=0.1", "--bandwidth=1M", "--json", source, receiver.uri).result
        assert (found["bandwidth"], found["bandwidth_source"]) == (MIB, "said")
        assert found["measured_bandwidth"] > MIB
        told = command.run("send", "--dry-run=0.1", "--max-bandwidth=1M", source, receiver.uri)
        assert "of which --max-bandwidth allows 1.0 MiB/s before the pause" in told.stdout
        assert receiver.process.poll() is None
        assert command.run("send", f"d={source}", receiver.uri).exit_code == 0
        assert receiver.finish().exit_code == 0
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()


SO_MAX_PACING_RATE = 47
LINK = 40 * MIB
BLOCKS, HOT_BLOCKS, WRITES_PER_SECOND = 48, 8, 300
TRIES = 4


class Writer:
    """Writes to the first blocks of a disk, here and there, until it is left or refused."""

    def __init__(self, disk: blkmig.BlockBackend, seed: int) -> None:
        self._disk, self._rng = disk, random.Random(seed)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._thread.join(TIMEOUT)

    def _run(self) -> None:
        while not self._ended.wait(1 / WRITES_PER_SECOND):
            self._disk.pwrite(b"w" * 4096, self._rng.randrange(HOT_BLOCKS) * MIB)


def test_the_forecast_of_a_measured_link_is_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """E9: downtime within 20 %, bytes within 15 %, of a migration between two processes under a writer.

    TCP paces itself to the speed of the link. A machine that has other things to do may disturb it, so it is tried a
    few times: a forecast that is wrong is never right.
    """
    tune = sockets.tune

    def paced(sock: socket.socket) -> None:
        tune(sock)
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, LINK)

    monkeypatch.setattr(sockets, "tune", paced)
    path = tmp_path / "d.raw"
    path.write_bytes(random.Random(3).randbytes(MIB) * BLOCKS)
    tries = []
    for seed in range(TRIES):
        with (
            blkmig.FileBackend(path) as disk,
            Writer(disk, seed),
            command.receiver("tcp:127.0.0.1:0", f"d={tmp_path}/copy{seed}.raw") as receiver,
        ):
            parameters = blkmig.MigrationParameters(downtime_limit=0.6, format="block")
            found = migration.forecast([disk], parameters, seconds=1, uri=receiver.uri)
            sent = blkmig.send([disk], receiver.uri, downtime_limit=0.6, format="block")
            assert receiver.finish().exit_code == 0
        assert found.bandwidth_source == "measured"
        assert found.converges
        tries.append((found.downtime, sent.downtime, found.total_bytes, sent.transferred, found.bandwidth))
        is_downtime_right = found.downtime == pytest.approx(sent.downtime, rel=0.2)
        if is_downtime_right and found.total_bytes == pytest.approx(sent.transferred, rel=0.15):
            return
    raise AssertionError(tries)
