# SPDX-License-Identifier: GPL-2.0-or-later
"""B7: what a call opened is closed when the call ends, whoever keeps its exception, and with no garbage collection.

An exception has a traceback, that has frames, and they have everything: a disk, a channel, buffers that show a mapping.
So nothing may be left to the moment at which those objects go.
"""

from __future__ import annotations

import contextlib
import gc
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import descriptors
import lab
import pytest

import blkmig
from blkmig import channel, errors, migration, params

MIB = lab.MIB


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Leave garbage where it is."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Cutter:
    """A TCP peer that takes a little and then resets the connection."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.uri = f"tcp:127.0.0.1:{self._server.getsockname()[1]}"
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with self._server, self._server.accept()[0] as connection:
            connection.recv(100_000)


def source(tmp_path: Path, name: str = "s") -> Path:
    path = tmp_path / f"{name}.raw"
    if not path.exists():
        path.write_bytes(random.Random(1).randbytes(5 * MIB + 512))
    return path


def lose_the_link(tmp_path: Path, **parameters: Any) -> None:
    cutter = Cutter()
    try:
        blkmig.send([source(tmp_path)], cutter.uri, **parameters)
    finally:
        cutter.thread.join(30)


def send_to_nobody(tmp_path: Path) -> None:
    blkmig.send([source(tmp_path)], f"unix:{tmp_path}/nobody")


def send_nothing(tmp_path: Path) -> None:
    blkmig.send([source(tmp_path), tmp_path / "missing.raw"], f"file:{tmp_path}/stream")


def send_twins(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir(exist_ok=True)
    blkmig.send([source(tmp_path), source(tmp_path / "other")], f"file:{tmp_path}/stream")


def send_into_a_wrong_place(tmp_path: Path) -> None:
    blkmig.send([source(tmp_path)], f"file:{tmp_path}/missing/stream")


def send_until_told(tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if isinstance(event, blkmig.stats.RoundEnded):
            raise ZeroDivisionError

    blkmig.send([source(tmp_path)], f"file:{tmp_path}/stream", on_progress=stop)


def send_by_hand(tmp_path: Path) -> None:
    with blkmig.open_disk(source(tmp_path), writable=False) as disk:
        with blkmig.outgoing([disk], f"file:{tmp_path}/stream") as outgoing:
            outgoing.iterate()
            raise ZeroDivisionError


def receive_from_nobody(tmp_path: Path) -> None:
    blkmig.receive(f"unix:{tmp_path}/r", {"d": tmp_path / "t.raw"}, accept_timeout=0.01)


def receive_half(tmp_path: Path) -> None:
    whole = lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(b"x" * 3 * MIB), name="d")])
    (tmp_path / "half").write_bytes(whole[: 2 * MIB])
    blkmig.receive(f"file:{tmp_path}/half", {"d": tmp_path / "t.raw"}, overwrite=True)


def receive_the_unknown(tmp_path: Path) -> None:
    lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")])
    blkmig.receive(f"file:{tmp_path}/recorded", {"e": tmp_path / "t.raw"}, overwrite=True)


def receive_no_file(tmp_path: Path) -> None:
    blkmig.receive(f"file:{tmp_path}/missing", {"d": tmp_path / "t.raw"}, overwrite=True)


def inspect_half(tmp_path: Path) -> None:
    (tmp_path / "half").write_bytes(b"QEVM\0\0\0\3")
    with channel.listen(f"file:{tmp_path}/half") as listener, listener.accept(timeout=1) as f:
        migration.inspect(f)
        raise ZeroDivisionError


def forecast_without_bandwidth(tmp_path: Path) -> None:
    with blkmig.open_disk(source(tmp_path), writable=False) as disk:
        migration.forecast([disk], params.MigrationParameters(max_bandwidth="1M"), seconds=0.01)
        raise ZeroDivisionError


CALLS: list[Callable[[Path], None]] = [
    lose_the_link,
    lambda path: lose_the_link(path, reading="parallel"),
    lambda path: lose_the_link(path, digests=True),
    send_to_nobody,
    send_nothing,
    send_twins,
    send_into_a_wrong_place,
    send_until_told,
    send_by_hand,
    receive_from_nobody,
    receive_half,
    receive_the_unknown,
    receive_no_file,
    inspect_half,
    forecast_without_bandwidth,
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_what_a_failed_call_opened_is_closed_whoever_keeps_its_exception(tmp_path: Path, number: int) -> None:
    """B7: no descriptor stays, and no lock: a retry in the same process works."""
    source(tmp_path)
    with descriptors.given_back(), without_collection():
        with pytest.raises((errors.MigrationError, ZeroDivisionError)) as kept:
            CALLS[number](tmp_path)
        assert kept.value.__traceback__ is not None
        with blkmig.FileBackend(source(tmp_path), name="d") as disk:  # which takes the locks of a writer
            disk.pwrite(b"free", 0)


def test_the_migration_of_a_kept_exception_can_still_be_cancelled(tmp_path: Path) -> None:
    """A late cancel must not write into a file that got a closed descriptor's number."""
    outgoing = blkmig.outgoing([blkmig.MemoryBackend(bytearray(1), name="d")], f"unix:{tmp_path}/nobody")
    with pytest.raises(errors.ChannelError), outgoing:
        pass
    with (tmp_path / "victim").open("wb") as file:
        outgoing.cancel()
        assert file.fileno() >= 0
    assert (tmp_path / "victim").read_bytes() == b""
