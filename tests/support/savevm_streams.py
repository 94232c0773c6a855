# SPDX-License-Identifier: GPL-2.0-or-later
"""Migration streams put together by hand, byte for byte, and channels to read them from."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

from blkmig import channel, errors, savevm

START, PART, END, FULL = 1, 2, 3, 4
HEADER = b"QEVM\0\0\0\3"
EOF = b"\0"
EOS = b"\0\0\0\0\0\0\0\2"
EMPTY_DESCRIPTION = b"\6\0\0\0\2{}"


def word(value: int) -> bytes:
    return struct.pack(">Q", value)


def counted(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return bytes([len(data)]) + data


def configuration(machine: str = "", *subsections: bytes) -> bytes:
    return b"\7" + struct.pack(">I", len(machine)) + machine.encode() + b"".join(subsections)


def subsection(name: str, body: bytes, *, version: int = 1) -> bytes:
    return b"\5" + counted(name) + struct.pack(">I", version) + body


def capabilities(*names: str) -> bytes:
    return subsection("configuration/capabilities", struct.pack(">I", len(names)) + b"".join(map(counted, names)))


def page_bits(bits: int) -> bytes:
    return subsection("configuration/target-page-bits", struct.pack(">I", bits))


def footer(section_id: int) -> bytes:
    return struct.pack(">BI", 0x7E, section_id)


def start(
    section_id: int,
    idstr: str,
    payload: bytes = EOS,
    *,
    instance: int = 0,
    version: int = 1,
    kind: int = START,
    footers: bool = True,
) -> bytes:
    head = struct.pack(">BI", kind, section_id) + counted(idstr) + struct.pack(">II", instance, version)
    return head + payload + (footer(section_id) if footers else b"")


def part(section_id: int, payload: bytes = EOS, *, kind: int = PART, footers: bool = True) -> bytes:
    return struct.pack(">BI", kind, section_id) + payload + (footer(section_id) if footers else b"")


def end(section_id: int, payload: bytes = EOS, *, footers: bool = True) -> bytes:
    return part(section_id, payload, kind=END, footers=footers)


def command(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">BHH", 8, number, len(data)) + data


def description(text: bytes) -> bytes:
    return struct.pack(">BI", 6, len(text)) + text


@contextlib.contextmanager
def reading(data: bytes) -> Iterator[channel.InputQEMUFile]:
    """Give a one-way channel that holds `data` and nothing more."""
    with os.fdopen(os.memfd_create("stream"), "r+b", buffering=0) as file:
        file.write(data)
        file.seek(0)
        with accepting(file.fileno()) as f:
            yield f


@contextlib.contextmanager
def conversation() -> Iterator[tuple[channel.InputQEMUFile, socket.socket]]:
    """Give a two-way channel and the socket of the source at its other end."""
    near, far = socket.socketpair()
    with near, far, accepting(near.fileno()) as f:
        near.close()  # the channel has a descriptor of its own
        yield f, far


@contextlib.contextmanager
def accepting(fd: int) -> Iterator[channel.InputQEMUFile]:
    """Read from a descriptor of ours."""
    with channel.listen(f"fd:{fd}") as listener:
        f = listener.accept(timeout=None)
    try:
        yield f
    finally:
        f.abort()


def send_in_background(far: socket.socket, *pieces: bytes, close: bool = False) -> threading.Thread:
    """Send `pieces` one after the other, then nothing; the caller joins."""

    def send() -> None:
        for piece in pieces:
            far.sendall(piece)
        if close:
            far.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


class CountingHandlers(savevm.SaveVMHandlers):
    """A section whose payloads are words up to an EOS, as those of `block` are; keeps the sum of its words."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.total = 0
        self.loads = 0

    def load_setup(self) -> None:
        self.calls.append("load_setup")

    def load_state(self, f: channel.InputQEMUFile, version_id: int) -> None:
        self.loads += 1
        while True:
            if savevm.looks_like_footer(f):
                raise errors.SourceReadError("no EOS", position=f.position)
            value = f.get_be64()
            if value == 2:
                return
            self.total += value

    def load_cleanup(self) -> None:
        self.calls.append("load_cleanup")


class Recorder(savevm.StreamObserver):
    """An observer that keeps everything it is told: for short streams only."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def configuration(self, configuration: savevm.Configuration, position: int) -> None:
        self.events.append(("configuration", position))

    def command(self, command: int, nbytes: int, position: int) -> None:
        self.events.append(("command", position, command, nbytes))

    def section_start(
        self, kind: str, idstr: str, instance_id: int, version_id: int, section_id: int, position: int
    ) -> None:
        self.events.append((kind, position, idstr, section_id))

    def section_end(self, section_id: int, position: int) -> None:
        self.events.append(("section_end", position, section_id))

    def device_state(self, nbytes: int, position: int) -> None:
        self.events.append(("device_state", position, nbytes))

    def eof(self, position: int) -> None:
        self.events.append(("eof", position))

    def vmdescription(self, description: dict[str, Any] | None, nbytes: int, position: int) -> None:
        self.events.append(("vmdescription", position, nbytes))


def load(
    data: bytes, handlers: savevm.SaveVMHandlers | None = None, *, observer: savevm.StreamObserver | None = None
) -> savevm.LoadedStream:
    """Load `data` with `handlers` as its section `block`."""
    state = savevm.SaveState()
    state.register_savevm_live("block", 0, 1, handlers or CountingHandlers())
    with reading(data) as f:
        return savevm.LoadVM(state, f, observer=observer).loadvm()
