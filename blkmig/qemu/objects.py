# SPDX-License-Identifier: GPL-2.0-or-later
"""What blkmig creates inside QEMU: exports, bitmaps, the NBD server. Nothing of it outlives the run.

All names start with one prefix, ``blkmig-<random>-``, so that a later run recognises what a killed one left behind.
A name is noted *before* QEMU is told, and forgotten after QEMU has confirmed that the object is gone. After an
interruption in between, blkmig may remove an object that does not exist, but it never leaves one behind.

The server always closes a connection to an export first: blkmig deletes the export, waits for the event, and closes its
own end after that. QEMU before 9.0 aborts if a client closes first while the node runs in an iothread.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import secrets
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .. import errors, logs
from ..nbd import connection as nbd_connection
from ..nbd import uri as nbd_uri
from . import address, qmp, server

logger = logs.Logger(__name__)

PREFIX = "blkmig-"

ADD_BITMAP = "block-dirty-bitmap-add"


class OwnObjects:
    """The exports, bitmaps and the NBD server of one run. One thread at a time."""

    def __init__(self, connection: qmp.QmpConnection) -> None:
        self.prefix = f"{PREFIX}{secrets.token_hex(4)}-"
        self.uri = ""
        """The URI of the NBD server, without an export; :meth:`start_server` sets it."""

        self._qmp = connection
        self._exports: dict[str, None] = {}
        self._bitmaps: dict[tuple[str, str], None] = {}
        self._objects: dict[str, None] = {}
        self._owns_server = False
        self.left: list[str] = []
        """Descriptions of what `remove_all` could not remove because QEMU did not answer."""

        self._connections: weakref.WeakSet[nbd_connection.NbdConnection] = weakref.WeakSet()

    # -- NBD server --------------------------------------------------------------------------------------------------

    def start_server(self, uri: str | None) -> None:
        """Start the NBD server at `uri`, or use the one that is running there; by default beside the QMP socket."""
        self.uri = uri or nbd_uri.unix_uri(server.default_socket(self._qmp.path, self.prefix))
        where = address.socket_address(self.uri)
        if where is not None:
            self._owns_server = True  # until QEMU has answered
            self._owns_server = server.start(self._qmp, where, is_named=uri is not None)

    # -- exports -----------------------------------------------------------------------------------------------------

    def add_export(self, name: str, node: str, **options: object) -> None:
        """Export `node` read-only over NBD, with `name` as its id and its NBD name."""
        self.start_adding_export(name, node, **options).result()

    def start_adding_export(self, name: str, node: str, **options: object) -> qmp.Command:
        """Begin to export `node`, as `add_export` does."""
        self._exports[name] = None
        arguments = {"type": "nbd", "id": name, "node-name": node, "name": name, **options}
        return self._qmp.start("block-export-add", arguments)

    def connect(self, name: str, device: str, contexts: Iterable[str]) -> nbd_connection.NbdConnection:
        """Connect to the export `name`; the caller closes it, after :meth:`remove_export`."""
        try:
            connection = nbd_connection.NbdConnection(
                self.uri,
                device=device,
                export=name,
                contexts=contexts,
                read_piece=nbd_connection.QEMU_READ_PIECE,
                connect_timeout=CONNECT_SECONDS,
                is_cancelled=lambda: self._qmp.is_cancelled,
            )
        except errors.DeviceError as error:
            if error.errno != errno.ETIMEDOUT:
                raise
            cause = NO_ANSWER.format(CONNECT_SECONDS, len(self._exports))
            raise errors.DeviceError(f"cannot connect to {self.uri}", device=device, cause=cause) from error
        self._connections.add(connection)
        return connection

    def cancel(self) -> None:
        """Make calls that wait for the NBD server raise Cancelled. From any thread and any signal handler."""
        for connection in list(self._connections):
            connection.cancel()

    def renew(self) -> None:
        """Forget a cancel."""
        for connection in list(self._connections):
            connection.renew()

    def remove_export(self, name: str) -> None:
        """Disconnect the clients of an export, delete it, and wait until it is gone. It may be gone already."""
        if name in self._exports:
            self.start_removing_export(name)()

    def start_removing_export(self, name: str) -> Callable[[], None]:
        """Begin to remove an export; return a function that waits until it is gone."""
        await_end = start_deleting_export(self._qmp, name)

        def finish() -> None:
            await_end()
            self._exports.pop(name, None)

        return finish

    @contextlib.contextmanager
    def exported(
        self, name: str, node: str, *, device: str, context: str, **options: object
    ) -> Iterator[nbd_connection.NbdConnection]:
        """Export a node for a ``with``, and connect to it. The server closes first, also after an error."""
        self.add_export(name, node, **options)
        connection = None
        try:
            connection = self.connect(name, device, (context,))
            yield connection
        except BaseException:
            with contextlib.suppress(errors.DeviceError):
                self.remove_export(name)
            raise
        else:
            self.remove_export(name)
        finally:
            if connection is not None:
                connection.close()

    # -- bitmaps -----------------------------------------------------------------------------------------------------

    def start_adding_bitmaps(self, bitmaps: Iterable[tuple[str, str, int]]) -> qmp.Command:
        """Begin to add a bitmap for each (node, name, granularity), all of them or none. No image stores them.

        They record from the moment when the command has run.
        """
        added = [{"node": node, "name": name, "granularity": granularity} for node, name, granularity in bitmaps]
        self._bitmaps |= {(str(bitmap["node"]), str(bitmap["name"])): None for bitmap in added}
        if len(added) == 1:  # a single command drains nothing, and QEMU has fewer bytes to read
            return self._qmp.start(ADD_BITMAP, added[0])
        return self._qmp.start("transaction", {"actions": [{"type": ADD_BITMAP, "data": bitmap} for bitmap in added]})

    def freeze_bitmap(self, node: str, name: str) -> None:
        """Make a bitmap stop recording. Twice does no harm."""
        self._qmp.execute("block-dirty-bitmap-disable", {"node": node, "name": name})

    def remove_bitmap(self, node: str, name: str) -> None:
        """Remove a bitmap. It may be gone already, and so may its node."""
        if (node, name) in self._bitmaps:
            self.start_removing_bitmap(node, name)()

    def start_removing_bitmap(self, node: str, name: str) -> Callable[[], None]:
        """Begin to remove a bitmap; return a function that waits until it is gone."""
        removal = self._qmp.start("block-dirty-bitmap-remove", {"node": node, "name": name})

        def finish() -> None:
            with qmp.ignoring_missing():
                removal.result()
            self._bitmaps.pop((node, name), None)

        return finish

    # -- objects -----------------------------------------------------------------------------------------------------

    def add_throttle_group(self, name: str, limits: Mapping[str, Any]) -> None:
        """Add a throttle group that nobody uses. It keeps `limits`, in case somebody must clean up after this run."""
        self._objects[name] = None
        self._qmp.execute("object-add", {"qom-type": "throttle-group", "id": name, "limits": limits})

    def remove_object(self, name: str) -> None:
        """Remove an object. It may be gone already."""
        if name in self._objects:
            self._start_removing_object(name)()

    def _start_removing_object(self, name: str) -> Callable[[], None]:
        removal = self._qmp.start("object-del", {"id": name})

        def finish() -> None:
            with qmp.ignoring_missing():
                removal.result()
            self._objects.pop(name, None)

        return finish

    # -- the end -----------------------------------------------------------------------------------------------------

    def remove_all(self) -> None:
        """Remove everything that is left, in order, and log what cannot be removed. Never raises; safe twice."""
        start: Callable[..., Callable[[], None]] = self.start_removing_export
        self._remove_together((functools.partial(start, name), f"export {name}") for name in list(self._exports))
        start = self.start_removing_bitmap
        self._remove_together((functools.partial(start, *key), f"bitmap {key[1]}") for key in list(self._bitmaps))
        start = self._start_removing_object
        self._remove_together((functools.partial(start, name), f"object {name}") for name in list(self._objects))
        if self._owns_server:
            self._owns_server = False
            with self._telling("the NBD server"):
                server.stop_if_idle(self._qmp)

    def _remove_together(self, removals: Iterable[tuple[Callable[[], Callable[[], None]], str]]) -> None:
        """Begin all `removals`, each given with a description, then wait for each."""
        begun = []
        for start, what in removals:
            with self._telling(what):
                begun.append((start(), what))
        for finish, what in begun:
            with self._telling(what):
                finish()

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Log that `what` stays behind, if the body of the ``with`` could not remove it."""
        try:
            yield
        except qmp.QmpGone:
            logger.debug("%s ended, and %s with it", self._qmp.device, what)
        except qmp.QmpTimeout:
            self.left.append(what)
        except errors.DeviceError as error:
            logger.warning("%s stays behind (blkmig cleanup %s removes it): %s", what, self._qmp.device, error)


