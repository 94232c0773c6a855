# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that lie while disks are compared: it ends with an error at one end, or with the disk that was sent."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import pytest
import tapped

import blkmig
from blkmig import _core, block, errors, savevm, stats
from blkmig.block import askwords, table
from blkmig.savevm import digestwords

MIB = lab.MIB
PAGE = 4096
SIZE = 3 * MIB + 1536


def outcome(
    tmp_path: Path, *, edit: tapped.Edit = lambda piece: piece, edit_message: tapped.Edit = lambda message: message
) -> str:
    """Send a disk over an old copy through a tap; return what became of it."""
    rng = random.Random(1)
    new = rng.randbytes(SIZE)
    old = bytearray(new)
    for at in (PAGE, MIB + 70_000, SIZE - 1):
        old[at : at + PAGE] = rng.randbytes(len(old[at : at + PAGE]))
    target = tmp_path / "t.raw"
    target.write_bytes(old)
    receiver = lab.Receiver(f"unix:{tmp_path}/r", {"d": target}, in_place=True)
    tap = tapped.Tap(tmp_path, receiver.uri, edit=edit, edit_message=edit_message)
    disk = blkmig.MemoryBackend(bytearray(new), name="d")
    found = ""
    try:
        blkmig.send([disk], tap.uri, idle_timeout=1, reconnect=0)  # the tap takes one connection
    except errors.MigrationError as error:
        found = str(error)
    tap.join()
    try:
        receiver.result()
    except errors.MigrationError as error:
        return found or f"only the receiver failed: {error}"
    assert target.read_bytes() == new
    return found


def messages(change: Callable[[bytes], bytes]) -> tapped.Edit:
    """Return what changes the body of each DIGEST; its checksum is right afterwards."""

    def edit(message: bytes) -> bytes:
        kind, _ = struct.unpack_from(">HH", message)
        if kind != tapped.DIGEST:
            return message
        body = change(message[4:])
        return struct.pack(">HH", kind, len(body)) + body

    return edit


def said(change: Callable[[digestwords.Digest], digestwords.Digest]) -> tapped.Edit:
    return messages(lambda body: change(digestwords.parse_digest(body, 0)).encode())


ANSWERS = {
    "another ASK": said(lambda answer: digestwords.Digest(answer.number + 1, answer.pieces)),
    "too few": said(lambda answer: digestwords.Digest(answer.number, answer.pieces[1:] or (b"", b""))),
    "too many": said(lambda answer: digestwords.Digest(answer.number, (*answer.pieces, b""))),
    "nothing in it": messages(lambda body: body[:8]),
    "a wrong checksum": messages(lambda body: body[:4] + bytes(4) + body[8:]),
}


@pytest.mark.parametrize("edit", ANSWERS.values(), ids=ANSWERS.keys())
def test_answers_that_are_none(tmp_path: Path, edit: tapped.Edit) -> None:
    assert "target answers ASK" in (why := outcome(tmp_path, edit_message=edit)) or "comes back" in why


def test_an_answer_that_comes_twice(tmp_path: Path) -> None:
    why = outcome(tmp_path, edit_message=lambda message: message * (2 if message[:2] == b"\x80\x06" else 1))
    assert "target answers ASK" in why or "nobody has asked for" in why


def test_answers_before_anything_is_asked(tmp_path: Path) -> None:
    answer = digestwords.Digest(1, (b"",)).encode()
    early = struct.pack(">HH", tapped.DIGEST, len(answer)) + answer
    reply = struct.pack(">H", savevm.words.MIG_RP_MSG_REPLY)
    why = outcome(tmp_path, edit_message=lambda message: message + early * 3 * message.startswith(reply))
    assert "target answers ASK" in why or "nobody has asked for" in why


def test_a_target_that_says_that_all_is_other(tmp_path: Path) -> None:
    """Or that nothing can be read there: then all is sent."""
    for piece in (bytes(32), digestwords.UNREAD):
        edit = said(lambda answer, piece=piece: digestwords.Digest(answer.number, (piece,) * len(answer.pieces)))  # type: ignore[misc]
        folder = tmp_path / str(bool(piece))
        folder.mkdir()
        assert outcome(folder, edit_message=edit) == ""


@pytest.mark.parametrize("seed", range(24))
def test_flipped_bits_of_questions_and_answers(tmp_path: Path, seed: int) -> None:
    """Of ASK and SAME in the stream, of DIGEST on the way back."""
    rng = random.Random(seed)
    flipped: list[int] = []
    marks = [struct.pack(">Q", kind << 9 | 0x100) for kind in (askwords.KIND_ASK, askwords.KIND_SAME)]

    def flip(data: bytes, start: int, stop: int) -> bytes:
        flipped.append(at := rng.randrange(start, min(stop, len(data))))
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]

    def edit(piece: bytes) -> bytes:
        at = piece.find(marks[seed % 2])
        return flip(piece, at, at + 40) if at >= 0 and not flipped else piece

    def edit_message(message: bytes) -> bytes:
        if message[:2] != struct.pack(">H", tapped.DIGEST) or flipped:
            return message
        return flip(message, 4, len(message))

    if seed % 3:
        outcome(tmp_path, edit=edit)
    else:
        why = outcome(tmp_path, edit_message=edit_message)
        assert "no DIGEST as it must be" in why or "answers ASK" in why
    assert flipped


# -- a sender that lies ----------------------------------------------------------------------------------------------


