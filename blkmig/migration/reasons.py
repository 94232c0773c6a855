# SPDX-License-Identifier: GPL-2.0-or-later
"""What a target has said of its failure, or of the disks that it does not take, as an error of the source."""

from __future__ import annotations

from collections.abc import Sequence

from .. import block, errors, savevm

BEFORE_END = "has ended the migration before the stream's end"
ALL_SENT = "said, when everything was sent, that it has failed"
"""What a target has done that says so early, or when it was told that this is all. How much of it had come there by
then, and was written, nobody knows here."""


NO_SESSION = (
    "the target compares with old copies that it holds, and is an older blkmig, whose link does not come back then: "
    "send without --reconnect, or everything with --no-delta"
)
SUPERSEDED = (
    "another sender has gone on with this migration, and this one ends [{}]. If that one moves the disks, do not use "
    "them here before it has ended: with exit code 0, they are the target's"
)


def advise(error: errors.ChannelError, *, compares: bool, base_is_due: bool) -> None:
    """Note at `error`, which is a link that does not come back, what to do next, where that is more than to migrate
    again."""
    if compares:
        error.add_note(
            "start the receiver again as before, and send again: what it holds is compared, and what differs is sent"
        )
    elif base_is_due:
        error.add_note(
            "the link was lost while the disks' bases were compared, and nothing was written yet: start the receiver "
            "again, and send again"
        )


def failed(what: str, reason: savevm.Reason, uri: str) -> errors.MigrationError:
    """Return the error for a target at `uri` that `what`, by the status of its SHUT or by its own words."""
    if isinstance(reason, int):
        why = f"the target {what}: {savevm.describe_status(reason)}"
        if reason == savevm.WRONG_BASE:
            return errors.WrongBase(why, device="")
        return errors.TargetFailed(why, errno=reason if reason > 1 else None)
    if reason.errno == savevm.WRONG_BASE:
        return errors.WrongBase(f"the target {what}: {reason.text}", device=reason.device)
    if reason.errno == savevm.DAMAGED and reason.offset is not None:
        return errors.DamagedOnTheWay(
            f"the target {what}", uri=uri, device=reason.device, offset=reason.offset
        )
    return errors.TargetFailed(
        f"the target {what}: {reason.text}",
        device=reason.device or None,
        offset=reason.offset,
        errno=reason.errno or None,
    )


def refused(
    refusals: Sequence[savevm.Refusal], table: Sequence[block.TableDisk], position: int
) -> errors.TargetFailed:
    """Return the one error for all disks of the table that the target refuses.

    Raises :class:`~blkmig.errors.StreamError` for one that the table does not have; the reply ends at `position`.
    """
    if any(refusal.disk >= len(table) for refusal in refusals):
        raise errors.StreamError("the target refuses a disk that nobody has offered", position=position)
    texts = [f"disk {table[refusal.disk].label!r}: {refusal.text}" for refusal in refusals]
    first = refusals[0]
    return errors.TargetFailed(
        f"the target does not take {'; '.join(texts)}",
        device=table[first.disk].label,
        errno=first.errno or None,
    )


def nameless(refusals: Sequence[savevm.Refusal], table: Sequence[block.TableDisk]) -> errors.TargetFailed:
    """Return the error for a copy that is complete, and of which disks have not got their names."""
    first = refusals[0]
    return errors.TargetFailed(
        f"the target has everything, but not under its name: {'; '.join(refusal.text for refusal in refusals)}",
        device=table[first.disk].label if first.disk < len(table) else None,
        errno=first.errno or None,
    )
