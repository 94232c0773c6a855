# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes whose cost is known when they have ended: wall, CPU, peak RSS; and links between them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pathlib
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence

TIMEOUT = 300.0  # seconds for one run: what takes longer has hung


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a process took: seconds and bytes."""

    wall: float
    cpu: float
    rss: float


class Measured:
    """A running command; ``wait()`` or ``terminate()`` says what it cost. Its output goes into a file."""

    _numbers = itertools.count()

    def __init__(
        self,
        measured: str,
        command: Sequence[str | pathlib.Path],
        *,
        folder: pathlib.Path,
        preload: str | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start `command` under the program c/measured.c; `preload`: a library for this command only."""
        name = f"{pathlib.Path(command[0]).name}-{next(self._numbers)}"
        self._figures, self._log = folder / f"{name}.cost", folder / f"{name}.log"
        self.command = [str(word) for word in command]
        environment = ["env", f"LD_PRELOAD={preload}"] if preload else []
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [measured, str(self._figures), *environment, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
            )

    def wait(self, timeout: float = TIMEOUT) -> Cost:
        """Wait for the end and return the cost; raises RuntimeError with what the command said if it failed."""
        if not self._has_ended(timeout):
            self.kill()
            raise RuntimeError(f"{self.command} did not end in {timeout:.0f} s: {self.output}")
        if code := self.process.wait():
            raise RuntimeError(f"{self.command} ended with {code}: {self.output}")
        cost = Cost(*map(float, self._figures.read_text().split()))
        self._figures.unlink()
        self._log.unlink()
        return cost

    def _has_ended(self, timeout: float) -> bool:
        """Wait for the end; not with Popen.wait(timeout), which sleeps up to 50 ms between looks."""
        if self.process.returncode is not None:
            return True
        pidfd = os.pidfd_open(self.process.pid)
        try:
            return bool(select.select([pidfd], [], [], timeout)[0])
        finally:
            os.close(pidfd)

    def terminate(self) -> Cost:
        """End a server and return its cost."""
        self.process.terminate()
        return self.wait()

    def kill(self) -> None:
        """End it if it still runs; safe twice. The command dies with the process that measures it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def output(self) -> str:
        """The last lines of stdout and stderr, until its cost has been returned."""
        return self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""

    def __enter__(self) -> Measured:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.kill()
        if error is not None:
            error.add_note(f"{self.command[-1]}: {self.output}")


class Control:
    """Lines to and from a child that waits for "go" (see started.py); `fd` is its end, which it inherits."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.settimeout(TIMEOUT)
        self.fd = str(self._theirs.fileno())
        self._lines = self._ours.makefile("rb")

    def wait_ready(self, child: Measured) -> None:
        """Wait until the child is up; our copy of its end is closed, so that its death is noticed."""
        self._theirs.close()
        self._line(child)

    def go(self) -> None:
        """Let the child begin."""
        self._ours.sendall(b"go\n")

    def wait_done(self, child: Measured) -> tuple[float, float, float]:
        """Wait until the child is done; return the CPU seconds that it took since "go", when the disks were complete,
        if it notes that, and when it was done."""
        cpu, complete_at, done_at = map(float, self._line(child).split())
        return cpu, complete_at, done_at

    def _line(self, child: Measured) -> bytes:
        line = self._lines.readline()
        if not line:
            child.wait()
            raise RuntimeError(f"{child.command} ended too early: {child.output}")
        return line

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._ours.close()
        self._theirs.close()


@dataclasses.dataclass(frozen=True)
class Link:
    """A way from one process to another: how each of them calls it, and the descriptors it inherits."""

    kind: str
    address: str
    """HOST:PORT or a path; empty for a pipe."""
    sender_uri: str
    receiver_uri: str
    sender_fds: Sequence[int] = ()
    receiver_fds: Sequence[int] = ()

    def wait_listening(self, server: Measured) -> None:
        """Wait until somebody listens, without connecting: a one-shot server would take that for the client."""
        deadline = time.monotonic() + TIMEOUT
        while self.kind != "pipe" and not _is_listening(self.kind, self.address):
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{server.command} does not listen on {self.address}: {server.output}")
            time.sleep(0.002)

    def close(self, fds: Sequence[int]) -> None:
        """Close our copies of one side's descriptors, once the process has its own."""
        for fd in fds:
            os.close(fd)


FAR = "127.0.0.2"
"""An address of this machine that is taken for one of another."""


@contextlib.contextmanager
def open_link(kind: str, folder: pathlib.Path) -> Iterator[Link]:
    """Make a link of `kind` tcp, far, unix or pipe; a socket's path is removed afterwards.

    One that is far leads to another address, and is taken for one to another machine.
    """
    if kind in ("tcp", "far"):
        host = "127.0.0.1" if kind == "tcp" else FAR
        with socket.create_server((host, 0)) as probe:  # free now, and nobody else asks for ports here
            port = probe.getsockname()[1]
        yield Link(kind, f"{host}:{port}", f"tcp:{host}:{port}", f"tcp:{host}:{port}")
    elif kind == "unix":
        path = folder / f"link-{time.monotonic_ns()}"
        yield Link(kind, str(path), f"unix:{path}", f"unix:{path}")
        path.unlink(missing_ok=True)
    else:
        reader, writer = os.pipe()
        yield Link(kind, "", f"fd:{writer}", f"fd:{reader}", [writer], [reader])


def _is_listening(kind: str, address: str) -> bool:
    """Look into the kernel's tables."""
    if kind == "unix":
        lines = pathlib.Path("/proc/net/unix").read_text().splitlines()
        return any(line.endswith(f" {address}") and line.split()[3] == "00010000" for line in lines)
    port = f":{int(address.rpartition(':')[2]):04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            rows = [line.split() for line in pathlib.Path(table).read_text().splitlines()[1:]]
            if any(row[1].endswith(port) and row[3] == "0A" for row in rows):
                return True
    return False


def figures(wall: float, sender: Cost, receiver: Cost | None = None) -> Mapping[str, float]:
    """Return what a run of both sides cost, by metric."""
    receiver = receiver or Cost(0, 0, 0)
    return {
        "wall": wall,
        "cpu": sender.cpu + receiver.cpu,
        "cpu_sender": sender.cpu,
        "cpu_receiver": receiver.cpu,
        "rss": max(sender.rss, receiver.rss),
        "rss_sender": sender.rss,
        "rss_receiver": receiver.rss,
    }