class Compared:
    """A target of two blocks that compares, without a stream."""

    def __init__(self) -> None:
        self.disk = blkmig.MemoryBackend(bytearray(b"x" * 2 * MIB), name="d")
        self.device = block.BlkLoadDevice(self.disk, stats.DiskStatistics("d"), size=2 * MIB)
        self.said: list[savevm.Digest] = []
        self.answers = block.Answers(self.said.append)
        self.answers.begin([table.TableDisk(b"d", 2 * MIB)], {b"d": self.device})

    def ask(self, *ranges: askwords.Range, number: int = 1, shift: int = 20) -> None:
        self.answers.ask(askwords.Ask(number, 0, shift, ranges).encode(), 0)

    def same(self, *ranges: askwords.Range) -> None:
        self.answers.close()  # all is answered
        self.answers.same(askwords.encode_same(0, ranges), 0)


def test_the_same_where_nobody_asked() -> None:
    with pytest.raises(errors.StreamError, match="no digest of that"):
        Compared().same((0, MIB))


def test_the_same_beside_what_was_asked() -> None:
    compared = Compared()
    compared.ask((0, 1))
    with pytest.raises(errors.StreamError, match="no digest of that"):
        compared.same((0, 2 * MIB))


def test_finer_digests_vouch_for_nothing() -> None:
    compared = Compared()
    compared.ask((0, 3), shift=16)
    with pytest.raises(errors.StreamError, match="no digest of that"):
        compared.same((0, 65536))


def test_the_same_after_a_write() -> None:
    compared = Compared()
    compared.ask((0, 2))
    compared.answers.close()
    compared.device.load_zero_run(0, 1, 0)
    compared.same((MIB, MIB))
    with pytest.raises(errors.StreamError, match="written since"):
        compared.same((0, MIB))


def test_the_same_twice() -> None:
    compared = Compared()
    compared.ask((0, 2))
    compared.same((0, 2 * MIB))
    assert compared.device.coverage.count_missing(2 * MIB) == 0
    with pytest.raises(errors.StreamError, match="no digest of that"):
        compared.same((0, PAGE))


def test_more_questions_than_there_may_be() -> None:
    """A target that is slow is not asked on and on."""
    compared = Compared()
    with compared.device.turn:
        compared.ask((0, 1))
        compared.ask((0, 1), number=2)
        with pytest.raises(errors.StreamError, match="ASK 3 where 3 is due, with 2 unanswered"):
            compared.ask((0, 1), number=3)
    compared.answers.close()
    assert [answer.number for answer in compared.said[:2]] == [1, 2]


def test_questions_out_of_order() -> None:
    compared = Compared()
    with pytest.raises(errors.StreamError, match="ASK 2 where 1 is due"):
        compared.ask((0, 1), number=2)
    compared.answers.close()


def test_what_cannot_be_read_has_no_digest() -> None:
    class Broken(blkmig.MemoryBackend):
        def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
            if offset == MIB:
                raise errors.DeviceError("cannot read", device=self.name, cause="it is broken")
            return super().read_block(blk, offset, nbytes)

    compared = Compared()
    compared.device.backend = Broken(bytearray(b"x" * 2 * MIB), name="d")
    compared.ask((0, 2))
    with pytest.raises(errors.StreamError, match="no digest of that"):
        compared.same((MIB, MIB))
    [answer] = compared.said
    assert answer.pieces[0]
    assert answer.pieces[1] is digestwords.UNREAD


# -- a link that was lost --------------------------------------------------------------------------------------------


def test_nothing_of_a_lost_link_vouches() -> None:
    """Neither a digest that was said, nor a part of a block that was settled; and ASKs are counted from 1 again."""
    compared = Compared()
    compared.ask((0, 2))
    compared.answers.close()
    assert len(compared.said) == 1
    compared.same((0, PAGE))
    compared.answers.link_lost()
    for offset in (0, PAGE, MIB):
        with pytest.raises(errors.StreamError, match="no digest of that was asked for"):
            compared.same((offset, PAGE))
    compared.answers.link_lost()
    compared.ask((0, 1))
    compared.ask((1 * MIB, 1), number=2)
    compared.answers.close()
    compared.same((0, 2 * MIB))
    assert [answer.number for answer in compared.said] == [1, 1, 2]
    assert compared.device.coverage.count_missing(2 * MIB) == 0


def test_what_was_settled_stays_so() -> None:
    """A block that has come has come, on whatever link; and it may be settled again."""
    compared = Compared()
    compared.ask((0, 2))
    compared.answers.close()
    compared.same((0, MIB))
    compared.answers.link_lost()
    assert compared.device.coverage.missing(2 * MIB) == [(1, 1)]
    compared.ask((0, 2))
    compared.answers.close()
    compared.same((0, 2 * MIB))
    assert compared.device.coverage.count_missing(2 * MIB) == 0


def test_no_answer_of_a_lost_link_is_said_on_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is in the middle of a block, and another question waits."""
    compared = Compared()
    reads, goes_on = threading.Event(), threading.Event()
    read = compared.device.read_to_compare

    def slow(*args: Any, **options: Any) -> bool:
        reads.set()
        assert goes_on.wait(10)
        return read(*args, **options)

    monkeypatch.setattr(compared.device, "read_to_compare", slow)
    compared.ask((0, 2))
    compared.ask((0, 1), number=2)
    assert reads.wait(10)
    threading.Timer(0.05, goes_on.set).start()
    compared.answers.link_lost()
    assert not compared.said
    compared.ask((0, 1))
    compared.answers.close()
    assert [(answer.number, len(answer.pieces)) for answer in compared.said] == [(1, 1)]
