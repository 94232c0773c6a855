# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration would take, before anything is sent: the writers are watched for a few seconds.

::

    watching ──► how often each piece is written ──► rates ──► replay ──► Forecast
    link speed: measured, said, or assumed ──────────────────────┘

The link is measured with the receiver, if there is one that can be measured without harm. Else its speed is what the
caller says, or `max_bandwidth`, or the speed of the disks, and the forecast says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Literal

from .. import _core, block, channel, disk, errors, params, savevm, units
from ..block import granules
from ..disk import geometry
from . import asked, comparing, endpoints, fitting, rates, reading, replay, watching

BandwidthSource = Literal["measured", "said", "limit", "disks"]

MOST_SECONDS = 86400
"""The longest time for which writers are watched."""


@dataclasses.dataclass(frozen=True, slots=True)
class Forecast:
    """A prediction; sizes in bytes, times in seconds, rates in bytes per second."""

    format: block.Format
    """The section that the migration is taken to use. What the receiver takes was not asked: where it can be asked, it
    counts as a blkmig like this one, unless somebody has said that it is a QEMU."""

    disk_bytes: int
    """Size of all disks that would be sent, holes included."""

    data_bytes: int
    """What bulk would read: blocks that are not holes, or are sent all the same; whole ones, but for a disk's last."""

    bandwidth: float
    """What the link was taken to carry."""

    bandwidth_source: BandwidthSource
    """Where that comes from: it was measured with the receiver, the caller has said it, it is the limit that the caller
    has set, or it is the speed at which the disks are read."""

    measured_bandwidth: float | None
    """What was measured, whether it was taken or not; None if nothing was."""

    why_not_measured: str
    """Why nothing was; "" if it was."""

    dirty_rate: float
    """Different bytes dirtied per second, in whole pieces or blocks, over the whole time of watching."""

    rounds: int
    """Dirty rounds between the bulk phase and the pause."""

    total_bytes: int
    """Bytes that would be sent, those of the pause included."""

    total_time: float
    """Seconds from the first block to the end of the pause."""

    downtime: float
    """Where the disks move, the time that the target takes to bring all to stable storage comes on top of it."""

    converges: bool
    """Whether the last pass fits the downtime limit; if not, the figures are those of the round that is steady."""

    writers_fraction: float
    """To which part of their speed `auto_converge` would slow the writers down, 1.0 if not at all."""


