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
import math
import time
from collections.abc import Iterator

from .. import block, channel, errors, savevm
from . import reasons

HINT = "look at the target's messages"
QEMU_HINT = (
    f"{HINT}; a QEMU that goes away has no drive of that id, one that no device uses, a smaller or a read-only image, "
    "another machine type, or is older than 2.5 and knows no return path (--no-return-path)"
)

REASON_SECONDS = 1.0
"""How long the reason of a target that failed may be on its way after the link broke."""

ASK_TREES, KNOWS_TREES = 0x74726565, 0x54524545
"""The value of the PING that asks whether the target verifies digests in the form of a tree, and that of a PONG which
says that it does. Whoever does not know the question answers a PING like any other."""

LONGEST_WAIT = 86400.0
"""Seconds that the kernel is asked to wait at a time, where nothing bounds a wait."""

LEAST_MESSAGE_SECONDS = 1.0
"""How long a message of which a part has come may take, however late it began."""

Message = tuple[int, "int | savevm.Word | None"]
"""What came on the return path: its type and its value."""
BASE_PING = 0x62617365
"""The value of the PING that asks whether the target has compared the disks' bases."""

BARRIER_PING = 0x656E6400
"""PINGs that ask whether the target has taken everything have this value plus 1, 2, 3 ...: ``end`` and a number."""


