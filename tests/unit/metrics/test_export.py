# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways to whoever collects: a file, HTTP, a stall in the log; nothing of that stands in the way of a migration."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import socketserver
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from descriptors import descriptors_left, given_back

from blkmig import errors, ownfile, stats

prometheus = pytest.importorskip("prometheus_client")

from blkmig import metrics  # noqa: E402
from blkmig.metrics import listen, stall, textfile, ticking  # noqa: E402


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_file_is_there_from_the_start_and_has_the_end(tmp_path: Path) -> None:
    collector, path = metrics.MigrationMetrics("m"), tmp_path / "m.prom"
    with pytest.raises(errors.ChannelError), metrics.exported(collector, file=path):
        raise errors.ChannelError("sending", uri="tcp:x:1", cause="it broke")
    text = path.read_text()
    assert 'blkmig_migration_failed{direction="outgoing",migration="m",reason="ChannelError"} 1.0' in text
    assert text.endswith("# EOF\n")
    assert [each.name for each in tmp_path.iterdir()] == ["m.prom"]
    assert path.stat().st_mode & 0o777 == 0o644 & ~current_umask(tmp_path)


def current_umask(folder: Path) -> int:
    probe = folder / "probe"
    probe.touch(0o666)
    mode = probe.stat().st_mode
    probe.unlink()
    return 0o666 & ~mode


def test_a_file_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = textfile.TextFile(prometheus.CollectorRegistry(), tmp_path / "nowhere" / "m.prom")
    for _ in range(3):
        file.tick()
    assert [record.getMessage() for record in caplog.records] == [
        f"the metrics cannot be written to '{tmp_path}/nowhere/m.prom': No such file or directory"
    ]


def test_a_file_system_that_hangs_holds_nobody_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    goes_on, hangs = threading.Event(), threading.Event()

    class Hanging(textfile.TextFile):
        def tick(self) -> None:
            hangs.set()
            goes_on.wait()

    with Hanging(prometheus.CollectorRegistry(), tmp_path / "m.prom", patience=0.0):
        hangs.wait()
    assert "the file system is slow" in caplog.text
    goes_on.set()


@pytest.mark.parametrize("content", [b"a disk", bytes(512)])
def test_what_is_no_file_of_ours_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vda.raw"
    path.write_bytes(content)
    for wrong in (path, tmp_path, Path("/dev/null")):
        with pytest.raises(OSError, match=r"say another name|directory"):
            ownfile.replace(wrong, b"# mark", b"# mark")
    assert path.read_bytes() == content
    path.write_bytes(b"")
    ownfile.replace(path, b"# mark one", b"# mark")
    ownfile.replace(path, b"# mark two", b"# mark")
    assert path.read_bytes() == b"# mark two"


def test_a_stall_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    collector = metrics.MigrationMetrics("m", clock=clock)
    collector(stats.StatusChanged(0.0, "active"))
    watch = stall.StallWatch(collector)
    for _ in range(30):
        watch.tick()
        clock.now += 1
    collector(stats.Received(1.0, 5, 1, 0, 1))  # something moves
    for _ in range(30):
        watch.tick()
        clock.now += 1
    collector(stats.Received(1.0, 6, 1, 0, 100, phase="dirty"))
    for _ in range(30):
        watch.tick()
        clock.now += 1
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "no byte has moved for 9 s (phase: bulk): look at the link, and at the disks of both ends"),
        (logging.WARNING, "no byte has moved for 9 s (phase: dirty): look at the link, and at the disks of both ends"),
    ]


@pytest.mark.parametrize("cpu", [0.0, 0.0001, 0.001, 0.009, 0.1, 5.0])
def test_ticks_take_their_share_and_no_more(cpu: float) -> None:
    pause = ticking.pause_after(cpu, seconds=1.0)
    assert pause >= 1.0
    assert cpu / (cpu + pause) <= 0.005
    assert pause == 1.0 or cpu > 0.001


def test_a_stall_is_told_within_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    """Wherever between two looks the last byte has moved."""
    for tenths in range(10):
        clock = Clock()
        collector = metrics.MigrationMetrics("m", clock=clock)
        collector(stats.StatusChanged(0.0, "active"))
        watch = stall.StallWatch(collector)
        watch.tick()
        clock.now += tenths / 10
        collector(stats.Received(1.0, 5, 1, 0, 1))  # the last byte
        last = clock.now
        caplog.clear()
        clock.now += watch.seconds - tenths / 10
        while not caplog.records:
            watch.tick()
            told, clock.now = clock.now, clock.now + watch.seconds
        assert 9 <= told - last <= 10 + 1e-6


@pytest.mark.parametrize("address", ["", "127.0.0.1", "[::1]"])
def test_http(address: str) -> None:
    collector = metrics.MigrationMetrics("m")
    try:
        socket.create_server((address.strip("[]") or "127.0.0.1", 0), family=family(address)).close()
    except OSError:
        pytest.skip(f"no {address} here")
    with metrics.exported(collector, listen=f"{address}:0") as url:
        assert url is not None
        collector(stats.StatusChanged(0.0, "setup"))
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        host, _, port = url.removeprefix("http://").removesuffix("/metrics").rpartition(":")
        with pytest.raises(errors.ParameterError, match=r"cannot be served at .*in use; say another"):
            listen.Server(prometheus.CollectorRegistry(), f"{address}:{port}")
    assert 'blkmig_migration_phase{direction="outgoing",migration="m",phase="setup"} 1.0' in text
    assert host == (address or "127.0.0.1")


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def test_a_client_that_says_nothing_holds_nobody_up() -> None:
    with metrics.exported(metrics.MigrationMetrics("m"), listen=":0") as url:
        assert url is not None
        port = int(url.rpartition(":")[2].removesuffix("/metrics"))
        silent = socket.create_connection(("127.0.0.1", port))
    silent.close()


@pytest.mark.parametrize("text", ["", "9100", ":x", ":70000", "localhost:9100", ":-1", "1.2.3:1"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(errors.ParameterError, match="in numbers"):
        listen.parse(text)


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with (
        pytest.raises(errors.ParameterError, match=r"pip install 'blkmig\[metrics\]'"),
        metrics.exported(metrics.MigrationMetrics("m")),
    ):
        pass


def test_a_server_that_ends_writes_into_no_other_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its thread may have failed, and closed what it had, long before the migration is over."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(socketserver.BaseServer, "handle_request", lambda _: 1 / 0)
    with contextlib.ExitStack() as stack:
        with listen.Server(prometheus.CollectorRegistry(), ":0") as server:
            [thread] = [each for each in threading.enumerate() if each.name == "blkmig-metrics-http"]
            with socket.create_connection(("127.0.0.1", int(server.url.split(":")[2].partition("/")[0]))):
                thread.join(30)
            files = [stack.enter_context((tmp_path / str(number)).open("w+b", buffering=0)) for number in range(8)]
        assert [os.pread(file.fileno(), 8, 0) for file in files] == [b""] * 8


def test_a_server_without_descriptors_is_an_error_at_once() -> None:
    """C7: nothing of it fails later, in its thread."""
    reader, outcomes = prometheus.CollectorRegistry(), list[str]()
    with given_back():
        for count in range(8):
            with descriptors_left(count), contextlib.suppress(errors.ParameterError):
                outcomes.append("refused")
                with listen.Server(reader, ":0"):
                    outcomes[-1] = "served"
        for thread in threading.enumerate():
            if thread.name == "blkmig-metrics-http":
                thread.join(30)
    assert set(outcomes) == {"refused", "served"}
    assert outcomes == sorted(outcomes)
