# SPDX-License-Identifier: GPL-2.0-or-later
"""The last that a receiver says to its source: the word that everything is on stable storage, or why it is not.

::

    success   SHUT 0 ──► wait a moment until the source closes the link, which it does when it has the word
    failure   SHUT reason ──► read on for a moment: closing a link with unread bytes resets it, and loses the reason

The reason is an errno as far as there is one that fits, else 1. A QEMU takes everything but 0 for a failure.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator

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
    (errors.WrongBase, savevm.WRONG_BASE),
    (errors.DamagedOnTheWay, savevm.DAMAGED),
    (errors.ContentMismatch, errno.ENOKEY),  # before the word: a stream that cannot be verified
    (errors.DeviceBusy, errno.EBUSY),
]
FAILED = 1

DOING = "telling the source that everything is on stable storage"

_GONE = frozenset({errno.EPIPE, errno.ECONNRESET})
"""A link that refuses the word so had been closed by the source before."""


def status_of(error: BaseException) -> int:
    """Return the status that tells a source of `error`: an errno, or 1."""
    own = getattr(error, "errno", None)
    if isinstance(own, int) and own > 0:
        return own
    return next((status for kind, status in _REASONS if isinstance(error, kind)), FAILED)


def errno_of(error: BaseException) -> int:
    """Return the errno that tells a source of `error`, 0 if there is none that fits."""
    status = status_of(error)
    return status if status != FAILED else 0


def failure_of(error: BaseException) -> savevm.Failure:
    """Return what tells a source that is a blkmig of `error`."""
    device, offset = getattr(error, "device", None), getattr(error, "offset", None)
    return savevm.Failure(
        str(error) or type(error).__name__,
        errno_of(error),
        offset if isinstance(offset, int) else None,
        device if isinstance(device, str) else "",
    )


def give_word(loader: savevm.LoadVM, f: channel.InputQEMUFile, *, goes_on: bool = False) -> None:
    """Tell a source that waits for it that everything is on stable storage.

    With `goes_on` the source has more to say, and its first byte proves that it has the word.
    Blocks for three seconds at most where the source has the word and does not close its link, and for the idle
    time-out where it does not take it. Raises :class:`~blkmig.errors.ChannelError` if the source had closed or reset
    the link before: it has given up, and nothing was completed. Past that the word may be at the source, whatever
    happens here: a link that breaks then, and a cancel, is :class:`~blkmig.errors.InDoubt`, and the targets must stay.
    """
    if not loader.is_awaited:
        return
    try:
        loader.finish(0)
    except errors.ChannelError as error:
        if error.errno in _GONE:
            raise errors.ChannelError(
                DOING,
                uri=f.uri,
                cause=_cause(error),
                hint="the source has given up, or its host has failed; its writers may have gone on: migrate again",
            ) from error
        raise _in_doubt(f, error) from error
    except errors.Cancelled as error:  # nobody knows how much of the word has left
        raise _in_doubt(f, error) from error
    try:
        if not (f.wait_readable(CLOSE_SECONDS) if goes_on else read_on(f, CLOSE_SECONDS)):
            loader.way_back.wait_until_told()
    except (errors.ChannelError, errors.TruncatedStream, errors.Cancelled) as error:  # the 2nd: a link that was reset
        raise _in_doubt(f, error) from error


class Word:
    """Our word to a source that waits for no more than that."""

    def __init__(self) -> None:
        self.is_given: bool | None = False
        """Whether the source has it; None where it may have it. Any thread may read it."""

    def give(self, loader: savevm.LoadVM, f: channel.InputQEMUFile, confirm: Callable[[], object], *, goes_on: bool
    ) -> None:  # fmt: skip
        """Give it as `give_word` does, and `confirm` what was published, unless the source did not get it."""
        self.is_given = None
        try:
            give_word(loader, f, goes_on=goes_on)
        except errors.ChannelError:
            self.is_given = False  # so the targets are taken back
            raise
        except BaseException:
            confirm()  # it may have got it
            raise
        self.is_given = True
        confirm()


def _in_doubt(f: channel.InputQEMUFile, error: errors.MigrationError) -> errors.InDoubt:
    """Return the error of a receiver that cannot know whether its source has the word."""
    cause = _cause(error)
    why = cause if isinstance(cause, str) else cause.strerror
    return errors.InDoubt(
        f"{DOING}: {why} [{f.uri}]; the target is whole, and the source may not know that: its own message says "
        "whether it has the word. If the source has given up, its writers may have gone on: migrate again"
    )


def _cause(error: errors.MigrationError) -> OSError | str:
    if isinstance(error, errors.Cancelled):
        return "this end was cancelled"
    return error.__cause__ if isinstance(error.__cause__, OSError) else "the link broke"


def give_reason(loader: savevm.LoadVM, f: channel.InputQEMUFile, error: BaseException) -> None:
    """Tell a source that listens why it failed; never raises. Blocks for two seconds at most."""
    if not loader.is_awaited:
        return
    with contextlib.suppress(errors.MigrationError):
        loader.finish(status_of(error), failure_of(error))
        if isinstance(error, Exception):  # who interrupts this program does not want to wait
            read_on(f, DRAIN_SECONDS)


@contextlib.contextmanager
def behind_the_word() -> Iterator[None]:
    """Compare, in a ``with``, when the source has our word: a cancel, or a disk that cannot be read back, takes nothing
    back then, and says so."""
    try:
        yield
    except (errors.Cancelled, errors.DeviceError) as error:
        why = "comparing was cut short" if isinstance(error, errors.Cancelled) else error
        raise errors.NotVerified(
            f"everything has come and is complete here, but it is not verified: {why}"
        ) from error


def tell(f: channel.InputQEMUFile, error: BaseException) -> None:
    """Tell a source on `f` that has begun no stream why this end failed; never raises. Blocks for two seconds at most.
    """
    with contextlib.suppress(errors.MigrationError):
        back = f.return_path()
        assert back is not None
        back.put_buffer(savevm.last_words(status_of(error), failure_of(error)))
        back.close()
        if isinstance(error, Exception):
            read_on(f, DRAIN_SECONDS)


def read_on(f: channel.InputQEMUFile, seconds: float) -> bool:
    """Read and drop what comes until the stream ends, then True, or `seconds` are over. Raises if the link broke."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and f.wait_readable(left):
        if not f.get_some(_PIECE):
            return True
    return False
