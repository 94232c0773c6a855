# SPDX-License-Identifier: GPL-2.0-or-later
"""An end stops at any call, as in `test_stops.py`, and the disks are those of a running qemu-storage-daemon, which may
be killed or frozen: nothing of blkmig's is left in it, and its writers go on unless the disks have moved.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Any

import lab
import nbd_servers
import peers
import stop_runs
import storage_daemon
from storage_daemon import StorageDaemon, image_options

import blkmig
from blkmig import errors, qemu, testing
from blkmig.nbd import backend as nbd
from blkmig.qemu import syncing, tracking, writers
from blkmig.sources import open_disks

peers.require("qemu-storage-daemon", "qemu-img", "qemu-io")
nbd_servers.require_libnbd()

MIB = 1 << 20
SECONDS, LONG_SECONDS = 3.5, 300.0
QEMUS: list[tuple[Any, str]] = [
    (tracking, "start_adding"),
    (syncing.DirtySync, "fetch"),
    (writers.Writers, "hold"),
    (writers.Writers, "about_to_move"),
    (writers.Writers, "release"),
]
"""From where on calls are counted, besides the places of all migrations."""


def test_stops_with_disks_of_a_daemon(tmp_path: Path, is_long: bool) -> None:
    stop_runs.play(
        tmp_path,
        Run,
        seconds=LONG_SECONDS if is_long else SECONDS,
        first=stop_runs.first_seed(is_long=is_long),
    )


class Run(stop_runs.Run):
    """One migration of all disks of a daemon."""

    WHATS = ("cancel sender", "cancel sender", "cancel receiver", "cancel both", "fail target", "kill the daemon")
    SIZES = (512, MIB, MIB + 512, 3 * MIB + 1536)

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed, "")
        if self.rng.random() < 0.3:
            self._owner, self._place = self.rng.choice(QEMUS)
        self._kinds = {name: self.rng.choice(("raw", "qcow2")) for name in self.contents}
        self._options = self.rng.choice(("", ",read=nbd"))
        self._daemon: StorageDaemon
        self._is_gone = False
        self.name = f"{', '.join(self._kinds.values())}{self._options}"

    def happen(self) -> None:
        """End the daemon, or what happens to others."""
        if "daemon" in self.what:
            self._is_gone = "kill" in self.what
            self._daemon.process.kill()
        super().happen()

    def open(self, stack: contextlib.ExitStack) -> None:
        """Start the daemon, and open its disks."""
        place = stack.enter_context(storage_daemon.private_folder())
        options = []
        for name, kind in self._kinds.items():
            options += image_options(self._make_image(name, kind), name)
            if self.what == "fail target":
                self.targets[name] = testing.FaultyDisk(
                    blkmig.MemoryBackend(bytearray(len(self.contents[name])), name=name)
                )
        self._daemon = stack.enter_context(StorageDaemon(place, *options))
        disks = open_disks(self._daemon.address + self._options)
        self.sources = [stack.enter_context(disk) for disk in disks]
        self.incoming = stack.enter_context(blkmig.IncomingMigration(f"unix:{place}/s", self.make_targets()))
        self.migration = blkmig.outgoing(
            self.sources,
            self.incoming.uri,
            blkmig.MigrationParameters(writers_after="refuse" if self.moves else "release"),
        )

    def _make_image(self, name: str, kind: str) -> Path:
        raw = lab.sparse_file(self.folder / "from" / f"{name}.raw", self.contents[name])
        if kind == "raw":
            return raw
        top = raw.with_suffix(".qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", top], check=True)
        return top

    def send(self) -> None:
        """Be the sender, and close the disks at its end."""
        with contextlib.ExitStack() as stack:
            for disk in self.sources:
                stack.push(disk)  # it is entered
            if self.moves:
                uris = [(self._daemon.uri(name), len(content)) for name, content in self.contents.items()]
                stack.enter_context(storage_daemon.writing(uris, seed=self.seed))
            self.migrate()

    # -- what has become of it -----------------------------------------------------------------------------------------

    def look_at_targets(self, said: str) -> None:
        """Compare once the daemon has closed its images."""

    def look_at_sources(self, sent: BaseException | None, said: str, *, is_sent: bool) -> None:
        """Nothing of ours is in the daemon, and whoever wrote there goes on, unless the disks have moved."""
        if self._is_gone:
            return
        has_moved = self.moves and (is_sent or isinstance(sent, errors.InDoubt))
        assert self._can_write() != has_moved, said
        if isinstance(sent, errors.InDoubt | errors.NotVerified):
            qemu.cleanup(str(self._daemon.qmp_path), force=True)
        left = self._daemon.leftovers()
        assert left == [], f"{said}, {left}"

    def _can_write(self) -> bool:
        return all(self._is_open(name) for name in self.contents)

    def _is_open(self, name: str) -> bool:
        try:
            nbd.NbdBackend(self._daemon.uri(name)).close()
        except errors.DeviceError:
            return False
        return True

    def look_at_files(self, said: str, *, is_sent: bool, is_there: bool) -> None:
        """Compare, too."""
        if is_there:
            if not self._is_gone:
                self._daemon.quit()
            for name, held in self.targets_hold().items():
                assert held == self._source_holds(name), f"they differ: {said}"
        super().look_at_files(said, is_sent=is_sent, is_there=is_there)

    def _source_holds(self, name: str) -> bytes:
        path = self.folder / "from" / f"{name}.raw"
        if self._kinds[name] == "raw":
            return path.read_bytes()
        raw = self.folder / f"{name}.converted"
        subprocess.run(
            ["qemu-img", "convert", "-q", "-f", "qcow2", "-O", "raw", path.with_suffix(".qcow2"), raw], check=True
        )
        return raw.read_bytes()
