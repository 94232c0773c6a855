# SPDX-License-Identifier: GPL-2.0-or-later
"""A qemu-nbd that blkmig starts: it serves one image over one connection, and ends with that connection.

qemu-nbd inherits the listening socket, so blkmig can connect at once. The socket's name is removed as soon as the one
connection is made::

    blkmig                                 qemu-nbd
      bind, listen ──── socket as fd 3 ────► opens the image (and locks it), accepts
      connect ─────────────────────────────► serves
      unlink the socket
      close ───────────────────────────────► nobody connected any more: closes the image, ends

The last arrow is also what happens when blkmig is killed: the kernel closes its connection.
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

from .. import children, errors
from ..disk import identity
from ..files import lockholders
from . import qemuimg
from . import uri as nbd_uri

CLOSE_TIMEOUT = 60.0
"""Seconds that a qemu-nbd may take to write out its image's tables."""

HURRY_TIMEOUT = 5.0
"""The same after a failure or a cancel, when qemu-nbd may be frozen."""

MAX_FOLDER = 80
"""The most bytes of the folder's path: that of the socket in it may have 107."""

_SPAWN = 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&0 </dev/null'
"""Starts a program with an inherited socket, as systemd does. A shell is needed, because LISTEN_PID must be the number
of the process that the program gets."""


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
            qemuimg.find_program("qemu-nbd", device=self._device),
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
        kind = qemuimg.refusal_of(text)
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
