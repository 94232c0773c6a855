# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs of an NBD export: read, write, zero, flush, block status, in bytes and from any number of threads.

One connection carries up to as many requests as there are threads. That is enough: with 5 ms of latency sixteen
threads read ten times as fast as one, and more connections only cost more context switches. Requests are cut to what
the server takes, and widened to its minimum block size where it has one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from .. import errors, units
from ..disk import local
from . import _libnbd, reading, requests, status
from . import connecting as nbd_connecting
from . import handle as nbd_handle
from . import tls as nbd_tls
from . import uri as nbd_uri

if TYPE_CHECKING:
    from typing_extensions import Buffer

BASE_ALLOCATION = "base:allocation"
ALLOCATION_DEPTH = "qemu:allocation-depth"
STATE_ZERO = 2
"""Flag of base:allocation: the extent reads as zeros."""

MAX_PAYLOAD = 32 * units.MiB
"""The most bytes of one read or write: every server accepts so many, unless it tells another limit."""
QEMU_READ_PIECE = 512 * units.KiB
"""The most bytes of one read from a QEMU. QEMU 7.2 answers two of these in 0.33 ms, and one of 1 MiB in 0.65 to 0.8 ms,
for which it maps fresh memory that the kernel clears. With latency they would double the time of a block."""
MAX_ZERO = 256 * units.MiB
"""The most bytes of one WRITE_ZEROES, few enough that a server which has to write the zeros answers in time."""
MAX_STATUS = 4 * units.GiB - units.MiB
"""The most bytes of one BLOCK_STATUS, whose length field has 32 bits."""

_ZEROS = bytes(units.MiB)


