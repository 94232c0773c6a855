# SPDX-License-Identifier: GPL-2.0-or-later
"""Connecting libnbd's handle to a server: within a time limit, and until somebody cancels.

::

    look up the host's name     in a thread (`aside.py`), because libnbd's first call blocks while it does that
    connect, negotiate          here, moving bytes whenever the socket is ready
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator

from .. import aside
from . import _libnbd
from . import uri as nbd_uri

EVENTS = {0: 0, 1: select.POLLIN, 2: select.POLLOUT, 3: select.POLLIN | select.POLLOUT}
"""What to wait for at the socket, by libnbd's direction."""

SLICE = 0.1
"""Seconds between two looks whether somebody has cancelled."""


Configure = Callable[[ctypes.CDLL, int], None]
"""Sets a handle up before it connects. Raises OSError."""


def open_ready(
    library: ctypes.CDLL, uri: str, configure: Configure, *, timeout: float, is_cancelled: Callable[[], bool]
) -> int:
    """Return a handle that is connected to the export at `uri` and ready for commands; see `open_handle`."""
    handle = open_handle(library, uri, configure, timeout=timeout, is_cancelled=is_cancelled)
    with _closing_on_error(library, handle):
        if library.nbd_aio_is_ready(handle) != 1:
            raise OSError(errno.ENOTCONN, "the server closed the connection during the handshake")
    return handle


def open_handle(
    library: ctypes.CDLL, uri: str, configure: Configure, *, timeout: float, is_cancelled: Callable[[], bool]
) -> int:
    """Return a new handle, set up and connected to `uri` within `timeout` seconds.

    Raises OSError: EHOSTUNREACH if the look-up of the name takes too long, ETIMEDOUT, ECANCELED, or libnbd's error.
    """
    handle: int | None = library.nbd_create()
    if handle is None:
        raise _libnbd.last_error(library)
    with _closing_on_error(library, handle):
        configure(library, handle)
    _connect(library, handle, uri, timeout, is_cancelled)
    return handle


def configure_export(
    library: ctypes.CDLL, handle: int, contexts: Iterable[str], tls: dict[str, str | None]
) -> None:
    """Set up a handle for an export's data, meta `contexts`, and TLS. Raises OSError."""
    calls: list[tuple[str, bool | bytes]] = [("nbd_set_uri_allow_local_file", True)]  # for tls-certificates=
    calls += [("nbd_add_meta_context", name.encode()) for name in contexts]
    calls += [(f"nbd_set_tls_{key}", os.fsencode(value)) for key, value in tls.items() if value is not None]
    for function, value in calls:
        _libnbd.check(library, getattr(library, function)(handle, value))


def _connect(library: ctypes.CDLL, handle: int, uri: str, timeout: float, is_cancelled: Callable[[], bool]) -> None:
    """Connect `handle`. After an error nobody may use the handle: it is closed, or will be.

    If the look-up of the name is given up, its thread goes on alone, and closes the handle when the resolver returns.
    """
    deadline = time.monotonic() + timeout

    def begin() -> None:
        _libnbd.check(library, library.nbd_aio_connect_uri(handle, os.fsencode(uri)))

    host = nbd_uri.host_of(uri)
    if host is None or aside.is_number(host):
        with _closing_on_error(library, handle):
            begin()
    else:
        _begin_aside(library, handle, begin, host, timeout, is_cancelled)
    with _closing_on_error(library, handle):
        finish(library, handle, deadline, is_cancelled)


def _begin_aside(
    library: ctypes.CDLL,
    handle: int,
    begin: Callable[[], None],
    host: str,
    timeout: float,
    is_cancelled: Callable[[], bool],
) -> None:
    """Call `begin`, which looks up `host`.

    libnbd must do this look-up itself, because it verifies a server's certificate by the name that it was given.
    """
    deadline = time.monotonic() + timeout
    with _closing_on_error(library, handle):
        beginning = aside.Aside(begin, name="blkmig-nbd-lookup", forget=lambda: library.nbd_close(handle))
    with beginning:
        while not _is_readable(beginning.fd, min(max(0.0, deadline - time.monotonic()), SLICE)):
            if is_cancelled():
                raise cancelled_error()
            if time.monotonic() >= deadline:
                raise OSError(errno.EHOSTUNREACH, aside.not_found_out(host, timeout))
        with _closing_on_error(library, handle):
            beginning.result()


def _is_readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


@contextlib.contextmanager
def _closing_on_error(library: ctypes.CDLL, handle: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        library.nbd_close(handle)
        raise


def finish(
    library: ctypes.CDLL, handle: int, deadline: float, is_cancelled: Callable[[], bool] = lambda: False
) -> None:
    """Return when connecting and negotiating are over. Raises OSError: ETIMEDOUT, ECANCELED, or libnbd's error."""
    while library.nbd_aio_is_connecting(handle) == 1:
        direction = library.nbd_aio_get_direction(handle)
        poll = select.poll()  # a new one each time: libnbd changes sockets when it tries the next address
        poll.register(library.nbd_aio_get_fd(handle), EVENTS[direction])
        ready = poll.poll(min(max(0.0, deadline - time.monotonic()), SLICE) * 1000)
        if is_cancelled():
            raise cancelled_error()
        if ready:
            _libnbd.check(library, notify(library, handle, direction, ready[0][1]))
        elif time.monotonic() >= deadline:
            raise OSError(errno.ETIMEDOUT, "the server did not answer in time")


def notify(library: ctypes.CDLL, handle: int | None, direction: int, events: int) -> int:
    """Let libnbd move the bytes that can be moved; return -1 if the connection broke."""
    if direction & _libnbd.DIRECTION_READ and events & ~select.POLLOUT:
        result: int = library.nbd_aio_notify_read(handle)
    else:
        result = library.nbd_aio_notify_write(handle)
    return result


def is_over(library: ctypes.CDLL, handle: int | None) -> bool:
    """Return whether the connection is dead or closed."""
    return bool(library.nbd_aio_is_dead(handle) == 1 or library.nbd_aio_is_closed(handle) == 1)


def cancelled_error() -> OSError:
    """Return the error of a call that was cancelled."""
    return OSError(errno.ECANCELED, "it was cancelled")


class NotBegun(OSError):
    """A request that was not sent, because of a cancel."""


def not_begun() -> NotBegun:
    """Return the error of a request that was not sent."""
    return NotBegun(errno.ECANCELED, "it was cancelled")