def forecast(
    disks: Iterable[disk.BlockBackend],
    parameters: params.MigrationParameters,
    *,
    seconds: float = 3.0,
    bandwidth: float | None = None,
    uri: str | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Forecast:
    """Watch the writers of `disks` for `seconds` and return what a migration with `parameters` would take. Blocks.

    The link to the receiver at `uri` is measured, if there is one that can be; nothing is sent of the disks, and the
    receiver goes on waiting. `bandwidth` is what the link carries by the caller's word, which counts more. The disks
    are in use meanwhile, and as they were afterwards. Raises :class:`~blkmig.errors.DeviceError`, and for what a
    migration would refuse :class:`~blkmig.errors.ParameterError`.
    """
    seconds = _number("seconds", seconds, MOST_SECONDS)
    bandwidth = None if bandwidth is None else _number("bandwidth", bandwidth, 1 << 63)
    disks = asked.backends_of(disks)
    choice = _checked(disks, parameters, uri)
    section = _expected_format(choice, parameters, uri)
    sent = [backend for backend in disks if not backend.is_read_only and backend.size]
    with contextlib.ExitStack() as stack:
        watched = []
        granularities = granules.of_disks(sent, parameters, section)
        for backend, granularity in zip(sent, granularities, strict=True):
            stack.enter_context(backend.block_use("a forecast"))
            bitmap = backend.create_dirty_bitmap(granularity)
            stack.callback(backend.release_dirty_bitmap, bitmap)
            whole = granules.whole_from(bitmap.bits_per_block, section, parameters) == 1
            with geometry.keeping_account(backend.size):
                watched.append(watching.WatchedDisk(backend, bitmap, whole=whole))
        interval, count = watching.watch(watched, seconds, clock, sleep)
        for known in watched:
            known.find_data(shared_base=parameters.shared_base, holes_are_data=not parameters.zero_blocks)
        link = LinkGuess(parameters, uri, bandwidth)
        read = None if uri is None and link.bandwidth else reading.read_samples(sent, clock)
    if read is not None:
        link.disks_are_read_at(read.speed)
    if link.bandwidth <= 0:
        raise errors.ParameterError("there is nothing to measure the bandwidth with: say it (--bandwidth)")
    cells = rates.make_cells(watched, interval, count)
    if read is not None and parameters.zero_blocks:
        replay.split_zeros(cells, read.zero_share)
    speed = min(link.bandwidth, float(parameters.max_bandwidth) or link.bandwidth)
    played = replay.Replay(
        cells,
        parameters,
        speed=speed / _core.BLOCK_SIZE,
        link_speed=link.bandwidth / _core.BLOCK_SIZE,
        disk_blocks=sum(known.nblocks for known in watched),
        pieces=max((known.pieces for known in watched), default=1),
        read_speed=read.speed / _core.BLOCK_SIZE if read is not None else 0.0,
        delay=link.delay,
    )
    played.run()
    dirtied = sum(known.written_bytes() for known in watched)
    return Forecast(
        format=section,
        disk_bytes=sum(backend.size for backend in sent),
        data_bytes=sum(known.data_bytes() for known in watched),
        bandwidth=link.bandwidth,
        bandwidth_source=link.source,
        measured_bandwidth=link.measured,
        why_not_measured=link.why_not,
        dirty_rate=dirtied / (interval * count) if interval else 0.0,
        rounds=played.rounds,
        total_bytes=int(played.sent * _core.BLOCK_SIZE),
        total_time=played.now,
        downtime=played.downtime,
        converges=played.converges,
        writers_fraction=played.writers_fraction,
    )


def _number(name: str, value: float, most: float) -> float:
    """Return the plain float that an argument is, from 0 to `most`; see `units.number`."""
    found = units.number(name, value)
    if not 0 <= found <= most:
        raise errors.ParameterError(f"{name} must be from 0 to {most}, not {value!r}")
    return found


def _expected_format(choice: block.DiskChoice, parameters: params.MigrationParameters, uri: str | None) -> block.Format:
    """Return the section that a migration would use, if the receiver is a blkmig like this one."""
    if parameters.format != "auto":
        return parameters.format
    if parameters.is_for_qemu or not parameters.return_path:
        return "block"
    if not choice.fits_table():
        return "block"
    if uri is None:
        return "blkmig"
    with contextlib.closing(channel.Connector(uri, tls=parameters.tls)) as connector:
        return "blkmig" if connector.goes_both_ways else "block"


def _checked(
    disks: list[disk.BlockBackend], parameters: params.MigrationParameters, uri: str | None
) -> block.DiskChoice:
    """Return the disks of which some are sent.

    Raises what a migration of them to `uri` would raise before it connects: a forecast of that is none.
    """
    choice = block.DiskChoice(disks, parameters)
    described = savevm.ContainerFormat.for_machine_compat(parameters.machine_compat, machine=parameters.machine)
    choice.is_described = described.vmdescription
    choice.check()
    choice.check_any_is_sent()
    fitting.check_state_dir(parameters.state_dir)
    if uri is not None:
        with contextlib.closing(channel.Connector(uri, tls=parameters.tls)) as connector:
            if parameters.resume and not connector.takes_several:
                raise errors.ParameterError(comparing.NOT_OFFERED)
        endpoint = endpoints.Sources(uri, disks)
        endpoint.check()
        endpoint.check_output()
    return choice


class LinkGuess:
    """What the link is taken to carry, and where that comes from."""

    def __init__(self, parameters: params.MigrationParameters, uri: str | None, said: float | None) -> None:
        """Measure the link to `uri`, unless a QEMU is there by the caller's word. Blocks."""
        self.source: BandwidthSource = "said" if said else "limit"
        self.bandwidth = said or float(parameters.max_bandwidth)
        self.measured: float | None = None
        self.why_not = ""
        self.delay = 0.0
        """Seconds until the target has what was sent just now."""

        if uri is None:
            self.why_not = "nobody said where the receiver is"
        elif parameters.qemu or parameters.machine:
            self.why_not = "a QEMU would take it for its migration"
        else:
            self._measure(uri, parameters.connect_timeout)
        if self.measured is not None and not said:
            self.bandwidth, self.source = self.measured, "measured"

    def _measure(self, uri: str, timeout: float) -> None:
        try:
            found = channel.measure(uri, timeout=timeout)
        except channel.NotMeasured as error:
            self.why_not = str(error)
        else:
            self.measured, self.delay = found.bandwidth, found.delay

    def disks_are_read_at(self, speed: float) -> None:
        """Take the speed of the disks if it is lower than that of the link, or if nothing is known of the link."""
        if speed > 0 and (not self.bandwidth or (self.source == "measured" and speed < self.bandwidth)):
            self.bandwidth, self.source = speed, "disks"
