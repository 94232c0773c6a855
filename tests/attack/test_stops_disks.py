# SPDX-License-Identifier: GPL-2.0-or-later
"""An end stops at any call, as in `test_stops.py`, and its disks are several, of several kinds, of which one may fail:
exports of nbdkit and of a QEMU, qcow2 images, files. Servers are killed, too, and frozen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbd_servers
import peers
import processes
import pytest
import stop_runs
import storage_daemon

import blkmig
from blkmig import errors, testing
from blkmig.nbd import backend as nbd
from blkmig.nbd import image

nbd_servers.require_libnbd()
peers.require("qemu-storage-daemon", "qemu-nbd", "qemu-img", "nbdkit")

MIB = 1 << 20
SECONDS, LONG_SECONDS = 3.5, 300.0
KINDS = ("raw", "nbdkit", "daemon", "qcow2")


@pytest.fixture
def own_temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have a folder of this test's for what blkmig makes for a moment."""
    with storage_daemon.private_folder() as folder:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        yield folder


def test_stops_with_disks_of_many_kinds(tmp_path: Path, own_temp: Path, is_long: bool) -> None:
    stop_runs.play(
        tmp_path,
        lambda folder, seed: Run(folder, seed, own_temp),
        seconds=LONG_SECONDS if is_long else SECONDS,
        first=stop_runs.first_seed(is_long=is_long),
    )


