# SPDX-License-Identifier: GPL-2.0-or-later
"""Pairs of descriptors with two ends, and how tests wait for what is written to them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest


class Link:
    """Two fds; what is written to `output` comes out of `input`."""

    def __init__(self, kind: str, folder: pathlib.Path) -> None:
        self.kind = kind
        self._sockets: list[socket.socket] = []
        if kind == "pipe":
            self.input, self.output = os.pipe()
            os.set_blocking(self.output, False)
        elif kind == "file":
            self.output = os.open(folder / "stream", os.O_WRONLY | os.O_CREAT)
            self.input = os.open(folder / "stream", os.O_RDONLY)
        else:
            self._sockets = list(socket.socketpair() if kind == "unix" else _tcp_pair())
            self.input, self.output = (each.detach() for each in self._sockets)

    def close_output(self) -> None:
        if self.output >= 0:
            os.close(self.output)
            self.output = -1

    def close_input(self) -> None:
        if self.input >= 0:
            os.close(self.input)
            self.input = -1


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return server.accept()[0], client


@pytest.fixture(params=["tcp", "unix", "pipe", "file"])
def link(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Link]:
    link = Link(request.param, tmp_path)
    yield link
    link.close_output()
    link.close_input()


@pytest.fixture(params=["tcp", "unix", "pipe"])
def waiting(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Link]:
    """Return a link on which one can wait for the other side."""
    link = Link(request.param, tmp_path)
    yield link
    link.close_output()
    link.close_input()


@contextlib.contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Run `work` in a thread and raise what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if raised:
        raise raised[0]


@contextlib.contextmanager
def writing(link: Link, work: Callable[[], None]) -> Iterator[None]:
    """Run `work`, the writer, beside the reader; into a file before it."""
    if link.kind == "file":
        work()
        yield
        return
    with beside(work):
        yield
