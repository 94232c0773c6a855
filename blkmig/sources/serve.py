# SPDX-License-Identifier: GPL-2.0-or-later
"""A live disk for people without a VM: a qemu-storage-daemon with everything that a migration needs.

::

    NBD client ──► export NAME ──► throttle filter NAME-limit ──► node NAME ──► node NAME-file ──► IMAGE
                                                                      ▲
    blkmig send qemu:QMP,nbd=URI ──── bitmap, read-only export ───────┘

The user mounts and writes the export. Its writes can be slowed down by the filter, and held by closing the export. The
listening sockets are made here, and the daemon inherits them, so that they exist before it runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from .. import children, errors, paths
from ..disk import identity
from ..files import file, lockholders
from ..nbd import uri as nbd_uri
from . import opening as open_disks

PROGRAM = "qemu-storage-daemon"
MAX_NAME = 24
"""The most letters of a served disk's name: QEMU allows 31, and the longest suffix must fit, too."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*", re.ASCII)
STOP_SECONDS = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class ServedDisk:
    """One image, and its name for NBD clients and on the wire."""

    name: str
    image: open_disks.FileDescription

    def __post_init__(self) -> None:
        """Refuse what QEMU would refuse with a less clear message."""
        if not _NAME.fullmatch(self.name) or len(self.name) > MAX_NAME:
            raise errors.ParameterError(
                f"{self.name!r} cannot be the name of a served disk: it must begin with a letter, then letters, "
                f"digits, '-', '.' and '_', at most {MAX_NAME} in all; write NAME=IMAGE"
            )
        if self.image.base is not None:
            raise errors.ParameterError(f"disk {self.name!r}: base= is not for a served image; it names its own")


class StorageDaemon:
    """A running qemu-storage-daemon that offers `disks` for writing at `nbd` (``unix:PATH`` or ``tcp:HOST:PORT``).

    `qmp` is the path of the socket for blkmig, by default that of `nbd` with ``.qmp`` appended. Use it in a ``with``:
    leaving it ends the daemon, which writes everything out before. Raises :class:`~blkmig.errors.DeviceError`.
    """

    def __init__(self, disks: Iterable[ServedDisk], nbd: str, *, qmp: str | None = None) -> None:
        self.disks = list(disks)
        self.nbd_uri = ""
        if not isinstance(nbd, str) or paths.why_no_name(nbd):
            raise _no_place(nbd)
        if qmp is not None:
            paths.check("qmp", qmp)
        self.qmp_path = str(pathlib.Path(qmp or _default_qmp(nbd)).absolute())
        for disk in self.disks:
            _check_image(disk)
        _check_apart(self.disks)
        with errors.failing("cannot be served", device=self._names()):  # of this process: no descriptors, no room
            self._set_up(nbd)

    def _set_up(self, nbd: str) -> None:
        with contextlib.ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            with _listen(nbd) as nbd_socket, _listen(f"unix:{self.qmp_path}") as qmp_socket:
                self._sockets = [self.qmp_path]
                if nbd.startswith("unix:"):
                    self._sockets.append(_absolute(nbd).removeprefix("unix:"))
                for path in self._sockets:
                    stack.callback(_remove, pathlib.Path(path), os.lstat(path))
                self.nbd_uri = _nbd_uri(nbd_socket)
                self._nbd_address = _absolute(nbd) if nbd.startswith("unix:") else self.nbd_uri
                self._process = self._start(nbd_socket.fileno(), qmp_socket.fileno())
            stack.callback(self._stop)
            self._check_running()
            self._stack = stack.pop_all()

    def _start(self, nbd_fd: int, qmp_fd: int) -> subprocess.Popen[bytes]:
        program = shutil.which(PROGRAM)
        if program is None:
            cause = f"{PROGRAM} is not installed; it comes with qemu-system-common or qemu-utils (Debian, Ubuntu)"
            raise errors.DeviceError("cannot be served", device=self._names(), cause=f"{cause} or qemu-img (Fedora)")
        command = [program, *arguments(self.disks, nbd_fd=nbd_fd, qmp_fd=qmp_fd)]
        # In a process group of its own, Ctrl-C does not reach it: this process hears Ctrl-C, and ends it properly.
        process, self._tie = children.start(
            command,
            remove=self._sockets,
            pass_fds=(nbd_fd, qmp_fd),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            process_group=0,
        )
        return process

    def _check_running(self) -> None:
        """Return when the daemon answers. If it has ended instead, raise an error with its message."""
        with socket.socket(socket.AF_UNIX) as probe_socket:
            probe_socket.settimeout(STOP_SECONDS)
            with contextlib.suppress(OSError):
                probe_socket.connect(self.qmp_path)
                if probe_socket.recv(1):
                    return
        raise self._ended()

    def wait(self) -> None:
        """Wait for ever; if the daemon ends by itself, raise :class:`~blkmig.errors.DeviceError`."""
        self._process.wait()
        raise self._ended()

    def send_line(self, target: str = "tcp:HOST:PORT") -> str:
        """Return the command that sends the disks."""
        source = f"qemu:{_escape(self.qmp_path)},nbd={_escape(self._nbd_address)}"
        return shlex.join(["blkmig", "send", source, target])

    def export_uri(self, disk: ServedDisk) -> str:
        """Return the URI for NBD clients of the disk."""
        return nbd_uri.with_export(self.nbd_uri, disk.name)

    def close(self) -> None:
        """End the daemon and wait for it. Twice does no harm."""
        self._stack.close()

    def __enter__(self) -> Self:
        """Return the daemon itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the daemon."""
        self.close()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._tie.undo()

    def _ended(self) -> errors.DeviceError:
        status = self._process.wait()
        self._log.seek(0)
        text = " ".join(self._log.read().decode(errors="replace").split()).removeprefix(f"{PROGRAM}: ")
        kind = errors.DeviceBusy if "lock" in text else errors.DeviceError
        if kind is errors.DeviceBusy:
            text += "".join(lockholders.describe(disk.image.path) for disk in self.disks)
        return kind("cannot be served", device=self._names(), cause=text or f"{PROGRAM} ended with status {status}")

    def _names(self) -> str:
        return ", ".join(disk.name for disk in self.disks)