class Connection:
    """The way to `uri`, which carries what `handlers` send. Raises ParameterError for a bad URI.

    `is_qemu` is whether there is a QEMU at its end; None where nobody said so, and it may be one.
    """

    def __init__(self, uri: str, handlers: block.BlockSaveHandlers, *, is_qemu: bool | None = None) -> None:
        # Set here, then read-only.
        self._uri = uri
        self._connector = channel.Connector(uri)
        self._block = handlers
        # Migration thread only.
        self._f: channel.OutputQEMUFile | None = None
        self._return_path: channel.InputQEMUFile | None = None
        self._barriers = 0
        self._is_reply_due = False
        self.knows_trees = False
        """The target has said that it verifies digests in the form of a tree."""

        self._is_qemu = is_qemu
        self.has_target_failed = False
        """The target has said so, and does not use what it has."""

        # Any thread may set it, nobody clears it.
        self._cancel_requested = False

    @property
    def f(self) -> channel.OutputQEMUFile:
        """Return the stream, between `connect` and `abort`."""
        assert self._f is not None
        return self._f

    def connect(self, *, timeout: float, opened: int | None = None) -> channel.OutputQEMUFile:
        """Open the stream and return it; blocks for `timeout` seconds at most. A file may be `opened` already."""
        self._f = self._connector.connect(timeout=timeout, opened=opened)
        return self._f

    def open_return_path(self) -> bool:
        """Open the way back; return whether the channel has one."""
        self._return_path = self.f.return_path()
        return self._return_path is not None

    @property
    def is_answered(self) -> bool:
        """Whether the way back is open."""
        return self._return_path is not None

    def cancel(self) -> None:
        """Make every call that is blocked in the channel, and every later one, raise Cancelled."""
        self._cancel_requested = True
        self._connector.cancel()  # the stream and the return path, too

    def check_cancelled(self) -> None:
        """Raise if somebody has cancelled."""
        if self._cancel_requested:
            raise errors.Cancelled("the migration was cancelled")

    def ask_for_trees(self, state: savevm.SaveState) -> None:
        """Ask whether the target knows digests in the form of a tree; it has until the pause to say so."""
        if self._return_path is not None:
            state.send_ping(self.f, ASK_TREES)

    # -- what the target says ----------------------------------------------------------------------------------------

    def check_target(self) -> None:
        """Raise if the target has ended the migration: before the stream's end, its word is never one of success.

        It does not wait. Other messages that have come are passed over.
        """
        path = self._return_path
        with self._losing("looking for what the target says"):
            while path is not None and path.wait_readable(0):
                self._read_before_end(path)

    def ask_for_blkmig(self, state: savevm.SaveState, seconds: float) -> savevm.Hello | None:
        """Ask which versions of the section ``blkmig`` the target takes; None if it does not say so in `seconds`."""
        with self.explaining_errors():
            state.send_ping(self.f, savevm.ASK)
        with self._losing("asking the target which section it takes"):
            for kind, value in self._heard_within(seconds):
                if isinstance(value, savevm.Hello):
                    return value
                if kind == savevm.MIG_RP_MSG_PONG and value == savevm.ASK:
                    return None
        return None

    def await_reply(self) -> None:
        """Wait for the target to take the disks of a section ``blkmig``; a one-way channel has no answer. Blocks.

        Raises :class:`~blkmig.errors.TargetFailed` if it refuses some. It has changed nothing then.
        """
        path = self._return_path
        if path is None or self._block.format != "blkmig":
            return
        doing, idle, self._is_reply_due = "waiting for the target to take the disks", path.idle_timeout, True
        with self._losing(doing):
            for _, value in self._heard_within(idle or math.inf):
                if isinstance(value, savevm.Reply):
                    self._is_reply_due = False
                    if not value.refusals:
                        return
                    self.has_target_failed = True
                    raise reasons.refused(value.refusals, self._block.table, path.position)
            why = f"it has not said within {idle:g} s whether it does (--idle-timeout)"
            raise errors.ChannelTimeout(doing, uri=self._uri, cause=why)

    def begin_barrier(self, state: savevm.SaveState) -> None:
        """Ask the target to answer when it has taken everything that was sent; `end_barrier` waits for it.

        A section ``blkmig`` asks for more: that everything is on stable storage.
        """
        if self._return_path is not None:
            self._barriers += 1
            with self.explaining_errors():
                if self._block.format == "blkmig":
                    state.state_part(self.f, "blkmig", block.flush_records(self._barriers))
                else:
                    state.send_ping(self.f, BARRIER_PING + self._barriers)

    def end_barrier(self) -> None:
        """Wait for the answer to the last `begin_barrier`; a one-way channel has none. Blocks.

        A target that flushes gives signs of life, for which it may be ten times as long idle.
        """
        path = self._return_path
        if path is None:
            return
        flushes = self._block.format == "blkmig"
        answer = (savevm.MIG_RP_MSG_PONG, BARRIER_PING + self._barriers)
        if flushes:
            answer = (savevm.MIG_RP_MSG_READY, self._barriers)
            end = time.monotonic() + path.idle_timeout * savevm.PATIENCE
        with self._losing("waiting for the target to take what was sent"):
            while self._read_before_end(path) != answer:
                if flushes and time.monotonic() < end:
                    path.payload_came()

    def await_base_checked(self, state: savevm.SaveState) -> None:
        """Wait until the target has compared what it was told of the disks' bases; a one-way channel does not tell.

        Blocks. A target that takes its time says so in PONGs, and how far it is. Raises what it has to say.
        """
        path = self._return_path
        if path is None:
            return
        with self.explaining_errors():
            state.send_ping(self.f, BASE_PING)
        patience = savevm.Patience(path, time.monotonic)
        with self._losing("waiting for the target to compare the disks' bases"):
            while (heard := self._read_before_end(path)) != (savevm.MIG_RP_MSG_PONG, BASE_PING):
                patience.heard(heard[1])

    def _heard_within(self, seconds: float) -> Iterator[Message]:
        """Yield the messages that come within `seconds`, however many; a half one that stands still is an error."""
        path = self._return_path
        assert path is not None
        idle, end = path.idle_timeout, time.monotonic() + seconds
        try:
            while (left := min(end - time.monotonic(), LONGEST_WAIT)) > 0:
                if path.wait_readable(left):
                    path.set_idle_timeout(max(left, LEAST_MESSAGE_SECONDS), first=left)
                    yield self._read_before_end(path)
        finally:
            path.set_idle_timeout(idle, first=idle)

    def _read_before_end(self, path: channel.InputQEMUFile) -> Message:
        """Return the next message; raise if it is one that ends the migration. Blocks."""
        position = path.position
        kind, value = savevm.read_message(path)
        if kind == savevm.MIG_RP_MSG_SHUT:
            raise self._target_failed(value if isinstance(value, int) else 0)
        if isinstance(value, savevm.Failure):
            raise self._target_failed(value)
        if isinstance(value, savevm.Reply) and not self._is_reply_due:
            raise errors.StreamError("the target replies to what nobody has asked", position=position)
        if kind == savevm.MIG_RP_MSG_PONG and value == KNOWS_TREES:
            self.knows_trees = True
        if isinstance(value, savevm.Word) or (kind == savevm.MIG_RP_MSG_PONG and not self._is_answer(value)):
            self._is_no_qemu()
        return kind, value

    def _is_answer(self, value: object) -> bool:
        """Return whether a PONG answers one of our PINGs."""
        is_barrier = isinstance(value, int) and BARRIER_PING < value <= BARRIER_PING + self._barriers
        return is_barrier or value in (ASK_TREES, BASE_PING, savevm.ASK)

    def await_target(self) -> None:
        """Close the stream; on a two-way channel, wait for the target's word first."""
        if self._return_path is not None:
            with self._losing("waiting for the target's word that it has everything"):
                reason = savevm.await_shut(self._return_path, on_pong=self._is_no_qemu)
            if reason:
                raise self._target_failed(reason, "received everything, but failed")
        self.f.close()

    def _is_no_qemu(self) -> None:
        """Take note that the target is a blkmig, by what it says."""
        self._is_qemu = False

    def _target_failed(
        self, reason: savevm.Reason, what: str = "has ended the migration before the stream's end"
    ) -> errors.MigrationError:
        """Return the error for what the target has said of its end, and take note that it does not use what it has."""
        self.has_target_failed = True
        return reasons.failed(what, reason)

    @contextlib.contextmanager
    def _losing(self, doing: str) -> Iterator[None]:
        """Say what was being done when the target closed its side of the link."""
        try:
            with self.explaining_errors():
                yield
        except errors.TruncatedStream as error:
            raise self._broken(doing, self._uri, "it closed the link") from error

    # -- the end -----------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Close both directions as they are; after success there is nothing left to close. Twice does no harm."""
        for f in (self._f, self._return_path):  # the first resets the link; the second one outlives its close()
            if f is not None:
                f.abort()
        self._return_path = self._f = None
        self._connector.close()

    def _look_for_the_reason(self, error: errors.ChannelError) -> None:
        """Raise what the target has said of itself, if it did before the link broke with `error`."""
        if self._return_path is not None and not self._cancel_requested:
            # A target that only stands still has had its time.
            seconds = 0.0 if isinstance(error, errors.ChannelTimeout) else REASON_SECONDS
            reason = savevm.find_reason(self._return_path, seconds)
            if reason is not None:
                raise self._target_failed(reason) from error

    @contextlib.contextmanager
    def explaining_errors(self) -> Iterator[None]:
        """Say of a link that breaks which block was on its way, and what that usually means."""
        try:
            yield
        except errors.LocalFileError:
            raise
        except errors.ChannelError as error:
            self._look_for_the_reason(error)
            if isinstance(error, errors.ChannelTimeout):
                raise
            cause = error.why if error.errno is None else OSError(error.errno, error.why)
            raise self._broken(error.doing, error.uri, cause) from error

    def _broken(self, doing: str, uri: str, cause: OSError | str) -> errors.ChannelError:
        """Return the error of a link that broke, with the block that was sent last."""
        blk_mig = self._block.state_if_set_up()  # None: nothing but questions was sent
        sent = None if blk_mig is None else blk_mig.last_sent
        return errors.ChannelError(
            doing,
            uri=uri,
            cause=cause,
            device=sent and sent[0].label,
            offset=sent and sent[0].geometry.block_range(sent[1])[0],
            hint=self._hint(),
        )

    def _hint(self) -> str:
        """Return what to do about a link that broke: more about QEMUs if the target may be one."""
        if self._is_qemu is None:
            return QEMU_HINT.replace("; a QEMU that goes away", "; if it is a QEMU, it")
        return QEMU_HINT if self._is_qemu else HINT
