# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that are not raw: qcow2, vmdk, vhdx and the others, through a qemu-nbd that lives as long as the disk is open.

The listening socket is handed to qemu-nbd, so there is nothing to wait for, and as soon as the one connection is made
its name is removed::

    blkmig                                 qemu-nbd
      bind, listen ──── socket as fd 3 ────► opens the image (and locks it), accepts
      connect ─────────────────────────────► serves
      unlink the socket
      close ───────────────────────────────► nobody connected any more: closes the image, ends

The last arrow is also what happens when blkmig is killed: the kernel closes its connection. The format is always said,
for the image and for a base that is named; nothing is guessed from bytes that a guest could have written. (A qcow2
image that names its own backing file without that file's format makes QEMU guess; naming the base avoids it.)
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

from .. import children, errors, units
from ..disk import identity
from ..files import folder, lockholders
from . import backend as nbd
from . import connection as nbd_connection
from . import uri as nbd_uri

CLOSE_TIMEOUT = 60.0
"""Seconds that a qemu-nbd may take to write out its image's tables."""

HURRY_TIMEOUT = 5.0
"""As many after a failure or a cancel: it may be frozen."""

SECTOR = 512

MAX_FOLDER = 80
"""Bytes of a folder's path that leave room for a socket's, which has 107."""

_BUSY = 'Failed to get (shared )?"'
_WRONG_FORMAT = (
    r"not in .* format|unknown (driver|file format)|invalid \w+ image|invalid .*(signature|header)"
    r"|^Could not open '.*': Invalid argument$"
)

_SPAWN = 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&0 </dev/null'
"""Socket activation as systemd does it, which wants to know the process id before there is a process."""


class ImageBackend(nbd.NbdBackend):
    """The disk in an image file of any format that QEMU knows.

    `format`, and `base_format` if a `base` is named, are QEMU's names. `base` replaces the backing file that the image
    names. What the image holds on top of its backing files is what `next_allocated` tells. With `create_size`, a
    missing image is made: on top of `base` if there is one, and then 0 means as large as that. A new qcow2 image
    without a base can be resized. With `is_placeholder` the new image takes the place of the empty file at `path`.
    Other parameters are those of :class:`~.file.FileBackend`.

    Needs qemu-nbd, and qemu-img to make images. Opening raises :class:`~blkmig.errors.DeviceBusy` if a QEMU
    uses the image, :class:`~blkmig.errors.FormatError` if it is of another format.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        format: str,
        name: str | None = None,
        base: str | os.PathLike[str] | None = None,
        base_format: str = "raw",
        read_only: bool = False,
        writable: bool = True,
        create_size: int | None = None,
        direct: bool = False,
        locking: bool = True,
        is_placeholder: bool = False,
    ) -> None:
        units.check_flags(read_only=read_only, writable=writable, direct=direct, locking=locking)
        create_size = None if create_size is None else units.index(create_size)
        self._path = pathlib.Path(path)
        self._format = format
        self._direct = direct
        name = self._path.stem if name is None else name
        self._is_new = create_size is not None and (is_placeholder or not os.path.lexists(path))
        if self._is_new:
            create_image(
                self._path,
                create_size or 0,
                format=format,
                device=name,
                base=base,
                base_format=base_format,
                is_placeholder=is_placeholder,
            )
        self._options = image_options(self._path, format=format, locking=locking)
        if base is not None:
            backing = image_options(pathlib.Path(base), format=base_format, locking=locking)
            self._options |= {f"backing.{key}": value for key, value in backing.items()}
        layers = [self._path] if base is None else [self._path, pathlib.Path(base)]
        self._is_tracked = writable and not read_only
        with errors.failing("cannot be opened", device=name):
            self.files = tuple(identity.KnownFile.of(layer, is_tracked=self._is_tracked) for layer in layers)
        self._server: QemuNbd | None = None
        super().__init__("", name=name, read_only=read_only, writable=writable)
        self.is_growable = self._is_new and format == "qcow2" and base is None
        self._image_size = self.size

    def _connect(self, uri: str, **connect: Any) -> None:
        """Start a server and connect to it; there is no other `uri`."""
        with self.failing("cannot be opened"):  # no descriptors, no processes, no room for the socket
            server = QemuNbd(self._options, device=self.name, writable=self._writable, direct=self._direct)
        with server.connecting() as uri:
            super()._connect(uri, read_piece=nbd_connection.QEMU_READ_PIECE, **connect)
        self._server = server
        # Backing files that the image itself names are known to QEMU alone.
        known = {file.key for file in self.files}
        opened = server.open_files(is_tracked=self._is_tracked)
        self.files = (*self.files, *(file for file in opened if file.key not in known))

    def _renew(self) -> None:
        """Be of use again after a `cancel`: a server whose client has gone ends, so there is a new one."""
        self._cancelled = False
        if not self._connection.renew():
            self.check_open()
            self._connection.close()
            self._close_server(check=False)
            self._connect("")

    def resize(self, size: int) -> None:
        """Give a new image another size. It grows by leaps and is cut to size by `flush`."""
        self.check_open()
        size = units.index(size)
        if not self.is_growable or self._trackers:
            super().resize(size)
        if size > self._image_size:
            self._resize_image(max(size, 2 * self._image_size))
        self.size = size

    def _resize_image(self, size: int) -> None:
        self._writes.finish_all()
        self._connection.close()
        self._close_server()
        resize_image(self._path, size, format=self._format, device=self.name)
        self._connect("")
        self._image_size = self.size

    def flush(self) -> None:
        """Wait for the disk, and for the directory entry of a new image."""
        if self.is_growable and self._image_size >= self.size + SECTOR:
            size = self.size
            self._resize_image(size)
            self.size = size
        super().flush()
        if self._is_new:
            with self.failing("cannot flush"):
                folder.sync_folder(self._path.parent)

    def _close(self) -> None:
        super()._close()
        if self._passages.is_foreign:
            return
        self._close_server(check=not self._cancelled)

    def _close_server(self, *, check: bool = True) -> None:
        """End the server in good order; without `check`, as after a cancel, also one that does not come to its end."""
        if self._server is not None:
            server, self._server = self._server, None
            server.close(check=check)


class QemuNbd:
    """A qemu-nbd process with one image open, for one connection."""

    def __init__(self, options: dict[str, str], *, device: str, writable: bool, direct: bool) -> None:
        self._device = device
        self._writable = writable
        self._files = [value for key, value in options.items() if key.endswith("file.filename")]
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="blkmig-", dir=socket_folder()))  # for this user only
        self._socket_path = str(self._folder / "nbd")
        with contextlib.ExitStack() as undo:
            undo.callback(self._forget_files)
            self._stderr = undo.enter_context(tempfile.TemporaryFile())  # closed in `close`
            self._process = self._start(options, direct)
            undo.pop_all()

    def _start(self, options: dict[str, str], direct: bool) -> subprocess.Popen[bytes]:
        command = [
            find_program("qemu-nbd", device=self._device),
            "--image-opts",
            ",".join(f"{key}={value.replace(',', ',,')}" for key, value in options.items()),
            "--allocation-depth",
            "--discard=unmap",
            "--detect-zeroes=off",
            f"--cache={'none' if direct else 'writeback'}",
        ]
        if not self._writable:
            command.append("--read-only")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._socket_path)
            listener.listen()
            process, self._tie = children.start(
                ["/bin/sh", "-c", _SPAWN, "sh", *command],
                remove=[self._socket_path],
                restore_signals=False,  # SIGXFSZ stays ignored: a limit on file sizes is an error, no sudden death
                stdin=listener.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                start_new_session=True,  # Ctrl-C is for blkmig; this one is to end when its client has gone
            )
        return process

    def open_files(self, *, is_tracked: bool) -> Iterator[identity.KnownFile]:
        """Yield the files and devices that qemu-nbd has open by now: the image, and all that it stands on."""
        own = os.fstat(self._stderr.fileno())
        with contextlib.suppress(OSError):  # another user's, or no /proc: then nobody can tell
            for entry in pathlib.Path(f"/proc/{self._process.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    about = entry.stat()
                    file = identity.KnownFile(str(entry.readlink()), about, is_tracked)
                    if file.holds_bytes and not os.path.samestat(about, own):
                        yield file

    @contextlib.contextmanager
    def connecting(self) -> Iterator[str]:
        """Give the URI to connect to in the body of a ``with``; if that fails, stop and say why."""
        try:
            yield nbd_uri.unix_uri(self._socket_path)
        except errors.DeviceError as error:
            refusal = self._refusal()
            self.close(check=False)
            raise refusal or error from error
        except BaseException:
            self.close(check=False)
            raise
        finally:
            self._forget_files()

    def _refusal(self) -> errors.DeviceError | None:
        """Return why qemu-nbd ended by itself, None if it did not."""
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return None
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace").strip()
        text = re.sub(r"^qemu-nbd: (Failed to blk_new_open '.*?': (?=\S))?", "", text, count=1)
        cause = " ".join(text.split()) or f"qemu-nbd ended with status {self._process.returncode}"
        kind = refusal_of(text)
        if kind is errors.DeviceBusy:
            cause += "".join(map(lockholders.describe, self._files))
        return kind("cannot be opened", device=self._device, cause=cause)

    def close(self, *, check: bool = True) -> None:
        """Wait until qemu-nbd, whose client has gone, has closed the image. Twice does no harm.

        With `check`, raise :class:`~blkmig.errors.DeviceError` if it did not end well.
        """
        if self._stderr.closed:
            return
        if not check:
            self._process.terminate()
        try:
            self._process.wait(CLOSE_TIMEOUT if check else HURRY_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()
        self._tie.undo()
        if check and self._writable and self._process.returncode:
            cause = f"its qemu-nbd ended with status {self._process.returncode}"
            raise errors.DeviceError("cannot be closed", device=self._device, cause=cause)

    def _forget_files(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def socket_folder() -> str:
    """Return where sockets go for a moment: with other temporary files, unless that makes their paths too long."""
    place = tempfile.gettempdir()
    return place if len(os.fsencode(place)) <= MAX_FOLDER else "/tmp"


def refusal_of(text: str) -> type[errors.DeviceError]:
    """Return the kind of error that QEMU's words mean."""
    if re.search(_BUSY, text):
        return errors.DeviceBusy
    return errors.FormatError if re.search(_WRONG_FORMAT, text, re.IGNORECASE) else errors.DeviceError


def image_options(path: pathlib.Path, *, format: str, locking: bool) -> dict[str, str]:
    """Return QEMU's block options of an image."""
    is_device = False
    with contextlib.suppress(OSError):  # QEMU says why it cannot be opened
        is_device = identity.KnownFile.of(path).is_device
    protocol = "host_device" if is_device else "file"
    options = {"driver": format, "file.driver": protocol, "file.filename": str(path.absolute())}
    return options if locking else options | {"file.locking": "off"}


def create_image(
    path: pathlib.Path,
    size: int,
    *,
    format: str,
    device: str,
    base: str | os.PathLike[str] | None = None,
    base_format: str = "raw",
    is_placeholder: bool = False,
) -> None:
    """Make an image of `size` bytes, rounded up to what the format counts in; on a base, 0 means its size.

    It is for this user only. Refuses an existing `path`, unless that is a placeholder for it.
    """
    if not is_placeholder and os.path.lexists(path):
        raise errors.DeviceError("cannot be made", device=device, cause=f"{path} exists")
    arguments = ["create", "-q", "-f", format]
    if base is not None:
        arguments += ["-b", str(pathlib.Path(base).absolute()), "-F", base_format]
    sizes = [] if base is not None and not size else [str(size)]
    run_qemu_img("cannot be made", *arguments, str(path.absolute()), *sizes, device=device)


def resize_image(path: pathlib.Path, size: int, *, format: str, device: str) -> None:
    """Make an image that nobody has open `size` bytes long, rounded up to a sector."""
    size = -(-size // SECTOR) * SECTOR
    run_qemu_img(
        "cannot be resized", "resize", "-q", "-f", format, "--shrink", str(path.absolute()), str(size), device=device
    )


def run_qemu_img(doing: str, *arguments: str, device: str) -> None:
    """Run qemu-img, or raise what its words mean."""
    command = [find_program("qemu-img", device=device), *arguments]
    with errors.failing(doing, device=device):
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, umask=0o077, restore_signals=False
        )
    if result.returncode:
        text = " ".join(result.stderr.decode(errors="replace").split()).removeprefix("qemu-img: ")
        kind = refusal_of(text)
        if kind is errors.DeviceBusy:
            text += "".join(lockholders.describe(word) for word in arguments if word.startswith("/"))
        raise kind(doing, device=device, cause=text)


def find_program(program: str, *, device: str) -> str:
    """Return the path of one of QEMU's tools, or say which package has it, or that nobody could say how it ended."""
    with errors.failing("cannot be opened", device=device):
        children.require_statuses()
    found = shutil.which(program)
    if found is None:
        cause = f"{program} is not installed; it comes with qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL)"
        raise errors.DeviceError("cannot be opened", device=device, cause=cause)
    return found
