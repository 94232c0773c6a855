# SPDX-License-Identifier: GPL-2.0-or-later
"""Gathering the connections of a stream that goes over several: none of them is left open if it fails."""

from __future__ import annotations

import socket

import pytest

from blkmig import channel, errors, savevm
from blkmig.channel import bundle as bundled
from blkmig.channel import link
from blkmig.migration import gathering

BUNDLE = savevm.Bundle(b"i" * savevm.ID_NBYTES, 3)


class Coming:
    """The connections of a source: the first one, and those that come when they are waited for."""

    def __init__(self, *, first_has_said: bytes) -> None:
        self.peers: list[socket.socket] = []
        self.first = self._made(first_has_said)
        self.first.get_byte()
        self._others = [self._made(BUNDLE.preface(index)) for index in (1, 2)]

    def _made(self, begun: bytes) -> channel.InputQEMUFile:
        ours, peer = socket.socketpair()
        ours.setblocking(False)
        self.peers.append(peer)
        return channel.InputQEMUFile(link.Transport(link.Link("test"), ours), begun=begun)

    def next(self, seconds: float) -> channel.InputQEMUFile | None:
        return self._others.pop(0)

    def are_closed(self) -> list[bool]:
        for peer in self.peers:
            peer.setblocking(False)
        return [_is_at_end(peer) for peer in self.peers[1:]]


def _is_at_end(peer: socket.socket) -> bool:
    try:
        return not peer.recv(1)
    except BlockingIOError:
        return False


def test_something_follows_too_early() -> None:
    coming = Coming(first_has_said=b"ab")
    with pytest.raises(errors.StreamError, match="something follows a BUNDLE"):
        gathering.take(BUNDLE, coming.first, lambda word: None, coming.next)
    assert coming.are_closed() == [True, True]


@pytest.mark.parametrize("error", [MemoryError, OSError(24, "Too many open files")])
def test_they_cannot_be_joined(monkeypatch: pytest.MonkeyPatch, error: type[Exception] | Exception) -> None:
    """Without descriptors the stream stays on its first connection; any other error ends it."""

    def failing(*args: object) -> None:
        raise error

    monkeypatch.setattr(bundled, "BundledTransport", failing)
    coming = Coming(first_has_said=b"a")
    said: list[savevm.Bundled] = []
    if isinstance(error, OSError):
        gathering.take(BUNDLE, coming.first, said.append, coming.next)
        assert [word.connections for word in said] == [3, 1]
    else:
        with pytest.raises(MemoryError):
            gathering.take(BUNDLE, coming.first, said.append, coming.next)
    assert coming.are_closed() == [True, True]
