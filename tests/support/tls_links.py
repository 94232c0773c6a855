# SPDX-License-Identifier: GPL-2.0-or-later
"""Both ends of a stream over TLS, and somebody between them who sees records and can cut or change them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import blkmig
from blkmig import channel

TIMEOUT = 30
Change = Callable[[int, bytes], bytes | None]
"""What becomes of the record with a number, its head included; None: the connection ends before it."""


def trusting(folder: Path, **others: object) -> blkmig.TlsParameters:
    """Return what trusts the authority in a folder."""
    return blkmig.TlsParameters(certificates=folder, **others)  # type: ignore[arg-type]


def named(uri: str) -> str:
    """Return the address of a receiver on this machine with the name that its certificate has."""
    return uri.replace("127.0.0.1", "localhost")


def hello() -> bytes:
    """Return what begins a handshake."""
    leaving = ssl.MemoryBIO()
    secured = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), leaving, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        secured.do_handshake()
    return leaving.read()


@contextlib.contextmanager
def pair(certificates: Path) -> Iterator[tuple[channel.OutputQEMUFile, channel.InputQEMUFile]]:
    """Yield both ends of a stream."""
    trust = trusting(certificates)
    with (
        channel.listen("tls:127.0.0.1:0", tls=trust) as listener,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        accepted = pool.submit(lambda: listener.accept(timeout=TIMEOUT))
        with channel.connect(named(listener.uri), timeout=TIMEOUT, tls=trust) as f:
            peer = accepted.result(TIMEOUT)
            try:
                yield f, peer
            finally:
                f.abort()
                peer.abort()


@contextlib.contextmanager
def receiving(
    target: Path, tls: blkmig.TlsParameters, **parameters: object
) -> Iterator[tuple[str, concurrent.futures.Future[object]]]:
    """Run a receiver of the disk "d"; give its address and its outcome."""
    chosen = blkmig.IncomingParameters(tls=tls, **parameters)  # type: ignore[arg-type]
    incoming = blkmig.IncomingMigration("tls:127.0.0.1:0", {"d": target}, chosen)
    with incoming, concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(incoming.run)
        try:
            yield named(incoming.uri), running
        finally:
            incoming.cancel()


class Between:
    """Listens, and passes on to `uri` what comes, record by record, as `change` says; answers pass as they are.

    What is changed is connection number `which`, as they come; the others pass as they are.
    """

    def __init__(self, uri: str, change: Change = lambda number, record: record, *, which: int = 0) -> None:
        self._port = int(uri.rpartition(":")[2])
        self._change, self._which = change, which
        self.records = 0
        """Records of the sender that were passed on, on that connection."""

        self.passed = bytearray()
        """These records."""

        self.may_read = threading.Event()
        """While it is not set, nothing is taken."""

        self.may_read.set()
        self._both: list[socket.socket] = []
        self._relays: list[threading.Thread] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.uri = f"tls:localhost:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Between:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.may_read.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # which wakes who waits in accept()
        self._server.close()
        for sock in self._both:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in (self._thread, *self._relays):
            thread.join(TIMEOUT)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._server.accept()[0]
                is_changed = len(self._relays) == self._which
                relay = threading.Thread(target=self._relay, args=(near, is_changed), daemon=True)
                self._relays.append(relay)
                relay.start()

    def _relay(self, near: socket.socket, is_changed: bool) -> None:
        with contextlib.suppress(OSError), near:
            with socket.create_connection(("127.0.0.1", self._port)) as far:
                self._both += [near, far]
                back = threading.Thread(target=pass_on, args=(far, near), daemon=True)
                back.start()
                with contextlib.suppress(OSError):
                    self._pass_records(near, far) if is_changed else pass_on(near, far)
                with contextlib.suppress(OSError):
                    far.shutdown(socket.SHUT_WR)
                with contextlib.suppress(OSError):  # what was cut off is taken, and goes nowhere
                    while near.recv(1 << 16):
                        pass
                back.join(TIMEOUT)

    def _pass_records(self, near: socket.socket, far: socket.socket) -> None:
        stream = near.makefile("rb")
        while self.may_read.wait(TIMEOUT) and len(head := stream.read(5)) == 5:
            record = self._change(self.records, head + stream.read(struct.unpack(">H", head[3:])[0]))
            if record is None:
                return
            far.sendall(record)
            self.records += 1
            self.passed += record


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """Copy until the end, and pass that on, too."""
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
