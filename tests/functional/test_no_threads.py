# SPDX-License-Identifier: GPL-2.0-or-later
"""A system that gives no more threads (C7): the work is done without them, or ends with an error of ours."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import lab
import pytest

import blkmig
from blkmig import errors
from blkmig.migration import watchdog

MIB = lab.MIB

NAMES = (
    "watchdog", "lobby", "barrier", "digest", "read-back", "read", "zstd", "prove", "store", "heartbeat", "word", "send"
)  # fmt: skip


def refuse(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Have threads of these names not begin; return the names of those that were to begin."""
    start, wanted = threading.Thread.start, list[str]()

    def refused(thread: threading.Thread) -> None:
        wanted.append(thread.name)
        if thread.name.removeprefix("blkmig-") in names:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    return wanted


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["verified", "compared", "compressed", "parallel"])
def test_one_that_cannot_be_had(name: str, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "d.raw").write_bytes(os.urandom(3 * MIB))
    (tmp_path / "old.raw").write_bytes(bytes(3 * MIB))
    here: dict[str, Any] = {"verified": {"digests": True}, "compressed": {"compress": "zstd"}}.get(way, {})
    there: dict[str, Any] = {"verified": {"verify": True}, "compared": {"delta": {"d": tmp_path / "old.raw"}}}.get(
        way, {}
    )
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "copy.raw"}, **there)
    refuse(monkeypatch, name)
    ends: list[BaseException] = []
    try:
        reading = "parallel" if way == "parallel" else "auto"
        blkmig.send([tmp_path / "d.raw"], receiver.uri, reading=reading, reconnect=0, **here)
    except errors.MigrationError as error:
        ends.append(error)
        if name == "watchdog":  # the sender has not come to where it connects
            receiver.migration.cancel()
    try:
        receiver.result()
    except errors.MigrationError as error:
        ends.append(error)
    if not ends:
        assert (tmp_path / "copy.raw").read_bytes() == (tmp_path / "d.raw").read_bytes()
    else:
        assert any("no more threads can be had" in str(error) for error in ends), ends


def test_a_bound_is_kept_without_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    called = threading.Event()
    watching = watchdog.Watchdog(0.01)
    wanted = refuse(monkeypatch, "alarm")
    try:
        watching.call_after(0, called.set)
        assert called.wait(30)
    finally:
        watching.close()
    assert wanted == ["blkmig-watchdog", "blkmig-alarm"]