def arguments(disks: Sequence[ServedDisk], *, nbd_fd: int, qmp_fd: int) -> list[str]:
    """Return the daemon's arguments: a monitor and an NBD server on listening sockets, and the disks behind them."""
    found = ["--nbd-server", f"addr.type=fd,addr.str={nbd_fd},max-connections=0"]
    for disk in disks:
        name, limit = disk.name, f"{disk.name}-limit"
        is_device = pathlib.Path(disk.image.path).is_block_device()
        protocol = _options(
            driver="host_device" if is_device else "file",
            node_name=f"{name}-file",
            filename=str(pathlib.Path(disk.image.path).absolute()),
            discard="unmap",
        )
        protocol += ",cache.direct=on" if disk.image.direct else ""
        protocol += "" if disk.image.locking or is_device else ",locking=off"
        found += ["--object", _options(qom_type="throttle-group", id=limit)]
        found += ["--blockdev", protocol]
        image = {"driver": disk.image.format or "raw", "node_name": name, "file": f"{name}-file", "discard": "unmap"}
        found += ["--blockdev", _options(**image)]
        # Discards must pass through every node on the way.
        throttle = _options(driver="throttle", node_name=limit, throttle_group=limit, file=name, discard="unmap")
        found += ["--blockdev", throttle]
        found += ["--export", _options(type="nbd", id=name, node_name=limit, name=name, writable="on")]
    # The monitor comes last, because a client that it greets expects everything else to be there.
    return [*found, "--chardev", f"socket,id=qmp,fd={qmp_fd},server=on,wait=off", "--monitor", "chardev=qmp"]


def _options(**values: str) -> str:
    return ",".join(f"{key.replace('_', '-')}={_escape(value)}" for key, value in values.items())


def _escape(text: str) -> str:
    return text.replace(",", ",,")


def _remove(path: pathlib.Path, made: os.stat_result) -> None:
    """Remove what was made at `path`, unless something else is there by now."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(path.lstat(), made):
            path.unlink()


def _check_apart(disks: Sequence[ServedDisk]) -> None:
    """Refuse two disks of one name, and two of one file: what is written to one would not be known of the other."""
    for index, one in enumerate(disks):
        for other in disks[:index]:
            if one.name == other.name:
                raise errors.ParameterError(f"two disks are called {one.name!r}: give them names, as in NAME=IMAGE")
            if identity.is_same(*(identity.KnownFile.of(each.image.path) for each in (other, one))):
                why = f"disks {other.name!r} and {one.name!r} are the same file, {one.image.path!r}: serve it once"
                raise errors.ParameterError(why)


def _check_image(disk: ServedDisk) -> None:
    """Raise if somebody else uses the image, or if it does not look raw although no other format was said.

    QEMU itself would let two daemons write one image, because both share it with their NBD clients.
    """
    path, image = disk.image.path, disk.image
    file.FileBackend(path, name=disk.name, format="raw" if image.format else None, locking=image.locking).close()


def _default_qmp(nbd: str) -> str:
    if not nbd.startswith("unix:"):
        raise errors.ParameterError("with an NBD server on TCP, say where the QMP socket is to be: --qmp PATH")
    return f"{nbd.removeprefix('unix:')}.qmp"


def _no_place(address: object) -> errors.ParameterError:
    return errors.ParameterError(f"{address!r} is no place to listen: say unix:PATH or tcp:HOST:PORT")


def _listen(address: str) -> socket.socket:
    """Return a listening socket at ``unix:PATH`` or ``tcp:HOST:PORT``; the file of a dead socket is replaced.

    The socket is non-blocking. QEMU's main loop and its monitor thread may both try to accept the same client, and the
    later one must not wait for the next client.
    """
    kind, _, rest = address.partition(":")
    host, _, port = rest.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 1 << 16
    if kind not in ("unix", "tcp") or not rest or (kind == "tcp" and not is_port):
        raise _no_place(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with errors.failing("cannot listen", device=address):
            if kind == "unix":
                listener = _listen_unix(rest)
            else:
                listener = socket.create_server((host.strip("[]"), int(port)), family=family)
    except UnicodeError as error:
        raise errors.DeviceError("cannot listen", device=address, cause=f"{host!r} is no host: {error}") from error
    listener.setblocking(False)
    return listener


def _listen_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        if pathlib.Path(path).is_socket() and not _answers(path):
            pathlib.Path(path).unlink()
        listener.bind(path)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def _absolute(unix: str) -> str:
    return f"unix:{pathlib.Path(unix.removeprefix('unix:')).absolute()}"


def _nbd_uri(listener: socket.socket) -> str:
    if listener.family == socket.AF_UNIX:
        return nbd_uri.unix_uri(str(pathlib.Path(listener.getsockname()).absolute()))
    name: Any = listener.getsockname()
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"nbd://{host}:{name[1]}"
