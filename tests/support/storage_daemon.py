# SPDX-License-Identifier: GPL-2.0-or-later
"""A qemu-storage-daemon with disks that somebody writes, for tests of live sources.

The listening sockets are handed to the daemon, so their paths are there at once; it writes to files, never to pipes.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from blkmig.files import partial, sessionfile
from blkmig.nbd import uri as nbd_uri
from blkmig.qemu import qmp

MiB = 1 << 20

WAYS_TO_READ = [("raw", ""), ("raw", ",read=nbd"), ("qcow2", "")]
"""A kind of image and what to add to the daemon's address: read from its file, by QEMU though it has one, by QEMU."""


def listen(path: Path) -> socket.socket:
    """Return a listening socket at `path` that does not block, for QEMU may accept one client twice."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.setblocking(False)
    return listener

RECEIVERS = sessionfile.session_name("target.raw")
"""What a receiver that was killed leaves, beside its half made file."""


class StorageDaemon:
    """A daemon with `arguments` between those for its NBD server, unless `nbd_server` is off, and for its monitor."""

    def __init__(self, folder: Path, *arguments: str, nbd_server: bool = True) -> None:
        self.folder = folder
        self.qmp_path = folder / "qmp"
        self.nbd_path = folder / "nbd"
        self.log = folder / "qsd.log"
        (folder / "pid").unlink(missing_ok=True)
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(listen(self.qmp_path))]
            command = ["qemu-storage-daemon"]
            # Who connects to a monitor that is being set up may be greeted twice, and read by two threads of QEMU's.
            monitor = ["--chardev", f"socket,id=qmp,fd={sockets[0].fileno()},server=on,wait=off"]
            monitor += ["--monitor", "chardev=qmp", "--pidfile", str(folder / "pid")]
            if nbd_server:
                sockets.append(stack.enter_context(listen(self.nbd_path)))
                command += ["--nbd-server", f"addr.type=fd,addr.str={sockets[1].fileno()},max-connections=0"]
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [*command, *arguments, *monitor],
                    pass_fds=[listener.fileno() for listener in sockets],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        """Return when everything is set up, which is when there is a pid file, or when the daemon has ended."""
        deadline = time.monotonic() + 30
        while not (self.folder / "pid").exists() and self.process.poll() is None:
            assert time.monotonic() < deadline, self.log.read_text()

    @property
    def address(self) -> str:
        """How blkmig is told about it."""
        return f"qemu:{self.qmp_path},nbd=unix:{self.nbd_path}"

    def uri(self, export: str) -> str:
        """Return the URI of an export."""
        return nbd_uri.unix_uri(str(self.nbd_path), export)

    def ask(self, command: str, **values: Any) -> Any:
        """Run one QMP command while blkmig is not connected; underscores stand for hyphens."""
        connection = qmp.QmpConnection(self.qmp_path)
        try:
            return connection.execute(command, {key.replace("_", "-"): value for key, value in values.items()} or None)
        finally:
            connection.close()

    def leftovers(self) -> list[str]:
        """Return what of blkmig's is in the daemon."""
        exports = [entry["id"] for entry in self.ask("query-block-exports")]
        nodes = self.ask("query-named-block-nodes", flat=True)
        bitmaps = [bitmap.get("name", "") for node in nodes for bitmap in node.get("dirty-bitmaps", ())]
        try:
            objects = [entry["name"] for entry in self.ask("qom-list", path="/objects")]
        except qmp.QmpError:  # a daemon without objects
            objects = []
        return [name for name in exports + bitmaps + objects if name.startswith("blkmig")] + [
            path.name
            for path in self.folder.iterdir()
            if "blkmig" in path.name and not path.name.endswith(partial.SUFFIX) and path.name != RECEIVERS
        ]

    def quit(self) -> None:
        """End it in good order: then its images are closed."""
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait(30)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """See to it that child processes take SIGINT, also where this one was told to ignore it, as jobs of a shell are."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def image_options(path: Path, name: str = "disk0", *, throttled: bool = False, export: str = "") -> list[str]:
    """Return the daemon's options for one image and a writable export of it; the node is called `name`."""
    driver = "qcow2" if path.suffix == ".qcow2" else "raw"
    top = f"{name}-limit" if throttled else name
    options = ["--blockdev", f"file,node-name={name}-file,filename={path},discard=unmap"]
    options += ["--blockdev", f"{driver},node-name={name},file={name}-file,discard=unmap"]
    if throttled:
        options += ["--object", f"throttle-group,id={top}"]
        options += ["--blockdev", f"throttle,node-name={top},throttle-group={top},file={name},discard=unmap"]
    return [*options, "--export", f"nbd,id={name}-w,node-name={top},name={export or name},writable=on"]


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Give a folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="qsd-") as folder:
        yield Path(folder)


