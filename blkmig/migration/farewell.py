# SPDX-License-Identifier: GPL-2.0-or-later
"""The last that a receiver says to its source: the word that everything is on stable storage, or why it is not.

::

    success   SHUT 0 ──► wait a moment for the source to close the link: a source that gave up has reset it
    failure   SHUT reason, no more ──► read on for a moment: what comes would have the link reset, and the reason lost

The reason is an errno as far as there is one that fits, else 1. A QEMU takes everything but 0 for a failure.
"""

from __future__ import annotations

import contextlib
import errno
import time

from .. import channel, errors, savevm

CLOSE_SECONDS = 3.0
"""How long a source that has the word may take to close its link, before it is believed to have it."""

DRAIN_SECONDS = 2.0
"""How long what a source still sends is read and dropped, so that it finds the reason."""

_PIECE = 1 << 18

_REASONS: list[tuple[type[errors.MigrationError], int]] = [
    (errors.Cancelled, errno.ECANCELED),
    (errors.UnknownDevice, errno.ENODEV),
    (errors.OutOfRange, errno.EFBIG),
    (errors.UnsupportedStream, errno.EOPNOTSUPP),
    (errors.StreamError, errno.EBADMSG),
    (errors.IncompleteMigration, errno.ENODATA),
    (errors.ContentMismatch, errno.EILSEQ),
    (errors.DeviceBusy, errno.EBUSY),
]
FAILED = 1


def status_of(error: BaseException) -> int:
    """Return the status that tells a source of `error`: an errno, or 1."""
    own = getattr(error, "errno", None)
    if isinstance(own, int) and own > 0:
        return own
    return next((status for kind, status in _REASONS if isinstance(error, kind)), FAILED)


def give_word(loader: savevm.LoadVM, f: channel.InputQEMUFile) -> None:
    """Tell a source that waits for it that everything is on stable storage, and see that it did not give up before.

    Blocks for three seconds at most where the source has the word and does not close its link, and for the idle
    time-out where it does not take it. Raises :class:`~blkmig.errors.ChannelError` if the word was not delivered: then
    nothing was completed.
    """
    if not loader.is_awaited:
        return
    try:
        loader.finish(0)
        if not read_on(f, CLOSE_SECONDS):
            loader.wait_until_told()
    except (errors.ChannelError, errors.TruncatedStream) as error:  # the latter is a link that was reset
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else "the link broke"
        raise errors.ChannelError(
            "telling the source that everything is on stable storage",
            uri=f.uri,
            cause=cause,
            hint="the source has given up, and its writers may have gone on: do not use the target, and migrate again "
            "(if the disk was to move, look at the source's message for who owns it)",
        ) from error


def give_reason(loader: savevm.LoadVM, f: channel.InputQEMUFile, error: BaseException) -> None:
    """Tell a source that listens why it failed; never raises. Blocks for two seconds at most."""
    if not loader.is_awaited:
        return
    with contextlib.suppress(errors.MigrationError):
        loader.finish(status_of(error))
        if isinstance(error, Exception):  # who interrupts this program does not want to wait
            read_on(f, DRAIN_SECONDS)


def read_on(f: channel.InputQEMUFile, seconds: float) -> bool:
    """Read and drop what comes until the stream ends, then True, or `seconds` are over. Raises if the link broke."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and f.wait_readable(left):
        if not f.get_some(_PIECE):
            return True
    return False