class NbdConnection:
    """An open NBD export of `size` bytes.

    Ranges must lie inside the export. A failure is a :class:`~blkmig.errors.DeviceError` with the range, the server's
    errno and libnbd's text. After a refused request, others go on; after a broken connection, every later call fails.
    """

    def __init__(
        self,
        uri: str,
        *,
        device: str = "",
        export: str | None = None,
        contexts: Iterable[str] = (BASE_ALLOCATION,),
        tls_certificates: str | None = None,
        tls_psk_file: str | None = None,
        tls_username: str | None = None,
        connect_timeout: float = 30.0,
        request_timeout: float = 60.0,
        read_piece: int = MAX_PAYLOAD,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Connect to `uri`, or to the `export` of that server.

        `device` is the disk's name in errors. `contexts` are the meta contexts to ask for; `self.contexts` has those
        that the server offers. A TCP server's X.509 certificate must have its host name. `tls_certificates` is a folder
        with ca-cert.pem and, if the server wants to know its clients, client-cert.pem and client-key.pem. Raises
        :class:`~blkmig.errors.ParameterError` if libnbd would verify nothing for lack of an authority: see `tls`.
        `request_timeout` is how many seconds the connection may stand still with requests in flight, 0 for ever. Reads
        are cut into pieces of `read_piece` bytes, which are in flight together. Connecting is given up as soon as
        `is_cancelled` returns True.
        """
        self.uri = nbd_uri.check_uri(
            uri if export is None else nbd_uri.with_export(uri, export), tls_certificates or tls_psk_file
        )
        self._read_piece = read_piece
        self._is_cancelled = is_cancelled
        self.device = device or nbd_uri.export_of(self.uri) or "nbd"
        with self._errors(f"cannot connect to {self.uri}"):
            version = nbd_tls.version_of(_libnbd.load())
        nbd_tls.check(self.uri, certificates=tls_certificates, psk_file=tls_psk_file, version=version)
        tls = {"certificates": tls_certificates, "psk_file": tls_psk_file, "username": tls_username}
        self._wanted_contexts = tuple(contexts)
        self._new_handle = functools.partial(
            nbd_handle.NbdHandle,
            self.uri,
            lambda library, handle: nbd_connecting.configure_export(library, handle, self._wanted_contexts, tls),
            connect_timeout=units.number("connect_timeout", connect_timeout),
            request_timeout=units.number("request_timeout", request_timeout),
            is_cancelled=is_cancelled,
        )
        self._edges = threading.Lock()
        self._connect()

    def _connect(self) -> None:
        with self._errors(f"cannot connect to {self.uri}"):
            self._handle = self._new_handle()
        try:
            with self._errors(f"cannot learn about {self.uri}"):
                self._learn(self._wanted_contexts)
        except BaseException:
            self.close()
            raise

    def _learn(self, contexts: Iterable[str]) -> None:
        ask = self._handle.ask
        self.size = ask("nbd_get_size")
        self.is_read_only = bool(ask("nbd_is_read_only"))
        self.can_zero = bool(ask("nbd_can_zero"))
        self.can_flush = bool(ask("nbd_can_flush"))
        self.can_multi_conn = bool(ask("nbd_can_multi_conn"))
        self.contexts = frozenset(name for name in contexts if ask("nbd_can_meta_context", name.encode()))
        self.minimum = ask("nbd_get_block_size", _libnbd.SIZE_MINIMUM) or 1
        if rest := self.size % self.minimum:
            cause = f"its last {rest} bytes cannot be reached, for requests are multiples of {self.minimum} bytes"
            raise OSError(errno.EINVAL, f"{cause}: give its image a size that is one, too")
        self.maximum = min(ask("nbd_get_block_size", _libnbd.SIZE_MAXIMUM) or MAX_PAYLOAD, MAX_PAYLOAD)

    # -- data ----------------------------------------------------------------------------------------------------------

    def pread_into(self, buffer: Buffer, offset: int) -> None:
        """Fill the writable `buffer`, of any length, from `offset` on. Blocks without the GIL; copies nothing."""
        self.pread_each([(offset, local.bytes_of(buffer))])

    def pread_each(self, parts: Iterable[tuple[int, memoryview]]) -> None:
        """Fill several views, each from its offset on, with requests that are in flight together. Blocks."""
        reading.read_each(self, self._read_pieces(parts))

    def _read_pieces(self, parts: Iterable[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
        """Yield what can be read by one request each; fill what must be widened first."""
        for offset, view in parts:
            if self._is_unaligned(offset, len(view)):
                start, stop = self._widen(offset, len(view))
                whole = bytearray(stop - start)
                self.pread_into(whole, start)
                view[:] = whole[offset - start : offset - start + len(view)]
            else:
                for done, count in _pieces(len(view), min(self.maximum, self._read_piece)):
                    yield offset + done, view[done : done + count]

    def start_read(self, view: memoryview, offset: int) -> requests.Request:
        """Start reading into `view`, which belongs to the request until :meth:`finish_read`."""
        with self._errors("cannot read", offset, len(view)):
            return self._start("nbd_aio_pread", _libnbd.Memory(view, writable=True), offset)

    def finish_read(self, request: requests.Request, offset: int, nbytes: int) -> None:
        """Return when a read that was started is done, or raise its error. Blocks."""
        with self._errors("cannot read", offset, nbytes):
            self._handle.wait(request)

    def pwrite(self, buffer: Buffer, offset: int) -> None:
        """Write `buffer`, of any length, at `offset`. Blocks without the GIL; copies nothing."""
        view = local.bytes_of(buffer)
        if self._is_unaligned(offset, len(view)):
            with self._edges:  # else two writers of one block would undo each other's part
                start, stop = self._widen(offset, len(view))
                whole = bytearray(stop - start)
                self.pread_into(whole, start)
                whole[offset - start : offset - start + len(view)] = view
                self.pwrite(whole, start)
            return
        for done, count in _pieces(len(view), self.maximum):
            memory = _libnbd.Memory(view[done : done + count], writable=False)
            with self._errors("cannot write", offset + done, count):
                self._handle.wait(self._start("nbd_aio_pwrite", memory, offset + done))

    def zero(self, offset: int, nbytes: int) -> None:
        """Make [offset, offset + nbytes), of any length, read as zeros, as holes if the server can. Blocks."""
        if not self.can_zero:
            for done, count in _pieces(nbytes, len(_ZEROS)):
                self.pwrite(_ZEROS[:count], offset + done)
            return
        head = min(-offset % self.minimum, nbytes)
        tail = (offset + nbytes) % self.minimum if head < nbytes else 0
        if head or tail:
            self.pwrite(bytes(head), offset)
            self.pwrite(bytes(tail), offset + nbytes - tail)
            offset, nbytes = offset + head, nbytes - head - tail
        for done, count in _pieces(nbytes, MAX_ZERO):
            with self._errors("cannot write zeroes", offset + done, count):
                self._handle.run("nbd_aio_zero", count, offset + done, _libnbd.NO_COMPLETION, 0)

    def start_write(self, data: bytearray | memoryview, offset: int) -> requests.Request | None:
        """Start writing `data`; return None if it is written already. Nobody may change `data` before
        `finish_write`."""
        if len(data) > self.maximum or self._is_unaligned(offset, len(data)):
            self.pwrite(data, offset)
            return None
        with self._errors("cannot write", offset, len(data)):
            request = self._start("nbd_aio_pwrite", _libnbd.Memory(data, writable=False), offset)
            self._handle.push()
        return request

    def finish_write(self, request: requests.Request, offset: int, nbytes: int) -> None:
        """Return when a write that `start_write` has started is done, or raise its error. Blocks."""
        with self._errors("cannot write", offset, nbytes):
            self._handle.wait(request)

    def flush(self) -> None:
        """Return when everything written before is on stable storage, if the server can tell. Blocks."""
        if self.can_flush:
            with self._errors("cannot flush"):
                self._handle.run("nbd_aio_flush", _libnbd.NO_COMPLETION, 0)

    # -- block status --------------------------------------------------------------------------------------------------

    def block_status(self, context: str, offset: int, nbytes: int) -> Iterator[tuple[int, int]]:
        """Yield the (length, flags) of one extent after the other; together they cover the range exactly.

        Neighbours have different flags. `context` must be one of `self.contexts`. Blocks whenever it needs a new reply.
        """
        return status.joined(self._replies(context, offset, offset + nbytes))

    def _replies(self, context: str, offset: int, end: int) -> Iterator[tuple[int, int]]:
        while offset < end:
            extents = self.one_block_status(context, offset, end - offset)
            yield from extents
            offset += sum(length for length, _ in extents)

    def one_block_status(self, context: str, offset: int, nbytes: int) -> list[tuple[int, int]]:
        """Return the (length, flags) of the extents in one reply. They cover a part of the range, or all of it.

        A reply of a QEMU has up to 131,072 extents; neighbours may have equal flags. Blocks.
        """
        start, stop = self._widen(offset, min(nbytes, MAX_STATUS - self.minimum))
        with self._errors(f"cannot get {context}", offset, nbytes):
            if context not in self.contexts:
                raise OSError(errno.EOPNOTSUPP, f"the server does not offer {context}")
            extents = status.clip(status.ask(self._handle, context, start, stop), start, offset, offset + nbytes)
            if not extents:
                raise OSError(errno.EPROTO, "the server's reply describes nothing of the range asked for")
        return extents

    # -- the rest ------------------------------------------------------------------------------------------------------

    def check_home(self) -> None:
        """Raise :class:`~blkmig.errors.DeviceError` if this is a forked child of the process that has connected."""
        with self._errors("cannot be used"):
            self._handle.check_home()

    def cancel(self) -> None:
        """Make calls that wait, and later ones, raise Cancelled; from any thread and any signal handler.

        Replies are still taken for half a second. If all requests are answered by then, `renew` makes the connection
        usable again. The connection is not closed.
        """
        self._handle.cancel()

    def renew(self) -> bool:
        """Forget a cancel, before the connection is used again.

        Return False if requests were abandoned: then the connection must be closed; `reconnect` makes a new one.
        """
        self.check_home()
        return self._handle.renew()

    def reconnect(self) -> None:
        """Connect again, after `close`."""
        self._connect()

    def close(self) -> None:
        """Close the connection; calls in other threads fail with ECANCELED. Twice does no harm."""
        self._handle.close()

    def _start(self, function: str, memory: _libnbd.Memory, offset: int) -> requests.Request:
        return self._handle.start(
            function, memory.address, memory.nbytes, offset, _libnbd.NO_COMPLETION, 0, keep=memory
        )

    def _is_unaligned(self, offset: int, nbytes: int) -> bool:
        return bool((offset | nbytes) & (self.minimum - 1))

    def _widen(self, offset: int, nbytes: int) -> tuple[int, int]:
        """Return start and stop of the range widened to whole blocks of the server."""
        return offset & -self.minimum, -(-(offset + nbytes) & -self.minimum)

    def _was_cancelled(self) -> bool:
        return self._is_cancelled() or (hasattr(self, "_handle") and self._handle.is_cancelled)

    @contextlib.contextmanager
    def _errors(self, doing: str, offset: int | None = None, nbytes: int | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.ECANCELED and self._was_cancelled():
                raise errors.Cancelled(f"disk {self.device!r}: {doing}: cancelled") from error
            raise errors.DeviceError(doing, device=self.device, cause=error, offset=offset, nbytes=nbytes) from error


def _pieces(nbytes: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut `nbytes` into pieces (start, length) of at most `most`."""
    return ((done, min(most, nbytes - done)) for done in range(0, nbytes, most))
