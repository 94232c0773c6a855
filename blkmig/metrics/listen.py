# SPDX-License-Identifier: GPL-2.0-or-later
"""The metrics over HTTP, for whoever scrapes them.

One thread serves one client after the other. A client that says or takes nothing is left after a few seconds, so there
are never more threads or sockets than that.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import selectors
import socket
import socketserver
import threading
import wsgiref.simple_server
from types import TracebackType
from typing import Any, Self

from .. import errors
from . import library

CLIENT_SECONDS = 5.0
FORM = "[ADDRESS]:PORT, as :9100 or 0.0.0.0:9100"
LOOPBACK = "127.0.0.1"


def parse(text: str) -> tuple[str, int]:
    """Return the address and the port of ``[ADDRESS]:PORT``. Raises :class:`~blkmig.errors.ParameterError`.

    A name is refused: finding out what it means may take minutes.
    """
    host, colon, port = text.rpartition(":")
    try:
        if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise ValueError
        address = str(ipaddress.ip_address(host.strip("[]"))) if host else LOOPBACK
    except ValueError:
        raise errors.ParameterError(f"metrics are served at {FORM}, in numbers, not at {text!r}") from None
    return address, int(port)


class _Handler(wsgiref.simple_server.WSGIRequestHandler):
    """Answers one client, and logs nothing."""

    timeout = CLIENT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # the name is http.server's
        pass


class _HTTPServer(wsgiref.simple_server.WSGIServer):
    """Binds without asking a name server what this machine is called."""

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that is gone


class _HTTPServer6(_HTTPServer):
    address_family = socket.AF_INET6


class Server:
    """Serves a registry at `url` for the length of a ``with``. Raises ParameterError if the address cannot be had."""

    def __init__(self, registry: Any, listen: str) -> None:
        address, port = parse(listen)
        app = library.load().make_wsgi_app(registry)
        kind = _HTTPServer6 if ":" in address else _HTTPServer
        with contextlib.ExitStack() as undo:
            try:
                self._http = undo.enter_context(kind((address, port), _Handler))
                self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                undo.callback(os.close, self._end)
                # What the thread has is its own: a number that it has closed may be another file's by then.
                self._end_of_thread = os.dup(self._end)
                undo.callback(os.close, self._end_of_thread)
                self._selector = undo.enter_context(selectors.DefaultSelector())
            except OSError as error:
                hint = "see ulimit -n" if error.errno == errno.EMFILE else "say another address or port"
                why = f"metrics cannot be served at {listen!r}: {error.strerror}; {hint}"
                raise errors.ParameterError(why) from error
            undo.pop_all()
        self._http.set_app(app)
        host = f"[{address}]" if ":" in address else address
        self.url = f"http://{host}:{self._http.server_port}/metrics"
        self._thread = threading.Thread(target=self._run, name="blkmig-metrics-http", daemon=True)
        self._is_started = False

    def __enter__(self) -> Self:
        """Start the thread; where none can be had, nobody is answered."""
        with contextlib.suppress(RuntimeError):
            self._thread.start()
            self._is_started = True
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Have the thread end. A client that is being answered is not waited for."""
        os.eventfd_write(self._end, 1)
        os.close(self._end)
        if not self._is_started:
            self._run()  # which finds that this is the end

    def _run(self) -> None:
        try:
            ours = self._selector.register(self._end_of_thread, selectors.EVENT_READ)
            self._selector.register(self._http, selectors.EVENT_READ)
            while ours not in [key for key, _ in self._selector.select()]:
                self._http.timeout = 0  # whoever knocked may be gone again
                self._http.handle_request()
        finally:
            self._selector.close()
            self._http.server_close()
            os.close(self._end_of_thread)
