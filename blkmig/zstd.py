# SPDX-License-Identifier: GPL-2.0-or-later
"""zstd, for payloads between two blkmigs: one frame for each, and nothing of a frame is believed before it is checked.

The library is ``compression.zstd`` of Python 3.14, and ``backports.zstd`` before (``pip install 'blkmig[zstd]'``). What
a frame may be is stricter than the library: it says how many bytes it holds, its window is at most 1 MiB, it needs no
dictionary, and nothing stands behind it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any, Final

from . import errors

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_WINDOW_LOG: Final = 20
"""A frame may look back 1 MiB, the most that a payload has: whoever decompresses it needs no more memory than that."""

MISSING: Final = "the Python library for zstd is missing: pip install 'blkmig[zstd]'"

LIBRARY: Final = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
PARENT, _COMPILED = ("", "_zstd") if sys.version_info >= (3, 14) else ("backports", "backports.zstd")

HEAD_NBYTES: Final = 18
"""The most bytes of a frame that `check_head` looks at."""

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SINGLE_SEGMENT: Final = 0x20
_RESERVED: Final = 0x08
_DICTIONARY: Final = 0x03


class FrameError(ValueError):
    """A frame is not what it must be; the text says why."""


def is_available() -> bool:
    """Return whether payloads can be compressed and decompressed here; the library is not loaded for that."""
    if PARENT and importlib.util.find_spec(PARENT) is None:
        return False
    return importlib.util.find_spec(_COMPILED) is not None


def _library() -> Any:
    """Return the library; after the first time it is a look into a dictionary."""
    try:
        return importlib.import_module(LIBRARY)
    except ImportError as error:
        raise errors.ParameterError(MISSING) from error


class Compressor:
    """Makes frames, each for itself. It belongs to one thread at a time.

    With `has_checksum` a frame has the format's own checksum of what it holds, 32 bits. Raises
    :class:`~blkmig.errors.ParameterError` where the library is missing.
    """

    def __init__(self, level: int, *, has_checksum: bool) -> None:
        library = _library()
        parameter = library.CompressionParameter
        options = {
            parameter.compression_level: level,
            parameter.window_log: MAX_WINDOW_LOG,
            parameter.checksum_flag: int(has_checksum),
        }
        self._mode = library.ZstdCompressor.FLUSH_FRAME
        self._compressor = library.ZstdCompressor(options=options)

    def frame(self, data: Buffer) -> bytes:
        """Return one frame that holds `data`. It drops the GIL."""
        return bytes(self._compressor.compress(data, self._mode))


def decompress(frame: Buffer, nbytes: int) -> bytes:
    """Return the `nbytes` bytes that `frame` holds. It drops the GIL, and makes at most one byte more than that.

    Raises :class:`FrameError` for a frame of anything else, and :class:`~blkmig.errors.ParameterError` where the
    library is missing.
    """
    check_head(frame, nbytes)
    library = _library()
    decompressor = library.ZstdDecompressor(options={library.DecompressionParameter.window_log_max: MAX_WINDOW_LOG})
    try:
        data: bytes = decompressor.decompress(frame, max_length=nbytes + 1)
    except library.ZstdError as error:
        raise FrameError(str(error)) from error
    if not decompressor.eof or len(data) != nbytes:
        raise FrameError(f"it does not hold the {nbytes} bytes that it says, or is cut short")
    if decompressor.unused_data:
        raise FrameError("something stands behind it")
    return data


def check_head(frame: Buffer, nbytes: int) -> None:
    """Raise :class:`FrameError` unless `frame` begins like a frame of `nbytes` bytes that may come; see RFC 8878."""
    head = bytes(memoryview(frame)[:HEAD_NBYTES])
    if head[:4] != _MAGIC or len(head) < 6:
        raise FrameError("it is no zstd frame")
    flags = head[4]
    is_single = bool(flags & _SINGLE_SEGMENT)
    if flags & _RESERVED:
        raise FrameError("it has a flag that nobody knows")
    if flags & _DICTIONARY:
        raise FrameError("it needs a dictionary")
    if not is_single and _window(head[5]) > 1 << MAX_WINDOW_LOG:
        raise FrameError(f"its window has {_window(head[5])} bytes, and may have {1 << MAX_WINDOW_LOG}")
    place, length = (5 if is_single else 6), (int(is_single), 2, 4, 8)[flags >> 6]
    if not length:
        raise FrameError("it does not say how many bytes it holds")
    said = int.from_bytes(head[place : place + length], "little") + (256 if length == 2 else 0)
    if len(head) < place + length or said != nbytes:
        raise FrameError(f"it says that it holds {said} bytes, and the payload has {nbytes}")


def _window(descriptor: int) -> int:
    """Return the window's size that a frame's second byte says."""
    base = 1 << (10 + (descriptor >> 3))
    return base + base // 8 * (descriptor & 7)