class QemuIo:
    """An NBD client that does what it is told: the real qemu-io, one command at a time."""

    def __init__(self, uri: str) -> None:
        self._process = subprocess.Popen(
            ["qemu-io", "-f", "raw", "-d", "unmap", uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )

    def run(self, command: str) -> bool:
        """Run a command; False if it failed or the server has gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{command}\n")
        for line in self._process.stdout:
            if " ops; " in line:
                return True
            if "wrote " not in line and "discard " not in line:
                return False
        return False

    def kill(self) -> None:
        """End it; a command in flight fails."""
        self._process.kill()

    def close(self) -> None:
        """End it and wait for that."""
        self._process.kill()
        self._process.communicate()


class Writer:
    """A thread that writes, zeroes and discards at random places until its server goes away or `stop` is called."""

    def __init__(self, uri: str, size: int, *, seed: int, area: int | None = None) -> None:
        self.writes = 0
        self._size = size
        self._area = area or size
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self._client = QemuIo(uri)
        self._progress = threading.Condition()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()
        self.wait_for_more(5)

    def _write(self) -> None:
        while not self._stopping.is_set() and self._client.run(self.command()):
            with self._progress:
                self.writes += 1
                self._progress.notify_all()

    def wait_for_more(self, count: int) -> None:
        """Return after `count` more writes."""
        with self._progress:
            wanted = self.writes + count
            assert self._progress.wait_for(lambda: self.writes >= wanted, 30), "the writer does not get to write"

    def command(self) -> str:
        """Return the next thing to do."""
        nbytes = self._random.choice([512, 4096, 65536, 200 * 1024]) if self._random.random() < 0.9 else MiB
        nbytes = min(nbytes, self._area)
        offset = self._random.randrange(0, (self._area - nbytes) // 512 + 1) * 512
        if self._random.random() < 0.2:  # the end of the disk is a place of its own
            offset = self._size - nbytes - self._random.randrange(0, 8) * 512 if self._area == self._size else offset
            offset = max(0, offset)
        kind = self._random.choice(["write -P {pattern}", "write -P {pattern}", "write -z", "write -z -u", "discard"])
        return f"{kind.format(pattern=self._random.randrange(1, 256))} {offset} {nbytes}"

    def stop(self) -> None:
        """Stop it: by killing the client, because one whose server goes away may hang (seen with qemu-io 7.2)."""
        self._stopping.set()
        self._client.kill()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._client.close()


@contextlib.contextmanager
def writing(uris: Sequence[tuple[str, int]], *, seed: int) -> Iterator[list[Writer]]:
    """Have somebody write to each (URI, size) for a ``with``."""
    writers: list[Writer] = []
    try:
        for number, (uri, size) in enumerate(uris):
            writers.append(Writer(uri, size, seed=seed * 1000 + number))
        yield writers
    finally:
        for writer in writers:
            writer.stop()


class ImagesDiffer(AssertionError):
    """The two images do not show the same disk."""


def compare(left: Path, right: Path) -> None:
    """Raise :class:`ImagesDiffer` unless both images show the same disk."""
    formats = ["qcow2" if path.suffix == ".qcow2" else "raw" for path in (left, right)]
    command = ["qemu-img", "compare", "-f", formats[0], "-F", formats[1], left, right]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode == 1:
        raise ImagesDiffer(done.stdout)
    assert done.returncode == 0, done.stderr


def map_of(path: Path) -> Any:
    """Return what qemu-img says about the allocation of an image."""
    return json.loads(subprocess.check_output(["qemu-img", "map", "--output=json", path]))
