# SPDX-License-Identifier: GPL-2.0-or-later
"""What systemd is told, if it has started this command and wants to know (``Type=notify``): ready, and how far it is.

Datagrams to the socket that the environment names, as sd_notify(3) describes them; no library is needed. Nothing here
blocks, and what cannot be told is left out.
"""

from __future__ import annotations

import contextlib
import os
import socket

from .. import stats, texts
from . import progress

STATUS_SECONDS = 1.0
STATUS_COLUMNS = 80


class Notifier:
    """Tells systemd of one migration; it does nothing where nobody listens."""

    def __init__(self, address: str | None = None) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        self._last = -STATUS_SECONDS

    @property
    def is_wanted(self) -> bool:
        """Whether somebody listens."""
        return self._address[:1] in ("/", "@")

    def tell(self, **fields: str) -> None:
        """Send fields such as READY and STATUS."""
        if not self.is_wanted:
            return
        lines = "".join(f"{name}={texts.printable(value)}\n" for name, value in fields.items())
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(lines.encode("utf-8", "backslashreplace"), address)

    def __call__(self, event: stats.Event) -> None:
        """Tell how far it is, once a second, and each state."""
        match event:
            case stats.StatusChanged(status="active"):
                self.tell(READY="1", STATUS="active")
            case stats.StatusChanged(status=status):
                self.tell(STATUS=status)
            case stats.Progressed() | stats.Received() if event.elapsed - self._last >= STATUS_SECONDS:
                self._last = event.elapsed
                self.tell(STATUS=progress.describe(event, STATUS_COLUMNS))
