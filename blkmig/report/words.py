# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict on a migration, in words, and the figures that stand beside it."""

from __future__ import annotations

from .. import errors, stats, units
from . import recorder

TITLES = {"completed": "Done", "failed": "Failed", "cancelled": "Cancelled"}


def title(recorded: recorder.Recorder) -> str:
    """Return the verdict in one word."""
    return TITLES.get(_ended(recorded), "Not ended")


def css(recorded: recorder.Recorder) -> str:
    """Return how the verdict looks."""
    return {"completed": "good", "failed": "bad"}.get(_ended(recorded), "unsure")


def _ended(recorded: recorder.Recorder) -> str:
    if recorded.error is not None and recorded.status not in TITLES:
        return "failed" if isinstance(recorded.error, Exception) else "cancelled"
    return "cancelled" if recorded.status == "cancelling" else recorded.status


def sentences(recorded: recorder.Recorder) -> list[str]:
    """Return what happened, from the most important to the least."""
    found = recorded.statistics
    said = [recorded.reason] if recorded.reason else []
    said += getattr(recorded.error, "__notes__", [])
    if found is None:
        return said
    if isinstance(found, stats.OutgoingStatistics):
        said += _outgoing(recorded, found)
    else:
        said.append(f"{units.format_size(found.transferred)} came in {units.format_duration(found.total_time)}.")
        verified = sum(disk.verified for disk in found.disks.values())
        if verified:
            said.append(f"{units.counted(verified, 'disk was', 'disks were')} read back and compared with the source.")
    return said + found.notes


def _outgoing(recorded: recorder.Recorder, found: stats.OutgoingStatistics) -> list[str]:
    size, seconds = units.format_size(found.transferred), units.format_duration(found.total_time)
    said = [f"{units.counted(len(found.disks), 'disk')} of {units.format_size(found.disk_bytes)}: {size} went over "
            f"the wire in {seconds}."]  # fmt: skip
    if found.downtime is not None:
        within = "within" if found.downtime <= found.downtime_limit else "over"
        said.append(
            f"The writers were held for {units.format_duration(found.downtime)}, {within} the limit of "
            f"{units.format_duration(found.downtime_limit)}."
        )
    elif recorded.samples.kept and recorded.samples.kept[-1].left:
        left = units.format_size(recorded.samples.kept[-1].left or 0)
        goes_on = "" if isinstance(recorded.error, errors.InDoubt) else " The source's writers go on."
        said.append(f"{left} were left to be sent.{goes_on}")
    if found.pauses_given_up:
        given_up = units.format_duration(found.downtime_given_up)
        said.append(f"{units.counted(found.pauses_given_up, 'pause')} had to be given up; the "
                    f"writers were held for {given_up} more in them.")  # fmt: skip
    told = recorded.not_converging
    if told is not None:
        said.append(
            f"Rounds did not get shorter: at round {told.round_number} the writers dirtied "
            f"{units.format_rate(told.dirty_rate)} and the link carried {units.format_rate(told.bandwidth)}; "
            f"{units.format_size(told.pending)} were left, and {units.format_size(told.threshold_size)} would have "
            "fitted the downtime limit. A longer limit, more bandwidth or --auto-converge helps."
        )
    return said


def _again(blocks: int, packs: int) -> str:
    shown = [units.counted(blocks, "block")] if blocks else []
    shown += [units.counted(packs, "pack")] if packs else []
    return ", ".join(shown) or "nothing"


def figures(recorded: recorder.Recorder) -> list[tuple[str, str]]:
    """Return the figures that a reader looks for first, each with what it is."""
    found = recorded.statistics
    if found is None:
        return []
    rate = found.transferred / found.total_time if found.total_time else 0.0
    shown = [
        ("time", units.format_duration(found.total_time)),
        ("on the wire", units.format_size(found.transferred)),
        ("by mean", units.format_rate(rate)),
    ]
    if isinstance(found, stats.OutgoingStatistics):
        downtime = "-" if found.downtime is None else units.format_duration(found.downtime)
        again = sum(disk.resent_blocks for disk in found.disks.values())
        shown = [("downtime", downtime), *shown, ("dirty rounds", str(found.dirty_rounds)),
                 ("blocks", str(found.blocks)), ("of them zero", str(found.zero_blocks)),
                 ("sent again", _again(again, found.packs))]  # fmt: skip
    elif recorded.rounds:
        again = sum(disk.resent_blocks for disk in found.disks.values())
        packs = sum(disk.packs for disk in found.disks.values())
        shown += [("rounds seen here", str(len(recorded.rounds) - 1)), ("came again", _again(again, packs))]
    return shown
