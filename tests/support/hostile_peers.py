# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that act as no honest one does."""

from __future__ import annotations

import random

import pytest

import blkmig
from blkmig import testing

MIB = 1 << 20
HANGS = 30
"""Seconds after which an end that should have ended is said to hang."""
OPEN_RETURN_PATH = b"\x08\0\1\0\0"


def gone(peer: testing.Peer) -> None:
    peer.sock.close()


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A good stream of a disk of 3 MiB; the source has asked for an answer."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "d.raw").write_bytes(random.Random(1).randbytes(3 * MIB))
    blkmig.send([folder / "d.raw"], f"file:{folder}/stream")
    whole = (folder / "stream").read_bytes()
    first = whole.index(b"\1\0\0\0\1\5block")
    return whole[:first] + OPEN_RETURN_PATH + whole[first:]


def swallow(peer: testing.Peer, nbytes: int | None = None) -> None:
    """Read `nbytes`, or until a description has come: then the source has sent everything."""
    seen, count = b"", 0
    while (nbytes is None or count < nbytes) and (piece := peer.read(1 << 16)):
        count += len(piece)
        seen = seen[-64:] + piece
        if nbytes is None and seen.endswith(b"}") and b'"blkmig"' in seen:
            return


def answers(word: bytes, after: int | None) -> testing.Step:
    """Return what says `word` when it has read `after` bytes, and reads on."""

    def act(peer: testing.Peer) -> None:
        swallow(peer, after)
        peer.say(word)
        swallow(peer)
        peer.over.wait()

    return act
