# SPDX-License-Identifier: GPL-2.0-or-later
"""The next record of a section of disks, or that there is none because the source could not read its disk."""

from __future__ import annotations

from .. import _core, channel, errors, savevm


def next_run(f: channel.InputQEMUFile) -> tuple[int, bytes, int, int]:
    """Return the next record, or say that the source could not read its disk.

    A source that meets a read error closes the section without EOS: where a record is due, there is the footer. Behind
    it, at the place of the flags, are the upper bytes of a section's id, which are zeros.
    """
    position = f.position
    try:
        run = f.next_run()
    except errors.TruncatedStream:
        if is_footer_next(f):
            raise source_read_error(position) from None
        raise
    flags, _, sector, _ = run
    if not flags & _core.FLAG_EOS and sector >> (56 - _core.SECTOR_BITS) == savevm.QEMU_VM_SECTION_FOOTER:
        raise source_read_error(position)
    return run


def is_footer_next(f: channel.InputQEMUFile) -> bool:
    """Return whether the rest of a stream that ended within a record starts like a section footer."""
    try:
        return savevm.looks_like_footer(f)
    except errors.TruncatedStream:
        return False


def source_read_error(position: int) -> errors.SourceReadError:
    """Return the error for a section that ended without EOS."""
    return errors.SourceReadError(
        "the source could not read its disk and gave up: look for a read error in its log, then start again",
        position=position,
    )
