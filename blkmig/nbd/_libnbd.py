# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of libnbd that blkmig uses, bound with ctypes and loaded when the first NBD disk is opened.

Only declarations and errors live here, no policy. Every function releases the GIL. libnbd keeps the text and the
errno of the last error per thread, so :func:`check` and :func:`last_error` must be called in the thread whose call
failed.

The types and constants are those of libnbd(3), whose ABI is stable: ``libnbd.so.0`` from 1.12 on has all of it.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import re
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_ssize_t, c_uint32, c_uint64, c_void_p
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

LIBRARY = "libnbd.so.0"

DIRECTION_READ = 1
SIZE_MINIMUM = 0
SIZE_MAXIMUM = 2

EXTENT_FUNCTION = ctypes.CFUNCTYPE(
    c_int, c_void_p, c_char_p, c_uint64, POINTER(c_uint32), c_size_t, POINTER(c_int), use_errno=False
)


class CompletionCallback(ctypes.Structure):
    """``nbd_completion_callback``, always empty here: completions are asked for."""

    _fields_ = (("callback", c_void_p), ("user_data", c_void_p), ("free", c_void_p))


class ExtentCallback(ctypes.Structure):
    """``nbd_extent_callback``; the Python function must outlive the command."""

    _fields_ = (("callback", EXTENT_FUNCTION), ("user_data", c_void_p), ("free", c_void_p))


NO_COMPLETION = CompletionCallback()


class _PyBuffer(ctypes.Structure):
    """``Py_buffer``, in CPython's stable ABI since 3.11."""

    _fields_ = (
        ("buf", c_void_p),
        ("obj", c_void_p),
        ("len", c_ssize_t),
        ("itemsize", c_ssize_t),
        ("readonly", c_int),
        ("ndim", c_int),
        ("format", c_void_p),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("suboffsets", c_void_p),
        ("internal", c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, POINTER(_PyBuffer), c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (POINTER(_PyBuffer),)


class Memory:
    """The address of any contiguous buffer, also a read-only one, which stays where it is while this object lives."""

    __slots__ = ("_buffer", "address", "nbytes")

    def __init__(self, buffer: Buffer, *, writable: bool) -> None:
        """Raise BufferError if `buffer` is not contiguous, or not writable and must be."""
        self._buffer = _PyBuffer()
        _get_buffer(buffer, ctypes.byref(self._buffer), int(writable))  # PyBUF_SIMPLE or PyBUF_WRITABLE
        self.address: int | None = self._buffer.buf
        self.nbytes: int = self._buffer.len

    def __del__(self) -> None:
        if self._buffer.obj:
            _release_buffer(ctypes.byref(self._buffer))

_PROTOTYPES = {
    "nbd_create": (c_void_p, ()),
    "nbd_close": (None, (c_void_p,)),
    "nbd_get_error": (c_char_p, ()),
    "nbd_get_errno": (c_int, ()),
    "nbd_get_version": (c_char_p, (c_void_p,)),
    "nbd_set_uri_allow_local_file": (c_int, (c_void_p, c_bool)),
    "nbd_set_tls_certificates": (c_int, (c_void_p, c_char_p)),
    "nbd_set_tls_psk_file": (c_int, (c_void_p, c_char_p)),
    "nbd_set_tls_username": (c_int, (c_void_p, c_char_p)),
    "nbd_add_meta_context": (c_int, (c_void_p, c_char_p)),
    "nbd_can_meta_context": (c_int, (c_void_p, c_char_p)),
    "nbd_get_size": (c_int64, (c_void_p,)),
    "nbd_get_block_size": (c_int64, (c_void_p, c_int)),
    "nbd_is_read_only": (c_int, (c_void_p,)),
    "nbd_can_zero": (c_int, (c_void_p,)),
    "nbd_can_flush": (c_int, (c_void_p,)),
    "nbd_can_multi_conn": (c_int, (c_void_p,)),
    "nbd_aio_connect_uri": (c_int, (c_void_p, c_char_p)),
    "nbd_aio_get_fd": (c_int, (c_void_p,)),
    "nbd_aio_get_direction": (c_uint32, (c_void_p,)),
    "nbd_aio_notify_read": (c_int, (c_void_p,)),
    "nbd_aio_notify_write": (c_int, (c_void_p,)),
    "nbd_aio_is_connecting": (c_int, (c_void_p,)),
    "nbd_aio_is_ready": (c_int, (c_void_p,)),
    "nbd_aio_is_dead": (c_int, (c_void_p,)),
    "nbd_aio_is_closed": (c_int, (c_void_p,)),
    "nbd_aio_peek_command_completed": (c_int64, (c_void_p,)),
    "nbd_aio_command_completed": (c_int, (c_void_p, c_uint64)),
    "nbd_aio_pread": (c_int64, (c_void_p, c_void_p, c_size_t, c_uint64, CompletionCallback, c_uint32)),
    "nbd_aio_pwrite": (c_int64, (c_void_p, c_void_p, c_size_t, c_uint64, CompletionCallback, c_uint32)),
    "nbd_aio_zero": (c_int64, (c_void_p, c_uint64, c_uint64, CompletionCallback, c_uint32)),
    "nbd_aio_flush": (c_int64, (c_void_p, CompletionCallback, c_uint32)),
    "nbd_aio_block_status": (
        c_int64,
        (c_void_p, c_uint64, c_uint64, ExtentCallback, CompletionCallback, c_uint32),
    ),
    "nbd_aio_disconnect": (c_int, (c_void_p, c_uint32)),
}


@functools.cache
def load() -> ctypes.CDLL:
    """Return the library with its prototypes set.

    Raises OSError with ELIBACC and a text that names the package to install.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
        for name, (restype, argtypes) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = restype, argtypes
    except (OSError, AttributeError) as error:
        raise OSError(
            errno.ELIBACC,
            f"NBD disks need {LIBRARY}, 1.12 or later ({error}); install the package libnbd0 (Debian, Ubuntu) "
            "or libnbd (Fedora, RHEL, SUSE)",
        ) from error
    return library


def check(library: ctypes.CDLL, result: int) -> int:
    """Return a call's `result`, or raise the error that -1 stands for."""
    if result == -1:
        raise last_error(library)
    return result


def last_error(library: ctypes.CDLL, fallback: int = errno.EIO) -> OSError:
    """Return libnbd's last error in this thread as an OSError, with `fallback` where it knows no errno."""
    code: int = library.nbd_get_errno() or fallback
    text: bytes | None = library.nbd_get_error()
    if not text:
        return OSError(code, os.strerror(code))
    return OSError(code, re.sub("^nbd_[a-z_]+: ", "", text.decode(errors="replace")))  # whom we called is no news
