# SPDX-License-Identifier: GPL-2.0-or-later
"""The official ``qemu.qmp`` library as blkmig needs it: quieter, quicker, and with a gate for commands.

The library logs errors that it also raises, and things that blkmig does on purpose, such as giving up a wait. So its
log goes to a logger that is silent unless somebody adds a handler: ``blkmig.qemu.qmp_client``.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from .. import errors

logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())  # without any handler Python would print to stderr
logger.propagate = False


class Gate:
    """The gate at which :meth:`QmpConnection.withhold` withholds commands."""

    def __init__(self) -> None:
        self.is_shut = True
        self.opened = asyncio.Event()  # the same for the loop's thread, a moment later


def import_library(device: str) -> Any:
    """Import the library. If it is missing, raise :class:`~blkmig.errors.DeviceError`, which says what to install."""
    try:
        import qemu.qmp
    except ImportError as error:
        missing = "the Python library qemu.qmp is missing: pip install 'blkmig[qemu]'"
        raise errors.DeviceError("cannot be driven", device=device, cause=missing) from error
    return qemu.qmp


def client_class(library: Any) -> Any:
    """Return the library's client class with these changes:

    * It does not log every message, because formatting them takes time even if nobody reads the log.
    * Its commands have short ids, because each byte takes time, and stop at the gate of `QmpConnection.withhold`.
    * It does not take the first message after qmp_capabilities for the answer. QEMU may send an event before it. Right
      after another client, QEMU may also greet twice, or answer that client: blkmig's first command has no id.
    """

    class Client(library.QMPClient):  # type: ignore[misc]
        gate: Gate | None = None
        """The gate at which the next command is withheld."""

        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.logger = logger
            self._gate_of: dict[str, Gate | None] = {}

        def fileno(self) -> int:
            """Return the socket's descriptor."""
            return int(self._writer.get_extra_info("socket").fileno())

        async def _recv(self) -> Any:
            is_greeted = self.greeting is not None
            message = await super()._recv()
            while self.runstate is library.Runstate.CONNECTING and (
                "event" in message or (is_greeted and "QMP" in message) or message.get("id") is not None
            ):
                message = await super()._recv()
            return message

        def _get_exec_id(self) -> str:
            self._execute_id += 1
            name = str(self._execute_id)
            self._gate_of[name] = self.gate
            return name

        async def _send(self, msg: Any) -> None:
            gate = self._gate_of.pop(msg.get("id"), None)  # messages that the library sends by itself have no id
            if gate is None:
                await super()._send(msg)
                return
            text = bytes(msg)
            self._writer.write(text[:-1])
            await gate.opened.wait()
            self._writer.write(text[-1:])

        def _cb_outbound(self, msg: Any) -> Any:
            return msg

        def _cb_inbound(self, msg: Any) -> Any:
            return msg

    return Client