class Run(stop_runs.Run):
    """One migration of disks of several kinds."""

    WHATS = (*stop_runs.Run.WHATS, "fail one source", "fail one target", "kill a server", "freeze a server, both")
    SIZES = (512, 4096, MIB - 512, MIB, MIB + 512, 3 * MIB + 1536)
    tries_again = True

    def __init__(self, folder: Path, seed: int, own_temp: Path) -> None:
        super().__init__(folder, seed, "")
        self._own_temp = own_temp
        self._kinds = [(self.rng.choice(KINDS), self.rng.choice(KINDS)) for _ in self.contents]
        self._faulty = {name for name in self.contents if self.what == "fail target"}
        if self.what == "fail one target":
            self._faulty = {self.rng.choice(list(self.contents))}
        self._victim = self.rng.randrange(len(self.contents))
        self._fails = self.rng.random()
        self._exports: dict[str, tuple[str, Path]] = {}
        self._servers: list[nbd_servers.Server] = []
        self._options = {"connections": self.rng.choice((1, 1, 2))}
        self._proves = self.rng.random() < 0.3
        self.name = ", ".join(f"{source} to {target}" for source, target in self._kinds)

    def happen(self) -> None:
        """Do what is to happen to one disk, or its server."""
        if self.what == "fail one source":
            self.sources[self._victim].inject(self.fault)
        elif self.what == "fail one target":
            for disk in self.targets.values():
                disk.inject(self.fault)
        elif "a server" in self.what:
            number = signal.SIGKILL if "kill" in self.what else signal.SIGSTOP
            images = processes.children_of(os.getpid(), "qemu-nbd")
            servers: list[Any] = [*self._servers, *images]
            if servers:
                servers[int(self._fails * len(servers))].kill(number)
        if self.what not in ("fail one source", "fail one target"):
            super().happen()

    def begin_to_write(self, stack: contextlib.ExitStack) -> None:
        """Have nobody write who would wait for a frozen server, as long as it is patient with that."""
        if "freeze" not in self.what:
            super().begin_to_write(stack)

    # -- disks ---------------------------------------------------------------------------------------------------------

    def open(self, stack: contextlib.ExitStack) -> None:
        """Make the disks, each of its kind."""
        for (name, content), (kind, target) in zip(self.contents.items(), self._kinds, strict=True):
            path = self.folder / "from" / f"{name}.raw"
            path.write_bytes(content)
            disk = testing.FaultyDisk(self._source(stack, kind, name, path))
            self.sources.append(disk)
            stack.callback(self._close, disk)
            if target in ("nbdkit", "daemon"):
                path = self.folder / f"{name}.export"
                path.write_bytes(bytes(len(content)))
                self._exports[name] = self._export(stack, target, path), path
        options = {"verify": True} if self._proves else {}
        parameters = blkmig.IncomingParameters(accept_timeout=60, **options)
        targets = self.make_targets()
        self.incoming = stack.enter_context(blkmig.IncomingMigration(f"unix:{self.folder}/s", targets, parameters))
        self.migration = blkmig.outgoing(
            self.sources,
            self.incoming.uri,
            blkmig.MigrationParameters(
                writers_after="refuse" if self.moves else "release", digests=self._proves, **self._options
            ),
        )

    def make_targets(self) -> Mapping[str, Any]:
        """Return the targets, each of its kind."""
        for name in self._faulty:
            if name not in self.targets:
                self.targets[name] = testing.FaultyDisk(
                    blkmig.MemoryBackend(bytearray(len(self.contents[name])), name=name)
                )
        each = zip(self.contents, self._kinds, strict=True)
        return {name: self._target_of(name, target) for name, (_, target) in each}

    def _source(self, stack: contextlib.ExitStack, kind: str, name: str, path: Path) -> blkmig.BlockBackend:
        if kind == "raw":
            return blkmig.FileBackend(path, name=name)
        if kind == "qcow2":
            top = path.with_suffix(".qcow2")
            subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", path, top], check=True)
            return image.ImageBackend(top, format="qcow2", name=name)
        return nbd.NbdBackend(self._export(stack, kind, path), name=name)

    def _close(self, disk: testing.FaultyDisk) -> None:
        """Close a source: one whose server was killed says so."""
        with contextlib.suppress(errors.DeviceError) if "a server" in self.what else contextlib.nullcontext():
            disk.close()

    def _export(self, stack: contextlib.ExitStack, kind: str, path: Path) -> str:
        serve = nbd_servers.nbdkit("file", path) if kind == "nbdkit" else nbd_servers.storage_daemon(path)
        self._servers.append(stack.enter_context(serve))
        return self._servers[-1].uri

    def _target_of(self, name: str, kind: str) -> Any:
        if name in self.targets:
            return self.targets[name]
        if name in self._exports:
            return self._exports[name][0]
        return self.target(name) if kind == "raw" else f"{self._image(name)},format=qcow2"

    def _image(self, name: str) -> Path:
        return self.target(name).with_suffix(".qcow2")

    # -- what has become of it -----------------------------------------------------------------------------------------

    def targets_hold(self) -> Mapping[str, bytes]:
        """Return what is at the target, whatever its kind."""
        return {name: self._hold(name, kind) for name, (_, kind) in zip(self.contents, self._kinds, strict=True)}

    def _hold(self, name: str, kind: str) -> bytes:
        if name in self.targets:
            disk = self.targets[name]
            return bytes(disk.pread(0, disk.size))
        if name in self._exports:
            return self._exports[name][1].read_bytes()
        if kind == "raw":
            return self.target(name).read_bytes()
        raw = self.folder / f"{name}.converted"
        command = ["qemu-img", "convert", "-q", "-f", "qcow2", "-O", "raw", self._image(name), raw]
        subprocess.run(command, check=True)
        return raw.read_bytes()

    def look_at_sources(self, sent: BaseException | None, said: str, *, is_sent: bool) -> None:
        """A server that was killed takes no writes."""
        self.tries_again = "a server" not in self.what
        if self.tries_again:
            super().look_at_sources(sent, said, is_sent=is_sent)

    def keep_contents(self) -> None:
        """Keep what they hold, where it can be read."""
        if "a server" not in self.what:
            super().keep_contents()

    def look_at_targets(self, said: str) -> None:
        """Look where nobody has written what cannot be read any more."""
        if not (self.moves and "a server" in self.what):
            super().look_at_targets(said)

    def look_at_files(self, said: str, *, is_sent: bool, is_there: bool) -> None:
        """Images have their names when they are complete, too, and no socket is left."""
        super().look_at_files(said, is_sent=is_sent, is_there=is_there)
        if not is_there:
            assert not [name for name in self.contents if self._image(name).exists()], said
        # Those of sources that are open are gone, too: a socket's name goes as soon as its one client has come.
        assert not [path.name for path in self._own_temp.iterdir() if path.name.startswith("blkmig-")], said