CONNECT_SECONDS = 10.0
NO_ANSWER = (
    "the server did not answer within {:g} s; a QEMU's takes 100 connections unless it was started with "
    "max-connections=0, and blkmig wants {} of them now: one for each disk, and one more for each that is written"
)

def delete_export(connection: qmp.QmpConnection, name: str, *, mode: str = "hard") -> None:
    """Delete an export, and wait until QEMU says that its last request is over. It may be gone already."""
    start_deleting_export(connection, name, mode=mode)()


def start_deleting_export(connection: qmp.QmpConnection, name: str, *, mode: str = "hard") -> Callable[[], None]:
    """Begin to delete an export; return a function that waits until its last request is over."""
    connection.drop_events("BLOCK_EXPORT_DELETED", lambda data: data.get("id") == name)  # of one that nobody awaited
    deletion = connection.start("block-export-del", {"id": name, "mode": mode})

    def await_end() -> None:
        with qmp.ignoring_missing():
            deletion.result()
            connection.wait_event("BLOCK_EXPORT_DELETED", lambda data: data.get("id") == name)

    return await_end


def list_exports(connection: qmp.QmpConnection) -> dict[str, bool]:
    """Return the ids of QEMU's exports, and of each whether it is being closed."""
    return {entry["id"]: entry["shutting-down"] for entry in connection.execute("query-block-exports")}


def list_objects(connection: qmp.QmpConnection) -> list[dict[str, Any]]:
    """Return the objects that the user or blkmig has made; a storage daemon without any does not have the folder."""
    with qmp.ignoring_missing():
        return list(connection.execute("qom-list", {"path": "/objects"}))
    return []
