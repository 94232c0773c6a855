# SPDX-License-Identifier: GPL-2.0-or-later
"""The first question and the end in four messages, as a relay hears them.

They are read by who knows docs/wire/blkmig.md and nothing of the package.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import lab
import pytest
import section_reader
import valve

import blkmig

PAGE = Path(__file__).parents[2] / "docs" / "wire" / "blkmig.md"
PONG, HELLO, REPLY, READY, DONE, ALIVE, SESSION = 2, 0x8001, 0x8002, 0x8003, 0x8007, 0x8008, 0x800A


class Recorder(valve.Valve):
    """A relay that keeps what was said in both directions."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.stream, self.words = bytearray(), bytearray()
        super().__init__(folder, uri)

    def sent(self, piece: bytes) -> None:
        self.stream += piece

    def heard(self, piece: bytes) -> None:
        self.words += piece


def recorded(folder: Path, writers_after: str) -> Recorder:
    """Return what both ends say when the disk `a` of 1 MiB, all zeros, is sent."""
    receiver = lab.Receiver(f"unix:{folder}/s", {"a": folder / "a.raw"})
    relay = Recorder(folder, receiver.uri)
    with blkmig.MemoryBackend(bytearray(1 << 20), name="a") as disk:
        blkmig.send([disk], relay.uri, writers_after=writers_after)
    receiver.result()
    return relay


def words_of(said: bytes) -> list[tuple[int, bytes]]:
    """Return the messages on the return path, but for signs of life and what was there before."""
    found = []
    while said:
        kind, nbytes = struct.unpack(">HH", said[:4])
        found.append((kind, said[4 : 4 + nbytes]))
        assert len(found[-1][1]) == nbytes
        said = said[4 + nbytes :]
    return [each for each in found if each[0] not in (PONG, ALIVE, HELLO, REPLY, SESSION)]


@pytest.mark.parametrize(("writers_after", "kind", "number"), [("release", 0, 1), ("refuse", 1, 2)])
def test_the_plain_reader_hears_four_messages(tmp_path: Path, writers_after: str, kind: int, number: int) -> None:
    relay = recorded(tmp_path, writers_after)
    reader = section_reader.SectionReader(bytes(relay.stream)).read()
    (end, about), commit = reader.ends()
    assert about == reader.description, "what ends the stream as well"
    assert (end, commit) == (number, (number, kind))
    flushes = [(READY, struct.pack(">I", each)) for each in range(1, number)]
    ending = [(READY, struct.pack(">I", number)), (DONE, struct.pack(">IH", number, 0))]
    assert words_of(bytes(relay.words)) == flushes + ending


def test_the_question_and_its_answer(tmp_path: Path) -> None:
    """A receiver that has all libraries, and neither compares nor verifies."""
    relay = recorded(tmp_path, "release")
    shown = re.findall(r"^([0-9a-f ]+?) +(source|target) +(?:PING|HELLO)", PAGE.read_text(), re.MULTILINE)
    assert [side for _, side in shown] == ["source", "target"]
    assert all(bytes.fromhex(row) in {"source": relay.stream, "target": relay.words}[side] for row, side in shown)


def test_the_example(tmp_path: Path) -> None:
    """Its rows are what is said, as far as they go."""
    relay = recorded(tmp_path, "refuse")
    text = PAGE.read_text().partition("<!-- example: handover -->")[2].partition("```text\n")[2].partition("```")[0]
    at = {">": 0, "<": 0}
    for row in text.splitlines():
        side, shown = row[0], bytes.fromhex("".join(re.findall(r"\b[0-9a-f]{2}\b", row[2:52])))
        said = bytes({">": relay.stream, "<": relay.words}[side])
        found = said.find(shown, at[side])
        assert found >= 0, row
        at[side] = found + len(shown)
