# SPDX-License-Identifier: GPL-2.0-or-later
"""What a terminal shows of lines and of a status below them, and that no terminal holds the work up."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import random
import re
import select
import sys
import threading
from collections.abc import Iterator

import pytest
import screens

from blkmig.cli import display


@contextlib.contextmanager
def on(terminal: screens.Terminal, monkeypatch: pytest.MonkeyPatch) -> Iterator[display.Display]:
    """Yield a display on `terminal`."""
    with open(terminal.follower, "w", encoding="utf-8", closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        shown = display.Display()
        with shown.unblocked():
            yield shown


def frame(shown: display.Display, *lines: str) -> None:
    shown.frame(lines, list(map(len, lines)))


def test_frames_of_any_height_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk: whatever was drawn before, the screen has all lines, and the last frame below them."""
    for seed in range(5):
        rnd, terminal = random.Random(seed), screens.Terminal(40, 200)
        said: list[str] = []
        drawn: list[str] = []
        with on(terminal, monkeypatch) as shown:
            for step in range(60):
                if rnd.random() < 0.4:
                    said.append(f"line {step}")
                    shown.line(said[-1])
                else:
                    drawn = [
                        f"{step}.{row} " + "x" * rnd.randrange(1, 30) for row in range(rnd.choice([0, 1, 1, 3, 9]))
                    ]
                    frame(shown, *drawn)
                terminal.until([*said, *drawn].__eq__)
            frame(shown)
        terminal.finish()
        assert terminal.rows() == said, f"seed {seed}"
        assert terminal.is_cursor_at_begin


def test_the_width_may_change_below_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most terminals break lines again: what was drawn is removed as a whole, and a line more rather than less."""
    terminal = screens.Terminal(80, 30)
    with on(terminal, monkeypatch) as shown:
        for number in range(10):
            shown.line(f"line {number}")
        frame(shown, *["x" * 79] * 3)
        terminal.until(lambda rows: len(rows) == 13)
        terminal.resize(40, 30)
        frame(shown, *["y" * 39] * 3)
        rows = terminal.until(lambda rows: any("y" in row for row in rows))
        assert [row for row in rows if "x" in row] == []
        assert rows[:7] == [f"line {number}" for number in range(7)]
        terminal.resize(120, 30)
        frame(shown, *["z" * 119] * 3)
        rows = terminal.until(lambda rows: any("z" in row for row in rows))
        assert [row for row in rows if "x" in row or "y" in row] == []
        frame(shown)
    terminal.finish()
    assert [row for row in terminal.rows() if not row.startswith("line")] == []


def test_a_terminal_that_nobody_reads_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are left out; what has begun comes whole, before the next one."""
    leader, follower = os.openpty()
    with open(follower, "w", encoding="utf-8", closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        shown = display.Display()
        with shown.unblocked():
            for number in range(2000):
                frame(shown, *[f"{number:04} " + "x" * 90] * 30)
            monkeypatch.setattr(display, "PATIENCE_SECONDS", 0.0)
            shown.line("an error", patience=0.0)
            pieces, last = b"", "9999 " + "x" * 90
            for _ in range(1000):
                if last.encode() in pieces:
                    break
                if select.select([leader], [], [], 1.0)[0]:
                    pieces += os.read(leader, 65536)
                frame(shown, last)
    os.close(leader)
    os.close(follower)
    assert len(pieces) < 100 * 30 * 95
    rows = [row for row in re.sub(r"\x1b\[\d*[A-Z]|\r", "", pieces.decode()).split("\n") if "x" in row]
    rows = [row[place : place + 95] for row in rows for place in range(0, len(row), 95)]
    assert {row.split("x")[0] for row in rows} <= {f"{number:04} " for number in (*range(2000), 9999)}
    assert [row for row in rows[:-1] if row.count("x") != 90] == []  # the last one may be read in part
    assert last in rows


def test_the_flags_of_the_terminal_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = screens.Terminal()
    with on(terminal, monkeypatch) as shown:
        frame(shown, "x")
        assert not fcntl.fcntl(terminal.follower, fcntl.F_GETFL) & os.O_NONBLOCK
    terminal.finish()


@pytest.mark.parametrize("kind", ["closed", "gone", "full", "none", "object"])
def test_a_stderr_that_fails_is_no_error(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream: object = open(writing, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if kind == "closed":
        os.close(writing)
    elif kind == "full":
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, writing)
        os.close(full)
    elif kind == "none":
        stream = None
    elif kind == "object":
        stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    shown = display.Display()
    with shown.unblocked():
        frame(shown, "one", "two")
        shown.line("an error")
        shown.status("bar")
        shown.close()
        frame(shown, "never")
        assert (shown.size(), shown.is_in_background()) == (None, False)
    monkeypatch.undo()
    if kind == "object":
        assert isinstance(stream, io.StringIO)
        assert "an error" in stream.getvalue()
        assert "never" not in stream.getvalue()
    if kind != "closed":
        os.close(writing)


def test_a_signal_waits_for_no_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that hears signals may find another one writing, which hangs."""
    hangs, goes_on = threading.Event(), threading.Event()

    class Hanging(io.StringIO):
        def write(self, text: str) -> int:
            if text == "hang\n":
                hangs.set()
                goes_on.wait()
            return super().write(text)

    stream = Hanging()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(display, "CLOSING_SECONDS", 0.0)
    shown = display.Display()
    thread = threading.Thread(target=shown.line, args=("hang",))
    thread.start()
    hangs.wait()
    assert not shown.interject("ends")
    shown.close()
    goes_on.set()
    thread.join()
    assert stream.getvalue() == "hang\n"


def test_a_process_that_ends_at_once_leaves_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = screens.Terminal()
    with on(terminal, monkeypatch) as shown:
        assert not shown.interject("ends"), "nothing is drawn, so it may be written without"
        frame(shown, "one", "two")
        assert shown.interject("ends")
        terminal.until(["ends", "one", "two"].__eq__)
        shown.close()
        frame(shown, "never")
    terminal.finish()
    assert terminal.rows() == ["ends"]
