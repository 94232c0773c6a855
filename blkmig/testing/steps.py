# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of a script: each function returns one, for the list of a :class:`~blkmig.testing.Peer`."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from . import faults, peer

_RESET = struct.pack("ii", 1, 0)  # linger for no time at all


def say(data: bytes) -> peer.Step:
    """Send `data`."""
    return lambda played: played.say(data)


def expect(data: bytes) -> peer.Step:
    """Read as many bytes as `data` has; anything else is a ScriptError."""

    def step(played: peer.Peer) -> None:
        came = _read(played, len(data), f"{data!r}")
        if came != data:
            raise peer.ScriptError(f"expected {data!r}, and {came!r} came")

    return step


def take(nbytes: int) -> peer.Step:
    """Read `nbytes`, whatever they are. A stream that ends before is a ScriptError."""

    def step(played: peer.Peer) -> None:
        _read(played, nbytes, f"{nbytes} bytes")

    return step


def take_until(pattern: bytes) -> peer.Step:
    """Read until `pattern` has come, and nothing behind it. A stream that ends before is a ScriptError."""

    def step(played: peer.Peer) -> None:
        seen = b""
        while (at := seen.find(pattern)) < 0:
            piece = _piece(played, f"{pattern!r}")
            seen = seen[-len(pattern) + 1 :] + piece if len(pattern) > 1 else piece
        played.unread(seen[at + len(pattern) :])

    return step


def take_all() -> peer.Step:
    """Read until the stream ends."""

    def step(played: peer.Peer) -> None:
        while played.read():
            pass

    return step


def half_close() -> peer.Step:
    """Say that nothing more comes; what the other end says can still be read."""
    return lambda played: played.sock.shutdown(socket.SHUT_WR)


def end() -> peer.Step:
    """Close the link in good order."""
    return lambda played: played.sock.close()


def reset() -> peer.Step:
    """Reset the link, as the system does for a program that was killed with unread data. TCP only."""

    def step(played: peer.Peer) -> None:
        played.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        played.sock.close()

    return step


def silence() -> peer.Step:
    """Neither read nor say anything, with the link open, until the peer is left."""

    def step(played: peer.Peer) -> None:
        played.over.wait()

    return step


def wait_for(event: threading.Event) -> peer.Step:
    """Go on when `event` is set. That it is not, within `SECONDS`, is a ScriptError."""

    def step(played: peer.Peer) -> None:
        if not event.wait(faults.SECONDS):
            raise peer.ScriptError(f"what was waited for did not come within {faults.SECONDS:g} s")

    return step


def _read(played: peer.Peer, nbytes: int, what: str) -> bytes:
    came = bytearray()
    while len(came) < nbytes:
        came += _piece(played, what, nbytes - len(came))
    return bytes(came)


def _piece(played: peer.Peer, what: str, most: int = peer.PIECE) -> bytes:
    """Return what comes next, something."""
    played.sock.settimeout(faults.SECONDS)
    try:
        piece = played.read(most)
    except TimeoutError:
        raise peer.ScriptError(f"waited for {what}, and nothing came for {faults.SECONDS:g} s") from None
    finally:
        with contextlib.suppress(OSError):
            played.sock.settimeout(None)
    if not piece:
        raise peer.ScriptError(f"waited for {what}, and the stream ended")
    return piece
