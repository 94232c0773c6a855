# SPDX-License-Identifier: GPL-2.0-or-later
"""Which threads hang: none that waits for a pipe, a socket, a lock or nobody. `tests/functional/test_hanging_files.py`
has those that do."""

from __future__ import annotations

import os
import socket
import threading

import pauses

from blkmig import hanging


def test_who_waits_for_others_does_not_hang() -> None:
    (reading, writing), (near, far), done = os.pipe(), socket.socketpair(), threading.Event()
    waiting = [pauses.Call(lambda: os.read(reading, 1)), pauses.Call(lambda: near.recv(1)), pauses.Call(done.wait)]
    try:
        before = hanging.calls()
        assert not any(call.is_over(0.01) for call in waiting)
        assert not before & hanging.calls()
    finally:
        done.set()
        far.sendall(b"x")
        os.write(writing, b"x")
        for call in waiting:
            call.result()
        for end in (near, far):
            end.close()
        os.close(reading)
        os.close(writing)


def test_paths_are_those_of_open_files(tmp_path: os.PathLike[str]) -> None:
    with open(os.path.join(tmp_path, "x"), "wb") as file:  # noqa: PTH118, PTH123
        assert hanging.paths()[file.fileno()] == file.name


def test_what_is_said() -> None:
    assert str(hanging.Call(1, "1", "0 0x3", "read", "/d.raw")).startswith("a call that is to read a file, '/d.raw', ")
    assert str(hanging.Call(1, "1", "-1", "", "")).startswith("an access to a file does not return")
