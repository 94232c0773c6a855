# SPDX-License-Identifier: GPL-2.0-or-later
"""How a migration ends that does not succeed, with nothing broken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import base


class IncompleteMigration(base.MigrationError):
    """The stream is complete, its disks are not: `missing` maps each disk to the block ranges that never came.

    A range is ``(first block, number of blocks)``, a block is 1 MiB.
    """

    exit_code = 3

    def __init__(self, message: str, *, missing: dict[str, list[tuple[int, int]]]) -> None:
        super().__init__(message)
        self.missing = missing


class ContentMismatch(base.MigrationError):
    """The target's contents are not those of the source; `offset` is where they begin to differ, if that is known."""

    exit_code = 3

    def __init__(self, message: str, *, device: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.device = device
        self.offset = offset


class NotVerified(base.MigrationError):
    """The target has all, as its word says, and who was to compare was cancelled, had no time, or could not.

    The target is complete, and the writers of a move stay refused: the disk is the target's. Either end raises it.
    """

    exit_code = 3


class WrongBase(ContentMismatch):
    """The target does not hold what the source's base holds; nothing was written."""


class NotConverged(base.MigrationError):
    """The writers dirty blocks faster than the link carries them; the source is untouched and still in use.

    `dirty_rate` and `bandwidth` are bytes per second, `pending` is bytes. `written_rate` is what the writers write,
    which is less than they dirty, for that counts in whole granules; None where a disk does not count it.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        dirty_rate: float,
        bandwidth: float,
        pending: int,
        rounds: int,
        written_rate: float | None = None,
    ) -> None:
        super().__init__(message)
        self.dirty_rate = dirty_rate
        self.bandwidth = bandwidth
        self.pending = pending
        self.rounds = rounds
        self.written_rate = written_rate


class InDoubt(base.MigrationError):
    """What one end has done, and the other end's word or knowledge of it is not to be had.

    At the source: a disk was to move, COMMIT or the end of its stream has left, and the target's word did not come. The
    target may own the disk, so the source's writers stay held: only the operator can know on which side the disk may be
    used. A move that begins later with a disk that such a one has left, as its session file says, is refused likewise.

    At the target: nobody knows whether it is stored that it takes the disks; or, with a source that does not know
    COMMIT, all is on stable storage, and the link broke when the source was told. The target stays. Also where a
    receiver meets disks that one before it had taken when it was killed: they have their names then, and nothing was
    received. `taken` is what its session file said then, {} in all other cases.
    """

    exit_code = 7

    def __init__(self, message: str, *, taken: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.taken: Mapping[str, Any] = {} if taken is None else taken


class Cancelled(base.MigrationError):
    """The migration was cancelled; both disks are closed, the source is still in use, the target is incomplete.

    A copy that its source cancels when all of it has been sent may be complete: the receiver says so.
    """

    exit_code = 130
