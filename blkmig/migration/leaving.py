# SPDX-License-Identifier: GPL-2.0-or-later
"""What stays of targets that did not become complete."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .. import block, errors, sources


@dataclasses.dataclass(slots=True)
class Leaving:
    """Whether what has come is kept under its hidden name, for a source that resumes, if it does not become complete.

    It is so when the link of a session was lost for good, or while it was away, and after any error of a migration that
    resumes another one. So it is, whatever has come, where another process of the source resumes while this receiver
    waits for it. The thread that loads has it.
    """

    resumes: bool = False
    """The disks of the stream go on with what an earlier migration has left of them."""

    has_session: bool = False
    is_link_away: bool = False
    """The link is lost, and the source is waited for."""

    is_taken_over: bool = False
    """Another process of the source resumes."""

    def is_left(self, exc: BaseException | None, devices: Sequence[block.BlkLoadDevice]) -> bool:
        """Return whether it is so after a body that has raised `exc`."""
        is_lost = self.is_link_away or isinstance(exc, errors.ChannelError | errors.TruncatedStream)
        has_come = any(device.statistics.has_come for device in devices)
        return self.resumes or self.is_taken_over or (self.has_session and is_lost and has_come)


def why_not(came: Sequence[sources.TargetFile | None], *, has_session_file: bool) -> str:
    """Return why the targets that were opened cannot be resumed by another process of the source; "" if they can."""
    made = [target for target in came if target is not None and target.is_new and not target.reuse.is_filled]
    if not all(target.may_be_left for target in made):
        return "nothing can be resumed: an image that is not raw is made anew"
    if made and not has_session_file:
        return "nothing can be resumed: there was no place for this receiver's session file (--state-dir)"
    return ""


def say_what_is_broken(
    exc: BaseException, devices: Sequence[block.BlkLoadDevice], targets: Sequence[sources.TargetFile | None]
) -> None:
    """Note what is left of targets that were there before: a part of a disk, or what they held."""
    for device, target in zip(devices, targets, strict=True):
        if target is not None and target.is_new:
            continue
        name, files = device.statistics.name, device.backend.files
        where = repr(files[0].path) if files else f"the target of disk {name!r}"
        if device.statistics.has_come:
            exc.add_note(f"{where} holds a part of the disk: do not use it before all of it has come")
        elif isinstance(exc, errors.OutOfRange) and exc.device == name:
            exc.add_note(f"{where} is as it was: nothing was written to it")
