# SPDX-License-Identifier: GPL-2.0-or-later
"""A receiver that was killed when it had taken its disks, and a source that asks: whoever is started next answers.

::

    killed    COMMIT n ─ "committing" is stored ─ killed
    source                         the link is lost ─ "blkS" ... "blkS" ─────────────────── COMMIT n ─ it knows
    next      the session file: names ─ listen ───────────────────────── SESSION, DONE n ──────────────────── exit 7

The session file has the session's key, what its token was made of, and when it was stored; a source that may still ask
is waited for as long as the killed receiver would have waited. Nothing is received.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .. import channel, errors, logs, savevm
from . import farewell

if TYPE_CHECKING:
    from .. import credentials

logger = logs.Logger(__name__)

MOST_SECONDS = 4000.0
"""No receiver waits longer, whatever a clock says that was set."""


class Answering:
    """The wait for the source of disks that were taken; any thread, and any signal handler, may cancel it."""

    def __init__(self) -> None:
        # Whoever cancels sets the first and then looks at the second; whoever listens does it the other way round.
        self._cancel_requested = False
        self._listener: channel.Listener | None = None

    def cancel(self) -> None:
        """Do not wait any more, now or later."""
        self._cancel_requested = True
        if self._listener is not None:
            self._listener.cancel()

    @contextlib.contextmanager
    def at(self, uri: str, tls: credentials.TlsParameters | None) -> Iterator[None]:
        """Answer at `uri` the source of disks that the body finds taken, and then raise what it has raised. Blocks."""
        try:
            yield
        except errors.InDoubt as error:
            if error.taken:
                seconds = error.taken["seconds"]
                logger.warning("%s; its source is waited for, for %s s at most, to be told", error, seconds)
                secret = bytes.fromhex(error.taken.get("secret", ""))
                error.taken = {name: value for name, value in error.taken.items() if name != "secret"}
                with errors.keeping(error):
                    has_asked = self._answer(uri, tls, error.taken, secret)
                    error.add_note("its source has asked, and knows" if has_asked else "its source has not asked")
            raise

    def _answer(
        self, uri: str, tls: credentials.TlsParameters | None, taken: Mapping[str, Any], secret: bytes
    ) -> bool:
        """Wait for the source, and tell it that the disks were taken; return whether it has come.

        Where it has a token, that is made again of its `secret`, for the source trusts nobody else.
        """
        deadline = time.monotonic() + min(taken["seconds"], MOST_SECONDS)
        key = bytes.fromhex(taken["key"])
        magics = [savevm.AGAIN_MAGIC + key, savevm.RESUME_MAGIC + key]
        with contextlib.closing(channel.listen(uri, tls=None if secret else tls, secret=secret)) as listener:
            self._listener = listener
            if self._cancel_requested:
                return False
            while listener.takes_several and (left := deadline - time.monotonic()) > 0:
                try:
                    f = listener.accept(timeout=left, magics=magics, nbytes=savevm.AGAIN_NBYTES)
                except (errors.ChannelTimeout, errors.Cancelled):
                    break
                with contextlib.suppress(errors.ChannelError, errors.TruncatedStream), contextlib.ExitStack() as stack:
                    stack.callback(f.abort)
                    if f.starts_with(savevm.RESUME_MAGIC):
                        f.skip(savevm.AGAIN_NBYTES)
                        tell_owner(f, savevm.Resumed(savevm.Waiting.OWNER, taken["end"]))
                        return True
                    if not savevm.parse_again(f.get_buffer(savevm.AGAIN_NBYTES)).seconds:
                        break  # it has given up
                    _tell(f, taken["end"])
                    return True
        return False


def tell_owner(f: channel.InputQEMUFile, word: savevm.Resumed) -> bool:
    """Tell another process of the source on `f`, which resumes, that the disks are this host's. Never raises.

    Returns whether it has heard that: it has closed its link then, and left nothing unread.
    """
    with contextlib.suppress(errors.ChannelError, errors.TruncatedStream):
        f.set_idle_timeout(farewell.CLOSE_SECONDS)
        back = f.return_path()
        assert back is not None
        savevm.send_word(back, word)
        return farewell.read_on(f, farewell.CLOSE_SECONDS)
    return False


def _tell(f: channel.InputQEMUFile, number: int) -> None:
    """Say DONE, whatever the source says: it can only say COMMIT once more, and what ends its stream."""
    f.set_idle_timeout(farewell.CLOSE_SECONDS)
    back = f.return_path()
    assert back is not None
    answer = savevm.SessionAnswer(savevm.FIRST_INCARNATION, 0, number, takes_barriers=True, waits=True)
    savevm.send_word(back, answer)
    savevm.send_word(back, savevm.Done(number, ()))
    with contextlib.suppress(errors.ChannelError, errors.TruncatedStream):
        farewell.read_on(f, farewell.CLOSE_SECONDS)
