# SPDX-License-Identifier: GPL-2.0-or-later
"""Chunks over several connections: whatever is sent comes out in order, and what cannot be is found."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator

import pytest

from blkmig import channel, errors
from blkmig.channel import link, stripes

SECONDS = 30.0


@contextlib.contextmanager
def receiving(count: int) -> Iterator[tuple[list[socket.socket], channel.InputQEMUFile]]:
    """Yield the far ends of so many connections, and the stream that comes over them."""
    with contextlib.ExitStack() as stack:
        files, peers = [], []
        for _ in range(count):
            near, far = socket.socketpair()
            near.setblocking(False)
            peers.append(stack.enter_context(far))
            files.append(channel.InputQEMUFile(link.Transport(link.Link("test:"), near)))
        channel.join(files[0], files[1:])
        stack.callback(files[0].abort)
        files[0].set_idle_timeout(SECONDS)
        yield peers, files[0]


def chunk(number: int, data: bytes) -> bytes:
    return stripes.HEADER.pack(number, len(data)) + data


def end_all(peers: list[socket.socket], count: int) -> None:
    for peer in peers:
        peer.sendall(stripes.HEADER.pack(count, 0))
        peer.shutdown(socket.SHUT_WR)


def test_who_waits_for_an_answer_sees_that_nothing_leaves() -> None:
    """The connection of the answers is another one than that which broke, and its descriptor stays open."""
    with contextlib.ExitStack() as stack:
        files, peers = [], []
        for _ in range(3):
            near, far = socket.socketpair()
            near.setblocking(False)
            peers.append(stack.enter_context(far))
            files.append(channel.OutputQEMUFile(link.Transport(link.Link("test:"), near)))
        back = files[0].return_path()
        assert back is not None
        back.set_idle_timeout(SECONDS, first=SECONDS)
        channel.split(files[0], files[1:])
        stack.callback(files[0].abort)
        assert files[0].why_broken() == ""
        peers[1].close()
        files[0].put_buffer(bytes(64 << 10))
        files[0].put_buffer(bytes(64 << 10))
        with contextlib.suppress(errors.ChannelError):
            for _ in range(100):
                files[0].put_buffer(bytes(stripes.CHUNK_NBYTES))
        with pytest.raises(errors.TruncatedStream):
            back.get_byte()
        assert "Broken pipe" in files[0].why_broken()


@pytest.mark.parametrize("seed", range(20))
def test_any_split_of_any_pieces(seed: int) -> None:
    """The oracle is what was sent. Pieces of chunks come in any portions, on connections of any order."""
    rng = random.Random(seed)
    count = rng.randrange(2, 17)
    datas = [rng.randbytes(rng.choice((1, 100, 5000, stripes.CHUNK_NBYTES))) for _ in range(rng.randrange(1, 60))]
    queues: list[bytes] = [b""] * count
    for number, data in enumerate(datas):
        queues[rng.randrange(count)] += chunk(number, data)
    with receiving(count) as (peers, f):

        def send() -> None:
            left = [memoryview(queue + stripes.HEADER.pack(len(datas), 0)) for queue in queues]
            while any(left):
                index = rng.choice([index for index in range(count) if left[index]])
                peers[index].setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    left[index] = left[index][peers[index].send(left[index][: rng.choice((1, 7, 4096, 1 << 20))]) :]
            for peer in peers:
                peer.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        whole = b"".join(datas)
        assert f.get_buffer(len(whole)) == whole, f"seed {seed}"
        assert f.at_eof()
        sender.join(SECONDS)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_sent_is_received(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randrange(2, 17)
    pieces = [rng.randbytes(rng.choice((1, 3000, 1 << 18, 1 << 20))) for _ in range(20)]
    with contextlib.ExitStack() as stack:
        outs, ins = [], []
        for _ in range(count):
            ends = socket.socketpair()
            for end in ends:
                end.setblocking(False)
            outs.append(channel.OutputQEMUFile(link.Transport(link.Link("test:"), ends[0])))
            ins.append(channel.InputQEMUFile(link.Transport(link.Link("test:"), ends[1])))
        outs[0].put_buffer(b"before")
        outs[0].flush()
        assert ins[0].get_buffer(6) == b"before"
        channel.split(outs[0], outs[1:])
        channel.join(ins[0], ins[1:])
        stack.callback(ins[0].abort)

        def send() -> None:
            for piece in pieces:
                outs[0].put_buffer(piece)
                outs[0].flush()
            outs[0].close()

        sender = threading.Thread(target=send)
        sender.start()
        for piece in pieces:
            assert ins[0].get_buffer(len(piece)) == piece, f"seed {seed}"
        assert ins[0].at_eof()
        assert ins[0].position == outs[0].position == 6 + sum(map(len, pieces))
        sender.join(SECONDS)


@pytest.mark.parametrize(
    ("streams", "why"),
    [
        ([chunk(0, b"a") + chunk(0, b"b"), b""], "chunk 0 comes behind chunk 0"),
        ([chunk(0, b"a"), chunk(0, b"b")], "1 chunks have come, and the next one has the number 0"),
        ([chunk(1, b"a"), chunk(2, b"b")], "chunk 0 comes on none of them"),
        ([stripes.HEADER.pack(0, stripes.CHUNK_NBYTES + 1), b""], "262145 bytes, and 262144 are the most"),
        ([stripes.HEADER.pack(0, 0xFFFFFFFF), b""], "are the most"),
        ([stripes.HEADER.pack(1, 0), stripes.HEADER.pack(1, 0)], "chunk 0 comes on none of them"),
        ([stripes.HEADER.pack(0, 0), stripes.HEADER.pack(1, 0)], "chunk 0 comes on none of them"),
        ([chunk(0, b"a") + stripes.HEADER.pack(1, 0), stripes.HEADER.pack(0, 0)], "the next one has the number 0"),
    ],
)
def test_what_cannot_be(streams: list[bytes], why: str) -> None:
    with receiving(2) as (peers, f):
        for peer, stream in zip(peers, streams, strict=True):
            peer.sendall(stream)
        with pytest.raises(errors.ChannelError, match=why):
            f.get_buffer(1 << 20)


@pytest.mark.parametrize("nbytes", [0, 5, 12, 15])
def test_an_end_of_one_is_a_loss(nbytes: int) -> None:
    """At any byte, and also between two chunks."""
    with receiving(3) as (peers, f):
        peers[0].sendall(chunk(0, b"abcd"))
        peers[1].sendall(chunk(1, b"efgh")[:nbytes])
        peers[1].shutdown(socket.SHUT_WR)
        with pytest.raises(errors.TruncatedStream, match="one of its 3 connections was cut off"):
            f.get_buffer(1000)


def test_who_has_gone_is_noticed_although_another_one_is_waited_for() -> None:
    """A chunk of it has come, and is not the next: nothing is read there."""
    with receiving(2) as (peers, f):
        peers[1].sendall(chunk(1, b"x"))
        raised: list[BaseException] = []

        def read() -> None:
            try:
                f.get_byte()
            except errors.ChannelError as error:
                raised.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        peers[1].close()
        reader.join(SECONDS)
        assert len(raised) == 1


@pytest.mark.parametrize("seed", range(100))
def test_garbage_ends(seed: int) -> None:
    """No garbage is taken for a whole stream, and none holds a receiver up when its connections end."""
    rng = random.Random(seed)
    stream = bytearray(chunk(0, b"ab") + chunk(1, b"c") + stripes.HEADER.pack(2, 0))
    for _ in range(rng.randrange(1, 4)):
        stream[rng.choice((rng.randrange(12), rng.randrange(len(stream))))] ^= 1 << rng.randrange(8)
    with receiving(2) as (peers, f):
        peers[0].sendall(stream)
        peers[1].sendall(stripes.HEADER.pack(3, 0))
        for peer in peers:
            peer.shutdown(socket.SHUT_WR)
        with pytest.raises(errors.MigrationError, match=r"cut off|do not fit|reset"):
            f.get_buffer(1 << 20)
