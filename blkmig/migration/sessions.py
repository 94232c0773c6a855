# SPDX-License-Identifier: GPL-2.0-or-later
"""The session files of one end of a migration: one beside its first disk, and those that lead to it from the others.

::

    begin ─ store "noted" (source), "committing", "committed" (target) ─ remove, or close where somebody may ask

Without a place for one of them there is none: what this process decides is then known as long as it lives, and that is
said at the start. What the files say, and who reads them, is in `files/taken.py`.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from .. import aside, disk, errors, logs
from ..files import folder, sessionfile, sessionwords

logger = logs.Logger(__name__)

Side = Literal["source", "target"]


def uri_of(backend: disk.BlockBackend) -> str:
    """Return the URI of a disk that is no file of this machine, as an NBD export; "" if it has none.

    What a disk of another package calls its `uri`, and is no text, is none.
    """
    uri = getattr(backend, "uri", "")
    return uri if isinstance(uri, str) else ""


class SessionFiles:
    """Those of one migration; all of it belongs to the thread of the migration."""

    def __init__(self, side: Side, state_dir: str | None) -> None:
        self._side = side
        self._state_dir = state_dir
        self._stack = contextlib.ExitStack()
        self._files: list[sessionfile.SessionFile] = []
        self._closer: aside.Closer | None = None
        self._disks: Sequence[sessionfile.Disk] = ()
        self._says: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}

    def begin(self, disks: Sequence[sessionfile.Disk]) -> None:
        """Make them, for disks that outlive this process. Blocks.

        Raises :class:`~blkmig.errors.DeviceBusy` if another migration has one of the disks, and
        :class:`~blkmig.errors.DeviceError` if the folder that was said for them cannot be used.
        """
        self._disks, self._closer = disks, aside.Closer()
        try:
            self._make()
        except OSError as error:
            self.remove()
            if self._state_dir is not None:
                doing, first = f"cannot have its session file in {self._state_dir!r}", disks[0].path
                raise errors.DeviceError(doing, device=first, cause=error) from error
            logger.warning(
                "no session file can be made (%s): if this process is killed when the disks are handed over, nothing "
                "on this host says who has them; --state-dir says where it can be",
                error.strerror or error,
            )
        except BaseException:
            self.remove()
            raise

    def _make(self) -> None:
        if self._state_dir is None and not all(disk.is_file for disk in self._disks):
            raise OSError(errno.ENOTSUP, "not every disk is a file")
        self._says = {
            "id": os.urandom(16).hex(),
            "side": self._side,
            "state": "open",
            "disks": [disk.says() for disk in self._disks],
        }
        places = [sessionfile.where(disk.path, self._state_dir) for disk in self._disks]
        for where, name in places:
            place = self._stack.enter_context(contextlib.closing(folder.Folder(where)))
            made = sessionfile.SessionFile(place, name, device=name)
            self._files.append(made)
            leads = {"id": self._says["id"], "state": "see", "first": [str(places[0][0].absolute()), places[0][1]]}
            made.begin(self._says if made is self._files[0] else leads)

    def may_be_asked(self, key: bytes, seconds: float, secret: bytes) -> None:
        """Have the next store say how a source may come again within so many seconds: whoever meets it answers.

        `secret` is what the token was made of that the source has, b"" if it has none. It is not said in a file that
        others may open: then whoever meets it has a token of its own, which the source does not have.
        """
        self._asked = {"key": key.hex(), "seconds": math.ceil(seconds)}
        if secret:
            self._asked["secret"] = secret.hex()

    def has_key(self, key: bytes) -> None:
        """Have the next store say the key of the session: its other end can say what became of it."""
        self._asked = {"key": key.hex()}

    def store(self, state: sessionwords.State, number: int, *, is_durable: bool = True) -> None:
        """Store what was decided of END `number`, where there is a place. Blocks.

        Raises :class:`~blkmig.errors.DeviceError` if that is not on stable storage for sure, where it `is_durable`.
        """
        if self._files:
            with errors.failing("cannot store the session file", device=Path(self._disks[0].path).name):
                asked = dict(self._asked)
                if not self._files[0].is_private:
                    asked.pop("secret", None)
                says = {**self._says, **asked, "state": state, "end": number}
                self._files[0].store(says, is_durable=is_durable)

    def nobody_asks(self) -> None:
        """Store that the source knows what was decided: whoever meets the file does not wait for it. Blocks.

        Raises :class:`~blkmig.errors.DeviceError` if that is not on stable storage for sure.
        """
        for name in sessionwords.OF_WHO_ASKS:
            self._asked.pop(name, None)
        if self._files:
            self.store(self._files[0].says["state"], self._files[0].says["end"])

    @property
    def state(self) -> sessionwords.State | None:
        """Return what was stored last; None without a place."""
        return self._files[0].says["state"] if self._files else None

    def remove(self) -> None:
        """Remove them: nobody needs to know any more. Never raises; what cannot be removed says what is so."""
        files, self._files = self._files, []
        self._let_go([made.unlink() for made in reversed(files)])  # the first one last: till then others lead to it

    def close(self) -> None:
        """Let them go as they are. Twice does no harm."""
        for made in self._files:
            made.close()
        self._files = []
        self._let_go([])

    def _let_go(self, fds: Sequence[int]) -> None:
        closer, self._closer = self._closer, None
        if closer is not None:
            closer.close(fds)
        self._stack.close()
