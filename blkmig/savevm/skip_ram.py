# SPDX-License-Identifier: GPL-2.0-or-later
"""Skipping guest memory: the `ram` section, version 4, in all the forms that fit one byte stream.

A payload is a sequence of u64 words, the page's address with flags in the bits below the page size::

    MEM_SIZE 04         total; then blocks until their lengths add up to it:
                        u8 + name, u64 used length, [u64 page size], [u64 guest address]
    ZERO 02             [u8 + name]  u8 fill
    PAGE 08             [u8 + name]  a page
    XBZRLE 40           [u8 + name]  u8 1, u16 length, bytes
    COMPRESS_PAGE 100   [u8 + name]  u32 length, bytes
    EOS 10, MULTIFD_FLUSH 200        nothing; EOS ends the payload
    CONTINUE 20                      with one of the four: no name, the block is that of the page before, even if that
                                     was in another section

Nothing is kept between sections: names need no checking, and so CONTINUE needs no memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .. import errors
from .handlers import SaveVMHandlers

if TYPE_CHECKING:
    from ..channel import InputQEMUFile
    from .configuration import Configuration

RAM_VERSION: Final = 4

RAM_SAVE_FLAG_FULL: Final = 0x01
RAM_SAVE_FLAG_ZERO: Final = 0x02
RAM_SAVE_FLAG_MEM_SIZE: Final = 0x04
RAM_SAVE_FLAG_PAGE: Final = 0x08
RAM_SAVE_FLAG_EOS: Final = 0x10
RAM_SAVE_FLAG_CONTINUE: Final = 0x20
RAM_SAVE_FLAG_XBZRLE: Final = 0x40
RAM_SAVE_FLAG_HOOK: Final = 0x80
RAM_SAVE_FLAG_COMPRESS_PAGE: Final = 0x100
RAM_SAVE_FLAG_MULTIFD_FLUSH: Final = 0x200

ENCODING_FLAG_XBZRLE: Final = 1

_PAGE_AGAIN: Final = RAM_SAVE_FLAG_PAGE | RAM_SAVE_FLAG_CONTINUE
_ZERO_AGAIN: Final = RAM_SAVE_FLAG_ZERO | RAM_SAVE_FLAG_CONTINUE
_PAGE_KINDS: Final = (RAM_SAVE_FLAG_ZERO, RAM_SAVE_FLAG_PAGE, RAM_SAVE_FLAG_XBZRLE, RAM_SAVE_FLAG_COMPRESS_PAGE)


class RamSkipper(SaveVMHandlers):
    """Handlers of `ram` that consume it."""

    def __init__(self, configuration: Configuration) -> None:
        """Take page size and capabilities from the stream's configuration section."""
        self._page_size = configuration.page_size
        self._ignore_shared = "x-ignore-shared" in configuration.capabilities
        self._mapped_ram = "mapped-ram" in configuration.capabilities

    def load_state(self, f: InputQEMUFile, version_id: int) -> None:
        """Consume one payload; runs of pages of the same block and of zero pages are dropped in one call."""
        if version_id != RAM_VERSION:
            raise errors.UnsupportedStream(f"section 'ram' has version {version_id}, not 4", position=f.position)
        if self._mapped_ram:
            raise errors.UnsupportedStream("guest memory of a seekable file (mapped-ram)", position=f.position)
        flags_mask = self._page_size - 1
        while True:
            word = f.skip_words(flags_mask, _PAGE_AGAIN, self._page_size, _ZERO_AGAIN, 1)
            if word & flags_mask == RAM_SAVE_FLAG_MEM_SIZE:
                word = self._skip_block_list(f, word & ~flags_mask)
            flags = word & flags_mask
            if flags == RAM_SAVE_FLAG_EOS:
                return
            if flags != RAM_SAVE_FLAG_MULTIFD_FLUSH:
                self._skip_page(f, flags)

    def _skip_page(self, f: InputQEMUFile, flags: int) -> None:
        """Consume what follows the word of a page."""
        kind = flags & ~RAM_SAVE_FLAG_CONTINUE
        if kind not in _PAGE_KINDS:
            raise unknown_flags(flags, f.position - 8)
        if kind == flags:
            f.skip(f.get_byte())
        f.skip(self._payload_size(f, kind))

    def _payload_size(self, f: InputQEMUFile, kind: int) -> int:
        if kind == RAM_SAVE_FLAG_PAGE:
            return self._page_size
        if kind == RAM_SAVE_FLAG_ZERO:
            return 1
        return self._xbzrle_size(f) if kind == RAM_SAVE_FLAG_XBZRLE else self._compressed_size(f)

    def _xbzrle_size(self, f: InputQEMUFile) -> int:
        position = f.position
        encoding, nbytes = f.get_byte(), f.get_be16()
        if encoding != ENCODING_FLAG_XBZRLE or nbytes > self._page_size:
            raise errors.StreamError(f"XBZRLE page of encoding {encoding}, {nbytes} bytes", position=position)
        return nbytes

    def _compressed_size(self, f: InputQEMUFile) -> int:
        position = f.position
        nbytes = f.get_be32()
        if nbytes > 2 * self._page_size:
            raise errors.StreamError(f"a compressed page of {nbytes} bytes", position=position)
        return nbytes

    def _skip_block_list(self, f: InputQEMUFile, total: int) -> int:
        """Consume the list of RAM blocks, `total` bytes of guest memory, and return the first word behind it.

        With postcopy on, a block whose host pages have another size than usual is followed by that size, and no flag
        says so. But a page size starts with a zero byte, and the length of the next block's name is never zero. Behind
        the last block a page size would be a word without flags, and no such word exists.
        """
        while total > 0:
            total -= self._skip_block(f, total)
            if self._ignore_shared or (total > 0 and f.peek_byte() == 0):
                f.skip(8)
        word = f.get_be64()
        return word if word & (self._page_size - 1) or self._ignore_shared else f.get_be64()

    def _skip_block(self, f: InputQEMUFile, limit: int) -> int:
        """Consume name and used length of a block, and return the latter."""
        position = f.position
        f.skip(f.get_byte())
        used_length = f.get_be64()
        if used_length > limit:
            raise errors.StreamError(
                f"a RAM block of {used_length} bytes where {limit} are left of the total", position=position
            )
        return used_length


def unknown_flags(flags: int, position: int) -> errors.StreamError:
    """Return the error for a word that starts nothing known."""
    if flags & RAM_SAVE_FLAG_HOOK:
        return errors.UnsupportedStream("guest memory sent over RDMA (HOOK)", position=position)
    return errors.StreamError(f"section 'ram': unknown combination of flags {flags:#x}", position=position)
