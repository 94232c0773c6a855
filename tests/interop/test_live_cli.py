# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line with live disks: serve, send as it says, forecast, clean up, refuse."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import peers
import storage_daemon
from storage_daemon import MiB, StorageDaemon, image_options

peers.require("qemu-storage-daemon", "qemu-img", "qemu-io")

SIZE = 6 * MiB
BLKMIG = [sys.executable, "-m", "blkmig"]


def raw_image(folder: Path) -> Path:
    path = folder / "disk0.raw"
    path.open("wb").truncate(SIZE)
    return path


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BLKMIG, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


@contextlib.contextmanager
def serving(folder: Path, *images: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run ``blkmig serve``; the process and the lines that it prints."""
    command = [*BLKMIG, "serve", *images, "--nbd", f"unix:{folder}/nbd"]
    with storage_daemon.interruptible():
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, [process.stdout.readline().strip() for _ in range(len(images) + 1)]
    finally:
        process.terminate()  # not kill: it must end its daemon
        process.wait(30)
        process.stdout.close()


def test_a_served_disk_is_sent_by_the_line_that_is_printed(folder: Path) -> None:
    image, target = raw_image(folder), folder / "target.raw"
    with serving(folder, f"vda={image}") as (process, [export, line]):
        uri = export.removeprefix("vda: ")
        with storage_daemon.writing([(uri, SIZE)], seed=1) as [writer]:
            writer.wait_for_more(3)
            assert line.startswith("send with: blkmig send qemu:")
            words = shlex.split(line.removeprefix("send with: blkmig "))
            assert words[-1] == "tcp:HOST:PORT"
            receiver = subprocess.Popen([*BLKMIG, "receive", f"unix:{folder}/link", f"vda={target}"])
            try:
                wait = ["--connect-timeout=30", "--move", "--downtime-limit=2"]
                while not (folder / "link").exists():
                    assert receiver.poll() is None
                sent = run(*words[:-1], f"unix:{folder}/link", *wait, "--json")
                assert sent.returncode == 0, sent.stderr
                assert receiver.wait(30) == 0
            finally:
                receiver.kill()
                receiver.wait(30)
            assert json.loads(sent.stdout)["downtime"] > 0
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    storage_daemon.compare(image, target)
    assert [path.name for path in folder.iterdir() if "nbd" in path.name] == []


def test_a_forecast_touches_nothing(folder: Path) -> None:
    with StorageDaemon(folder, *image_options(raw_image(folder))) as daemon:
        with storage_daemon.writing([(daemon.uri("disk0"), SIZE)], seed=2) as [writer]:
            told = run("send", "--dry-run=0.3", "--max-bandwidth=100M", daemon.address, "tcp:127.0.0.1:1")
            assert told.returncode in (0, 4), told.stderr
            assert told.stdout
            writer.wait_for_more(3)
        assert daemon.leftovers() == []


def test_cleaning_up_where_nothing_was_left_and_where_something_was(folder: Path) -> None:
    with StorageDaemon(folder, *image_options(raw_image(folder))) as daemon:
        assert run("cleanup", f"qemu:{daemon.qmp_path}").stdout == "nothing was left\n"
        daemon.ask("block-dirty-bitmap-add", node="disk0", name="blkmig-0badcafe-d0-b7")
        daemon.ask("block-dirty-bitmap-add", node="disk0", name="somebody-else")
        assert run("cleanup", f"qemu:{daemon.qmp_path}").stdout == "bitmap blkmig-0badcafe-d0-b7 of node disk0\n"
        nodes = daemon.ask("query-named-block-nodes", flat=True)
        assert [bitmap["name"] for node in nodes for bitmap in node.get("dirty-bitmaps", ())] == ["somebody-else"]
    failed = run("cleanup", f"qemu:{daemon.qmp_path}")
    assert failed.returncode == 1
    assert "Connection refused" in failed.stderr


def test_what_is_refused_says_why(folder: Path) -> None:
    options = ["--object", "iothread,id=io0", *image_options(raw_image(folder))]
    with StorageDaemon(folder, *options) as daemon:
        for address, exit_code, why in (
            (f"qemu:{daemon.qmp_path}", 1, "nbd=unix:PATH"),
            (f"{daemon.address},node=other", 1, "there are: disk0"),
            (f"{daemon.address},color=red", 2, "color"),
        ):
            refused = run("send", "--force", address, "tcp:127.0.0.1:1")
            assert (refused.returncode, why in refused.stderr) == (exit_code, True), refused.stderr
        refused = run("send", "--force", "--switchover=pause-before", daemon.address, "tcp:127.0.0.1:1")
        assert (refused.returncode, "storage daemon" in refused.stderr) == (1, True), refused.stderr
        assert daemon.leftovers() == []
