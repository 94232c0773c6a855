# SPDX-License-Identifier: GPL-2.0-or-later
"""What is skipped of a file is not read; what is found behind it, and where the file ends, is the same."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from pathlib import Path

import pytest

from blkmig import _input

CAPACITY = 1024
HUGE = 1 << 40


def outcome(fd: int, steps: list[tuple[str, int]]) -> list[object]:
    """Return what each step gives, and where the stream is then; the last one may be its end."""
    stream, found = _input.InputBuffer(fd, CAPACITY), list[object]()
    try:
        for what, nbytes in steps:
            found.append(stream.skip(nbytes) if what == "skip" else stream.get_buffer(nbytes))
            found.append(stream.position)
    except EOFError as error:
        found.append(str(error))
    return found


def by_a_pipe(content: bytes, steps: list[tuple[str, int]]) -> list[object]:
    """Return the outcome where everything has to be read."""
    readable, writable = os.pipe()

    def write() -> None:
        with open(writable, "wb") as file:  # noqa: PTH123
            with contextlib.suppress(BrokenPipeError):
                file.write(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        return outcome(readable, steps)
    finally:
        os.close(readable)
        writer.join()


@pytest.mark.parametrize("seed", range(60))
def test_walks(tmp_path: Path, seed: int) -> None:
    """Skips around the staging buffer's size, gets between them; the file may be too short, or ends exactly there."""
    rng = random.Random(seed)
    steps = [
        (rng.choice(("skip", "skip", "get")), rng.choice((0, 1, 7, CAPACITY - 1, CAPACITY, CAPACITY + 1, 5000, 70_000)))
        for _ in range(rng.randrange(1, 12))
    ]
    total = sum(nbytes for _, nbytes in steps)
    content = rng.randbytes(max(0, total + rng.choice((0, 0, 1, 5000, -1, -2, -5000))))
    (tmp_path / "stream").write_bytes(content)
    fd = os.open(tmp_path / "stream", os.O_RDONLY)
    try:
        assert outcome(fd, steps) == by_a_pipe(content, steps), f"seed {seed}: {steps}, {len(content)} bytes"
    finally:
        os.close(fd)


def test_what_is_skipped_is_not_read(tmp_path: Path) -> None:
    """A terabyte of it, from an offset on."""
    with (tmp_path / "stream").open("w+b") as file:
        file.truncate(HUGE + 100)
        file.seek(HUGE + 90)
        file.write(b"behind it.")
        file.flush()
        os.lseek(file.fileno(), 10, os.SEEK_SET)
        stream = _input.InputBuffer(file.fileno(), CAPACITY)
        assert stream.get_buffer(1) == b"\0"
        stream.skip(HUGE + 79)
        assert stream.get_buffer(10) == b"behind it."
        assert stream.position == HUGE + 90
        with pytest.raises(EOFError, match=f"ends at byte {HUGE + 90},"):
            stream.get_buffer(1)


def test_more_than_a_file_can_have(tmp_path: Path) -> None:
    (tmp_path / "stream").write_bytes(b"x" * 5000)
    fd = os.open(tmp_path / "stream", os.O_RDONLY)
    stream = _input.InputBuffer(fd, CAPACITY)
    with pytest.raises(EOFError, match="ends at byte 5000,"):
        stream.skip((1 << 64) - 1)
    os.close(fd)


def test_a_file_that_was_cut_meanwhile(tmp_path: Path) -> None:
    """Shorter than where the stream is by now."""
    with (tmp_path / "stream").open("w+b") as file:
        file.write(b"x" * 50_000)
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        stream = _input.InputBuffer(file.fileno(), CAPACITY)
        stream.skip(30_000)
        file.truncate(20_000)
        with pytest.raises(EOFError, match="ends at byte 30000,"):
            stream.skip(2000)
