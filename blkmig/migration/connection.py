# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection of an outgoing migration to its target: the stream, and where there is one, the return path.

::

    Connection ─┬─ f             to the target: all that is sent
                └─ return path   from the target: its word that it has everything

Whatever breaks it, the error says which block was on its way. Both directions belong to the migration thread; `cancel`
alone may be called by any thread and any signal handler, so it takes no lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .. import block, channel, errors, logs, savevm, texts
from . import reasons

if TYPE_CHECKING:
    from .. import credentials

logger = logs.Logger(__name__)

HINT = "look at the target's messages"
QEMU_HINT = (
    f"{HINT}; a QEMU that goes away has no drive of that id, one that no device uses, a smaller or a read-only image, "
    "another machine type, or is older than 2.5 and knows no return path (--no-return-path)"
)

REASON_SECONDS = 1.0
"""How long the reason of a target that failed may be on its way after the link broke."""

class Connection:
    """The way to `uri`, which carries what `handlers` send. Raises ParameterError for a bad URI.

    `is_qemu` is whether there is a QEMU at its end; None where nobody said so, and it may be one. `tls` is for tls:.
    """

    def __init__(
        self,
        uri: str,
        handlers: block.BlockSaveHandlers,
        *,
        is_qemu: bool | None = None,
        tls: credentials.TlsParameters | None = None,
    ) -> None:
        # Set here, then read-only.
        self.uri = uri
        self._connector = channel.Connector(uri, tls=tls)
        self._block = handlers
        self._beside: list[channel.Connector] = []  # those of `open_another`; one appends, any thread reads
        # Migration thread only.
        self._f: channel.OutputQEMUFile | None = None
        self.return_path: channel.InputQEMUFile | None = None
        """The way back, where it is open."""

        self._lost_bytes, self._has_said_last = 0, False
        self._is_qemu = is_qemu
        self.has_target_failed = False
        """The target has said so, and does not use what it has."""

        # Any thread may set it, nobody clears it.
        self._cancel_requested = False

    @property
    def transferred(self) -> int:
        """Return the bytes that the channel took, those of links that were lost included."""
        return self._lost_bytes + (0 if self._f is None else self._f.transferred)

    @property
    def f(self) -> channel.OutputQEMUFile:
        """Return the stream, between `connect` and `abort`."""
        assert self._f is not None
        return self._f

    def connect(self, *, timeout: float, opened: int | None = None) -> channel.OutputQEMUFile:
        """Open the stream and return it; blocks for `timeout` seconds at most. A file may be `opened` already."""
        self._f = self._connector.connect(timeout=timeout, opened=opened)
        return self._f

    def connect_again(self, word: bytes, *, timeout: float, idle_timeout: float) -> channel.OutputQEMUFile:
        """Open another stream, after `abort`, with the way back, and say `word` first of all. Blocks."""
        self._renew()
        f = self.connect(timeout=timeout)
        f.set_idle_timeout(idle_timeout)  # first: the way back has the same
        self.open_return_path()
        f.put_buffer(word)
        f.flush()
        return f

    def another(self) -> channel.Connector:
        """Return another way to the same target."""
        return self._connector.another()

    @property
    def takes_several(self) -> bool:
        """Whether more than one connection leads to the same target."""
        return self._connector.takes_several

    def open_another(self, *, timeout: float) -> channel.OutputQEMUFile:
        """Open one more connection beside the present one, which whoever asks has to close. Blocks."""
        connector = self.another()
        self._beside.append(connector)
        try:
            self.check_cancelled()  # behind that, as in `_renew`
            f = connector.connect(timeout=timeout)
        except BaseException:
            connector.close()
            raise
        f.set_idle_timeout(timeout)
        return f

    def rest(self, seconds: float) -> None:
        """Wait, after `abort`. Raises Cancelled at once."""
        self._renew()
        self._connector.wait(seconds)

    def _renew(self) -> None:
        self._connector.close()
        self._connector = self.another()
        self.check_cancelled()  # behind that: whoever cancels sets the flag first, and then cancels what is there

    def open_return_path(self) -> bool:
        """Open the way back; return whether the channel has one."""
        self.return_path = self.f.return_path()
        return self.return_path is not None

    def take_silence_for_one_way(self) -> None:
        """Expect no word of a command that has said nothing: it has no blkmig at its end, or one that cannot answer."""
        if self.f.leads_to_command:
            self.return_path = None
            self.f.go_one_way()

    def cancel(self) -> None:
        """Make every call that is blocked in the channel, and every later one, raise Cancelled."""
        self._cancel_requested = True
        self._connector.cancel()  # the stream and the return path, too
        for connector in tuple(self._beside):
            connector.cancel()

    def check_cancelled(self) -> None:
        """Raise if somebody has cancelled."""
        if self._cancel_requested:
            raise errors.Cancelled("the migration was cancelled")

    # -- what the target says ----------------------------------------------------------------------------------------

    def await_target(self, *, goes_on: bool) -> None:
        """Close the stream, unless it `goes_on`; on a two-way channel, wait for the target's word first."""
        if self.return_path is None:
            self.f.close()
            self._pass_on_what_was_printed()
            return
        with self.losing("waiting for the target's word that it has everything"):
            reason = savevm.await_shut(self.return_path, on_pong=self.is_no_qemu)
        if reason:
            raise self.target_failed(reason, reasons.ALL_SENT)
        if not goes_on:
            self.end_stream()

    def end_stream(self) -> None:
        """Close the stream, of which the target has everything."""
        if self.f.leads_to_command:
            self.f.finish()  # it may have more to do, as to verify: nobody is held for that
        else:
            self.f.close()

    def see_off_command(self) -> None:
        """Wait for a command that has given the target's word to end: whatever becomes of it, the target is complete.

        Never raises an error of the tree.
        """
        if self._f is not None and self._f.leads_to_command:
            try:
                self._f.close()
            except errors.MigrationError as error:
                logger.warning("the target has said that it has everything; and then: %s", error)

    def _pass_on_what_was_printed(self) -> None:
        """Show what a command has said that was taken for one which answers, and did not."""
        for line in self.f.printed().decode("utf-8", "backslashreplace").splitlines():
            logger.warning("%s", texts.printable(line))

    def is_no_qemu(self) -> None:
        """Take note that the target is a blkmig, by what it says."""
        self._is_qemu = False

    def target_failed(self, reason: savevm.Reason, what: str = reasons.BEFORE_END) -> errors.MigrationError:
        """Return the error for what the target has said of its end, and take note that it does not use what it has."""
        self.has_target_failed = reason != 0
        return reasons.failed(what, reason, self.uri)

    @contextlib.contextmanager
    def losing(self, doing: str) -> Iterator[None]:
        """Say what was being done when the target closed its side of the link."""
        try:
            with self.explaining_errors():
                yield
        except errors.TruncatedStream as error:
            own = "" if self._f is None else self._f.why_broken()
            why = f"nothing leaves any more: {own}" if own else "it closed the link"
            raise self._broken(doing, self.uri, why) from error

    # -- the end -----------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Close both directions as they are; after success there is nothing left to close. Twice does no harm."""
        self._lost_bytes = self.transferred
        for f in (self._f, self.return_path):  # the first resets the link; the second one outlives its close()
            if f is not None:
                f.abort()
        self.return_path = self._f = None
        self._beside.clear()
        self._connector.close()

    def say_last(self, words: bytes) -> None:
        """Say `words` to a target that answers, with the stream between two records, also after a cancel; `abort` comes
        next. Never raises."""
        with contextlib.suppress(errors.ChannelError):
            breaker = None if self.return_path is None else self.return_path.breaker()
            if breaker is not None:
                with contextlib.closing(breaker):
                    self._has_said_last = breaker.say_last(words, 0)

    def say_goodbye(self, word: bytes, seconds: float) -> bool:
        """Say `word` on a connection of its own, also after a cancel, and return whether it has left. Never raises.

        Blocks for `seconds` at most, twice. Where `say_last` has said it already this is a second way, which over TLS
        is not tried: a target that opens its disks shakes hands with nobody.
        """
        if self._has_said_last and self.uri.startswith("tls:"):
            return False
        with contextlib.suppress(errors.MigrationError), contextlib.closing(self.another()) as connector:
            f = connector.connect(timeout=seconds)
            f.set_idle_timeout(seconds)
            f.put_buffer(word)
            f.close()
            return True
        return False

    def _look_for_the_reason(self, error: errors.ChannelError) -> None:
        """Raise what the target has said of itself, if it did before the link broke with `error`."""
        if self.return_path is not None and not self._cancel_requested:
            # A target that only stands still has had its time.
            seconds = 0.0 if isinstance(error, errors.ChannelTimeout) else REASON_SECONDS
            reason = savevm.find_reason(self.return_path, seconds)
            if reason is not None:
                raise self.target_failed(reason) from error

    @contextlib.contextmanager
    def explaining_errors(self) -> Iterator[None]:
        """Say of a link that breaks which block was on its way, and what that usually means."""
        try:
            yield
        except (errors.LocalFileError, errors.DamagedOnTheWay):
            raise
        except errors.ChannelError as error:
            self._look_for_the_reason(error)
            if isinstance(error, errors.ChannelTimeout):
                raise
            raise self._broken(error.doing, error.uri, error.why, error.errno) from error

    def _broken(self, doing: str, uri: str, why: str, code: int | None = None) -> errors.ChannelError:
        """Return the error of a link that broke, with the block that was sent last, and how a command has ended."""
        if self._f is not None and "the command ended" not in why:
            why += self._f.command_words()
        blk_mig = self._block.state_if_set_up()  # None: nothing but questions was sent
        sent = None if blk_mig is None else blk_mig.last_sent
        return errors.ChannelError(
            doing,
            uri=uri,
            cause=why if code is None else OSError(code, why),
            device=sent and sent[0].label,
            offset=sent and sent[0].geometry.block_range(sent[1])[0],
            hint=self._hint(),
        )

    def _hint(self) -> str:
        """Return what to do about a link that broke: more about QEMUs if the target may be one."""
        if self._is_qemu is None:
            return QEMU_HINT.replace("; a QEMU that goes away", "; if it is a QEMU, it")
        return QEMU_HINT if self._is_qemu else HINT
