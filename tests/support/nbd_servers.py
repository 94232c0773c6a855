# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD servers for tests: the real ones, and one that does exactly what a test wants."""

from __future__ import annotations

import collections
import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pauses
import peers

from blkmig.nbd import _libnbd
from blkmig.nbd import uri as nbd_uri

READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, WRITE_ZEROES = range(7)
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES = 1, 2, 4, 8, 32, 64


def require_libnbd() -> None:
    """Skip the calling test, or module, unless libnbd can be loaded."""
    try:
        _libnbd.load()
    except OSError as error:
        peers.lacking(str(error))


class Server:
    """A server process: its URI and its process id."""

    def __init__(self, uri: str, pid: int) -> None:
        self.uri = uri
        self.pid = pid

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; one that is to stop has all of its threads stopped when this returns."""
        os.kill(self.pid, number)
        if number == signal.SIGSTOP:
            pauses.until(lambda: all(map(_is_stopped, Path(f"/proc/{self.pid}/task").iterdir())))


def _is_stopped(thread: Path) -> bool:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"


@contextlib.contextmanager
def running(command: list[str | Path], uri: str, folder: Path) -> Iterator[Server]:
    """Run a server that goes to the background, and writes its pid to ``pid`` in `folder`, when it is ready."""
    log = folder / "log"
    with log.open("wb") as file:
        status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False).returncode
    assert status == 0, log.read_text()
    server = Server(uri, int((folder / "pid").read_text()))
    process = os.pidfd_open(server.pid)
    try:
        yield server
    finally:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [])  # its image locks end with it
        os.close(process)


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Give a folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="nbd-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def nbdkit(*arguments: str | Path, tcp: bool = False, scheme: str = "nbd") -> Iterator[Server]:
    """Run nbdkit with the plugin and the filters in `arguments`, on a Unix socket or on ``localhost``.

    It gets its listening socket handed over, so there is nothing to wait for.
    """
    peers.require("nbdkit")
    with private_folder() as folder, contextlib.ExitStack() as stack:
        if tcp:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            uri = f"{scheme}://localhost:{listener.getsockname()[1]}/"
        else:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(folder / "socket"))
            listener.listen()
            uri = f"{scheme}+unix:///?socket={folder}/socket"
        log = stack.enter_context((folder / "log").open("wb"))
        activate = 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&0 </dev/null'
        command = ["sh", "-c", activate, "sh", "nbdkit", "--foreground", *arguments]
        process = subprocess.Popen(command, stdin=listener, stdout=log, stderr=log)
        listener.close()
        try:
            yield Server(uri, process.pid)
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def storage_daemon(path: Path, *, format: str = "raw", writable: bool = True, options: str = "") -> Iterator[Server]:
    """Run a qemu-storage-daemon that exports the image at `path` as ``disk``, on a Unix socket."""
    peers.require("qemu-storage-daemon")
    with private_folder() as folder:
        socket_path = folder / "socket"
        command: list[str | Path] = [
            "qemu-storage-daemon",
            "--daemonize",
            "--pidfile",
            folder / "pid",
            "--blockdev",
            f"driver=file,node-name=file,filename={path}{options}",
            "--blockdev",
            f"driver={format},node-name=disk,file=file{options}",
            "--nbd-server",
            f"addr.type=unix,addr.path={socket_path},max-connections=0",
            "--export",
            f"type=nbd,id=disk,node-name=disk,name=disk,writable={'on' if writable else 'off'},allocation-depth=on",
        ]
        with running(command, nbd_uri.unix_uri(str(socket_path), "disk"), folder) as server:
            yield server


class FakeServer:
    """A server in this process that keeps every request until `answer` says what to do about it.

    `answer` is called in the server's thread with each :class:`Asked` and may call its `reply`, now or later. What it
    raises ends the connection, and is raised at the end of the ``with``.
    """

    def __init__(self, answer: Callable[[Asked], None], *, size: int = 1 << 30, flags: int = 0) -> None:
        self.size = size
        self.flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | flags
        self.seen: list[Asked] = []
        self._answer = answer
        self._ours, theirs = socket.socketpair()
        self._folder = contextlib.ExitStack()
        path = self._folder.enter_context(private_folder()) / "socket"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        theirs.close()
        self.uri = nbd_uri.unix_uri(str(path))
        self._send_lock = threading.Lock()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._ours.close()
        self._listener.close()
        self._folder.close()
        if self._failure is not None:
            raise self._failure

    def hang_up(self) -> None:
        """Close the connection, as a server that died."""
        self._ours.shutdown(socket.SHUT_RDWR)

    def has_ended(self, seconds: float) -> bool:
        """Return whether the client goes within that time."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def counted(self) -> dict[int, int]:
        """Return how many requests of each type came."""
        return dict(collections.Counter(asked.type for asked in self.seen))

    def send(self, data: bytes) -> None:
        """Send bytes to the client; a client that has gone does not matter."""
        with self._send_lock, contextlib.suppress(OSError):
            self._ours.sendall(data)

    def _serve(self) -> None:
        try:
            self._ours, _ = self._listener.accept()
            self._converse()
        except (OSError, EOFError):
            pass  # the client has gone
        except Exception as error:
            self._failure = error
            self.hang_up()

    def _converse(self) -> None:
        # The old handshake, which needs no negotiation.
        self.send(b"NBDMAGIC" + struct.pack(">QQI124x", 0x420281861253, self.size, self.flags))
        while True:
            magic, flags, kind, cookie, offset, nbytes = struct.unpack(">IHHQQI", self._receive(28))
            assert magic == 0x25609513
            asked = Asked(self, kind, flags, cookie, offset, nbytes)
            if kind == WRITE:
                asked.data = self._receive(nbytes)
            self.seen.append(asked)
            if kind == DISCONNECT:
                return
            self._answer(asked)

    def _receive(self, nbytes: int) -> bytes:
        data = bytearray()
        while len(data) < nbytes:
            more = self._ours.recv(nbytes - len(data))
            if not more:
                raise EOFError
            data += more
        return bytes(data)


class Asked:
    """One request that a :class:`FakeServer` has received."""

    def __init__(self, server: FakeServer, type: int, flags: int, cookie: int, offset: int, nbytes: int) -> None:
        self._server = server
        self._cookie = cookie
        self.type = type
        self.flags = flags
        self.offset = offset
        self.nbytes = nbytes
        self.data = b""

    def reply(self, data: bytes = b"", *, error: int = 0) -> None:
        """Answer it. Data that is missing may follow, by `send` of the server."""
        self._server.send(struct.pack(">IIQ", 0x67446698, error, self._cookie) + data)
