# SPDX-License-Identifier: GPL-2.0-or-later
"""Which threads hang: none that waits for a pipe, a socket, a lock or nobody. `tests/functional/test_hanging_files.py`
has those that do."""

from __future__ import annotations

import os
import platform
import socket
import threading
from pathlib import Path

import pauses
import pytest

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


SPLICE, SENDFILE, COPY = {"aarch64": (76, 71, 285)}.get(platform.machine(), (275, 40, 326))


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (f"{SPLICE} {{pipe}} 0x0 {{file}} 0x7f", ("write", True)),
        (f"{SPLICE} {{file}} 0x7f {{pipe}} 0x0", ("read", True)),
        (f"{SPLICE} {{pipe}} 0x0 {{pipe}} 0x0", None),
        (f"{SENDFILE} {{pipe}} {{file}} 0x7f 0x1000", ("read", True)),
        (f"{COPY} {{file}} 0x7f {{file}} 0x7f", ("write", True)),
        ("running", None),
        ("-1 0x7f 0x7f", None),
    ],
)
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="calls have other numbers here")
def test_which_file_of_a_call(
    call: str, found: tuple[str, bool] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a receiver takes as pages comes from a pipe, which is no file, and goes to one."""
    reading, writing = os.pipe()
    with (tmp_path / "d.raw").open("wb") as file:
        task = tmp_path / "tasks" / "1"
        task.mkdir(parents=True)
        (task / "stat").write_bytes(b"1 (\xfc) b) S 1")  # a name may be in any encoding
        (task / "status").write_bytes(b"Name:\t\xfc\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t9\n")
        (task / "syscall").write_text(call.format(pipe=hex(reading), file=hex(file.fileno())) + "\n")
        monkeypatch.setattr(hanging, "TASKS", task.parent)
        seen = [(each.sleep, each.verb, each.path == file.name) for each in hanging.calls()]
    os.close(reading)
    os.close(writing)
    assert seen == ([] if found is None else [("7", *found)])


def test_what_is_said() -> None:
    assert str(hanging.Call(1, "1", "0 0x3", "read", "/d.raw")).startswith("a call that is to read a file, '/d.raw', ")
    assert str(hanging.Call(1, "1", "-1", "", "")).startswith("an access to a file does not return")
