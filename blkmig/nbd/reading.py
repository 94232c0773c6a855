# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads that are on their way from a server, several at once, whose views nobody may write into afterwards."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterable
from typing import Protocol

from .. import errors
from . import requests

READS_AHEAD = 8
"""Requests of one reader that are in flight together."""


class Reader(Protocol):
    """A connection."""

    def start_read(self, view: memoryview, offset: int) -> requests.Request:
        """Start one request."""

    def finish_read(self, request: requests.Request, offset: int, nbytes: int) -> None:
        """Wait for it."""

    def close(self) -> None:
        """End all of them."""


def read_each(connection: Reader, pieces: Iterable[tuple[int, memoryview]]) -> None:
    """Fill each of `pieces`, (offset, view), by a request of its own. Nothing is in flight when it ends, or raises."""
    in_flight: collections.deque[tuple[requests.Request, int, int]] = collections.deque()
    try:
        for offset, view in pieces:
            if len(in_flight) == READS_AHEAD:
                connection.finish_read(*in_flight.popleft())
            in_flight.append((connection.start_read(view, offset), offset, len(view)))
        while in_flight:
            connection.finish_read(*in_flight.popleft())
    except (errors.DeviceError, errors.Cancelled):
        for each in in_flight:
            with contextlib.suppress(errors.DeviceError, errors.Cancelled):
                connection.finish_read(*each)
        raise
    except BaseException:  # KeyboardInterrupt: what was started may not even be in the list
        connection.close()
        raise
