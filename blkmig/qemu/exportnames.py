# SPDX-License-Identifier: GPL-2.0-or-later
"""The NBD names of QEMU's exports. QMP tells only their ids, and the NBD server only their names.

Both list them in the order in which they were made, QMP with the latest first. Among them are blkmig's own exports,
whose ids are their names: these prove that the two lists match.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_bool, c_char_p, c_int, c_void_p
from typing import Any

from .. import errors
from ..nbd import _libnbd
from ..nbd import connecting as nbd_connecting
from . import graph

LIST_FUNCTION = CFUNCTYPE(c_int, c_void_p, c_char_p, c_char_p)


class ListCallback(ctypes.Structure):
    """``nbd_list_callback``; the Python function must outlive the command."""

    _fields_ = (("callback", LIST_FUNCTION), ("user_data", c_void_p), ("free", c_void_p))


_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "nbd_set_opt_mode": (c_int, (c_void_p, c_bool)),
    "nbd_aio_opt_list": (c_int, (c_void_p, ListCallback, _libnbd.CompletionCallback)),
    "nbd_aio_opt_abort": (c_int, (c_void_p,)),
}

TIMEOUT = 10.0
"""Seconds that a server may take for the whole list."""


def list_names(uri: str, *, device: str, is_cancelled: Callable[[], bool] = lambda: False) -> list[str]:
    """Return the names of the exports of the NBD server at `uri`, in its order, without opening an export.

    Blocks for `TIMEOUT` at most. Raises :class:`~blkmig.errors.DeviceError`, and Cancelled once it `is_cancelled`.
    """
    names: list[str] = []

    def collect(_data: Any, name: bytes, _description: bytes) -> int:
        names.append(name.decode())
        return 0

    try:
        _list(_prepare(_libnbd.load()), uri, collect, is_cancelled)
    except OSError as error:
        if is_cancelled():
            raise errors.Cancelled(f"{device}: cancelled while its exports were being listed") from error
        raise errors.DeviceError(f"cannot list the exports of {uri}", device=device, cause=error) from error
    return names


def _prepare(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, (restype, argtypes) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = restype, argtypes
    return library


def _configure(library: ctypes.CDLL, handle: int) -> None:
    """Make the handle stop before it chooses an export."""
    for switch in (library.nbd_set_uri_allow_local_file, library.nbd_set_opt_mode):
        _libnbd.check(library, switch(handle, True))


def _list(library: ctypes.CDLL, uri: str, collect: Any, is_cancelled: Callable[[], bool]) -> None:
    callback = LIST_FUNCTION(collect)
    deadline = time.monotonic() + TIMEOUT
    handle = nbd_connecting.open_handle(library, uri, _configure, timeout=TIMEOUT, is_cancelled=is_cancelled)
    try:
        for function, arguments in (
            (library.nbd_aio_opt_list, (ListCallback(callback, None, None), _libnbd.NO_COMPLETION)),
            (library.nbd_aio_opt_abort, ()),
        ):
            _libnbd.check(library, function(handle, *arguments))
            nbd_connecting.finish(library, handle, deadline, is_cancelled)
    finally:
        library.nbd_close(handle)


def match(facts: graph.BlockGraph, names: list[str], *, own: str) -> dict[str, str]:
    """Return the NBD name of each export id; {} if the lists do not match. Ids that start with `own` are names, too."""
    ids = [name for name, export in facts.exports.items() if export["type"] == "nbd"][::-1]
    fits = len(ids) == len(names) and all(
        a == b for a, b in zip(ids, names, strict=True) if a.startswith(own) or b.startswith(own)
    )
    return dict(zip(ids, names, strict=True)) if fits else {}
