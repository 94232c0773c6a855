# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of NBD requests share: connections to a server in this process, and what it answers."""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Callable
from typing import Any

import pytest
from nbd_servers import READ, Asked, FakeServer

from blkmig import errors
from blkmig.nbd import connection as nbd_connection
from blkmig.nbd import requests


def connect(server: FakeServer, **options: Any) -> nbd_connection.NbdConnection:
    return nbd_connection.NbdConnection(server.uri, device="disk", **options)


def expect(code: int) -> contextlib.AbstractContextManager[pytest.ExceptionInfo[errors.DeviceError]]:
    """Expect a DeviceError with this errno."""
    return pytest.raises(errors.DeviceError, check=lambda error: error.errno == code)


def contents_at(offset: int, nbytes: int) -> bytes:
    """Return what the servers of these tests hold: bytes that tell their place."""
    start = offset // 8
    words = b"".join(number.to_bytes(8, "big") for number in range(start, (offset + nbytes + 7) // 8))
    return words[offset - start * 8 :][:nbytes]


def answer_all(asked: Asked) -> None:
    asked.reply(contents_at(asked.offset, asked.nbytes) if asked.type == READ else b"")


@pytest.fixture
def in_flight(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Return what is released for each request that a client in this process has started."""
    started, add = threading.Semaphore(0), requests.Requests.add

    def noted(those: requests.Requests, cookie: int, request: requests.Request) -> None:
        add(those, cookie, request)
        started.release()

    monkeypatch.setattr(requests.Requests, "add", noted)
    return started


def await_requests(in_flight: threading.Semaphore, count: int = 1) -> None:
    """Return when so many more were started."""
    for _ in range(count):
        assert in_flight.acquire(timeout=20)


def before_waiting(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> None:
    """Have `call` called whenever somebody is about to wait for bytes, in what is opened from now on."""
    real = select.poll

    class Poll:
        def __init__(self) -> None:
            self._poll = real()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._poll, name)

        def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
            call()
            return self._poll.poll(timeout)

    monkeypatch.setattr(select, "poll", Poll)


class KeepAll:
    """Keeps requests until `wanted` of them have come, then answers them in the `order` said."""

    def __init__(self, wanted: int, order: Callable[[list[Asked]], list[Asked]]) -> None:
        self._wanted = wanted
        self._order = order
        self._kept: list[Asked] = []

    def __call__(self, asked: Asked) -> None:
        self._kept.append(asked)
        if len(self._kept) == self._wanted:
            for one in self._order(self._kept):
                answer_all(one)
            self._kept.clear()
