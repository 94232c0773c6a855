# SPDX-License-Identifier: GPL-2.0-or-later
"""From the name of a host to its addresses, within a time.

The system's resolver cannot be interrupted, and may take minutes to say that nobody answers. So a name is looked up in
a thread of its own, a daemon, which is left alone when the time is over or somebody cancels.
"""

from __future__ import annotations

import os
import socket
import threading

from .. import errors
from . import link, uri

Found = list[tuple[int, tuple[object, ...]]]


def addresses_of(connection: link.Link, address: uri.TcpAddress, *, passive: bool, timeout: float) -> Found:
    """Return family and socket address of each that the host of `address` has. Raises ChannelError and Cancelled."""
    try:
        return _ask(address, passive, numeric=True)
    except OSError:
        pass  # a name, or a bad number: the resolver says which
    except UnicodeError as error:
        raise _unknown(address, error) from error
    return _Lookup(connection, address, passive).wait(timeout)


class _Lookup:
    """One name on its way through the resolver. The thread writes the result, then wakes whoever waits."""

    def __init__(self, connection: link.Link, address: uri.TcpAddress, passive: bool) -> None:
        self._link = connection
        self._address = address
        self._passive = passive
        self._found: Found | None = None
        self._error: Exception | None = None

    def wait(self, timeout: float) -> Found:
        """Return the addresses."""
        try:
            wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
        except OSError as error:
            raise errors.ChannelError("looking up the address", uri=self._link.uri, cause=error) from error
        try:
            # A descriptor of the thread's own: ours is closed when we give up, and its number taken by others.
            thread = threading.Thread(target=self._run, args=(os.dup(wake_fd),), daemon=True, name="blkmig-lookup")
            thread.start()
            answered = self._link.wait(timeout, wake_fd)
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else str(error)
            raise errors.ChannelError("looking up the address", uri=self._link.uri, cause=cause) from error
        finally:
            os.close(wake_fd)
        if not answered:
            why = f"the name {self._address.host!r} is not found out within {timeout:g} s (check the name servers)"
            raise errors.ChannelTimeout("looking up the address", uri=self._link.uri, cause=why)
        if self._error is not None:
            raise _unknown(self._address, self._error) from self._error
        assert self._found is not None
        return self._found

    def _run(self, wake_fd: int) -> None:
        try:
            self._found = _ask(self._address, self._passive, numeric=False)
        except Exception as error:
            self._error = error
        finally:
            os.eventfd_write(wake_fd, 1)
            os.close(wake_fd)


def _ask(address: uri.TcpAddress, passive: bool, *, numeric: bool) -> Found:
    flags = (socket.AI_PASSIVE if passive else 0) | (socket.AI_NUMERICHOST if numeric else 0)
    # As bytes: for a text, even of ASCII, Python imports the whole of IDNA first, which takes 2 ms.
    host = address.host.encode() if address.host.isascii() else address.host
    found = socket.getaddrinfo(host or None, address.port, type=socket.SOCK_STREAM, flags=flags)
    return [(int(family), where) for family, _, _, _, where in found]


def _unknown(address: uri.TcpAddress, error: Exception) -> errors.ChannelError:
    why = f"the host {address.host!r} is not known: {getattr(error, 'strerror', None) or error}"
    return errors.ChannelError("looking up the address", uri=str(address), cause=why)
