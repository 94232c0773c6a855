# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines about a migration's events, made to fit: all figures in 100 columns, the most important ones in 40."""

from __future__ import annotations

from collections.abc import Sequence

from .. import stats, units

PHASES = {
    "setup": "setup",
    "bulk": "bulk",
    "dirty": "round",
    "switchover": "switchover",
    "waiting": "waiting for the target",
    "storing": "storing",
}

Part = tuple[int, str]
"""A rank and a text. If a line is too long, the parts with the highest rank are left out first."""


def fit(parts: Sequence[Part], columns: int | None) -> str:
    """Return a line with as many of `parts` as fit into `columns`, in their order; None takes all of them."""
    kept = [part for part in parts if part[1]]
    for gap in ("  ", " "):
        line = gap.join(text for _, text in kept)
        if columns is None or len(line) <= columns:
            return line
    if len(kept) > 1:
        return fit([part for part in kept if part != max(kept)], columns)
    return line[:columns]


def first_that_fits(lines: Sequence[str], columns: int | None) -> str:
    """Return the first of `lines`, from the longest to the shortest, that fits into `columns`."""
    return next((line for line in lines if columns is None or len(line) <= columns), lines[-1][:columns])


def clock(seconds: float) -> str:
    """Return a time as a clock shows it: ``"0:09"``, ``"1:02:03"``."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def sending(event: stats.Progressed, columns: int | None, *, elapsed: float | None = None) -> str:
    """Return a line about how far the sending end is, `elapsed` seconds after it began (default: as the event says)."""
    is_waiting = event.phase == "waiting"
    pause = event.expected_downtime
    return fit(
        [
            *_how_far(event, event.elapsed if elapsed is None else elapsed),
            (4, "" if is_waiting else speed(event)),
            (5, f"writers {units.format_rate(event.dirty_rate)}" if event.dirty_rate and not is_waiting else ""),
            (7, same(event) if event.phase == "bulk" else ""),
            (8, compressed(event)),
            (6, f"pause {units.format_duration(pause)}" if pause is not None and event.phase == "dirty" else ""),
        ],
        columns,
    )


def how_far(event: stats.Progressed, columns: int | None, elapsed: float) -> str:
    """Return the same without its speeds."""
    return fit(_how_far(event, elapsed), columns)


def _how_far(event: stats.Progressed, elapsed: float) -> list[Part]:
    is_waiting = event.phase == "waiting"
    phase = PHASES[event.phase] + (f" {event.round_number}" if event.phase == "dirty" else "")
    return [
        (2, clock(elapsed)),
        (0, phase if is_waiting else f"{phase} {event.percent:.0f} %"),
        (1, "" if is_waiting else f"{units.format_size(event.remaining)} left"),
        (3, "" if event.time_left is None else f"{clock(event.time_left)} to go"),
    ]


def speed(event: stats.Progressed) -> str:
    """Return the speed: in the bulk phase that of reading the disks, because zeros are read and not sent."""
    if event.phase != "bulk":
        return units.format_rate(event.bandwidth)
    return units.format_rate(event.disk_rate) if event.disk_rate else ""


def receiving(event: stats.Received, columns: int | None, *, elapsed: float | None = None) -> str:
    """Return a line about how far the receiving end is, `elapsed` seconds after it began (default: as the event
    says)."""
    phase = {"bulk": f"bulk {event.percent} %", "dirty": "rounds", "storing": "storing"}[event.phase]
    return fit(
        [
            (2, clock(event.elapsed if elapsed is None else elapsed)),
            (0, phase),
            (1, f"received {units.format_size(event.transferred)}"),
            (3, "" if event.time_left is None else f"{clock(event.time_left)} to go"),
            (4, units.format_rate(event.bandwidth) if event.bandwidth else ""),
            (5, units.counted(event.blocks, "block")),
            (6, same(event)),
            (8, compressed(event)),
        ],
        columns,
    )


def same(event: stats.Progressed | stats.Received) -> str:
    """Say how much the target held already; "" if it is nothing."""
    return f"{units.format_size(event.same_bytes)} the same" if event.same_bytes else ""


def compressed(event: stats.Progressed | stats.Received) -> str:
    """Say what is on the wire in place of how much; "" if nothing was compressed."""
    wire, saved = event.transferred, event.saved_by_compression
    return f"{units.format_size(wire)} on the wire for {units.format_size(wire + saved)}" if saved else ""


def on_the_wire(result: stats.OutgoingStatistics) -> str:
    """Say what was sent, and what compressing has saved of it."""
    blocks = units.counted(result.blocks, "block")
    text = f"{units.format_size(result.transferred)} in {blocks}, {result.zero_blocks} zero"
    if result.packs:
        text += f", and {units.counted(result.packs, 'pack')}"
    saved = result.saved_by_compression
    return text + (f"; {units.format_size(saved)} saved by compressing" if saved else "")


def is_told(event: stats.RoundEnded) -> bool:
    """Return whether a round is worth a line: not if nothing was dirty, as while the target compares."""
    done = event.round
    return bool(not done.number or done.blocks or done.packs or event.pending)


def rounds(ended: Sequence[stats.RoundEnded], columns: int | None) -> str:
    """Return a line about one round, or about several in a row."""
    first, last = ended[0].round.number, ended[-1].round.number
    name = "bulk" if not first and first == last else f"round {last}" if first == last else f"rounds {first}-{last}"
    size = units.format_size(sum(each.round.transferred for each in ended))
    seconds = sum(each.round.seconds for each in ended)
    again = f"{units.format_size(ended[-1].pending)} dirty again"
    # After the bulk phase the threshold is not known yet.
    threshold = ended[-1].threshold_size
    fits = f", {units.format_size(threshold)} fit the downtime limit" if threshold else ""
    rate = units.format_rate(sum(each.round.transferred for each in ended) / seconds) if seconds else "-"
    return first_that_fits(
        [
            f"{name:<8} {size:>10} in {units.format_duration(seconds):>7}, {rate:>12}; {again:>22}{fits}",
            f"{name}: {size} in {units.format_duration(seconds)}, {rate}; {again}",
            f"{name}: {size} in {units.format_duration(seconds)}; {again}",
            f"{name}: {again}",
        ],
        columns,
    )


def not_converging(event: stats.NotConverging, columns: int | None) -> str:
    """Return a line that says why the migration does not converge, and what to do about it."""
    writers, link = units.format_rate(event.dirty_rate), units.format_rate(event.bandwidth)
    both, short = f"dirty {writers}", f"writers {writers}"
    if event.written_rate is not None:
        own = units.format_rate(event.written_rate)
        pieces = units.describe_pieces(event.granule)
        both, short = f"write {own}, which dirties {writers} {pieces}", f"{short} by writing {own}"
    needed = event.pending / event.bandwidth if event.bandwidth else 0.0
    pause = f" ({units.format_duration(needed)} would do)" if needed else ""
    return first_that_fits(
        [
            f"not converging: the writers {both}, the link carries {link}; allow a longer --downtime-limit"
            f"{pause}, more bandwidth, or slow the writers down with --auto-converge",
            f"not converging: {short}, link {link}; try --auto-converge or a longer --downtime-limit",
            f"not converging: {short}, link {link}; try --auto-converge",
            f"not converging: writers {writers}, link {link}; try --auto-converge",
            "not converging: try --auto-converge",
        ],
        columns,
    )


def losses(result: stats.OutgoingStatistics) -> str:
    """Say how often the link was lost, and what that has cost."""
    times = "once" if result.reconnects == 1 else f"{result.reconnects} times"
    return f"lost {times} and came back, {units.format_size(result.taken_back_bytes)} to be sent again"


def describe_downtime(result: stats.OutgoingStatistics) -> str:
    """Say for how long the writers were held, and whether the limit was kept."""
    text = units.format_duration(result.downtime or 0.0)
    if (result.downtime or 0.0) > result.downtime_limit:
        text += f", which is over the limit of {units.format_duration(result.downtime_limit)}"
    if result.pauses_given_up:
        times = "a pause that was" if result.pauses_given_up == 1 else f"{result.pauses_given_up} pauses that were"
        text += f"; and {units.format_duration(result.downtime_given_up)} in {times} given up"
    return text
