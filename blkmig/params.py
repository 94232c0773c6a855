# SPDX-License-Identifier: GPL-2.0-or-later
"""What a caller may choose about a migration, checked once and then frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from . import errors, paths, settings, units, zstd

if TYPE_CHECKING:
    from . import credentials

MAX_PARALLEL_IO = 16
"""The most reads in flight, over all disks together: more would starve the disks' other users (QEMU 2.12's figure)."""

MAX_MACHINE_NAME = 4096
"""The most bytes of a machine's name in a stream; receivers take no more."""

MAX_IO_BUFFERS = 512
"""The most block buffers that a caller may ask for; reads in flight and blocks that wait to be sent share them."""

BDRV_SECTORS_PER_SEARCH = 65536
"""A disk is asked about so many sectors at a time, which of them its top layer holds: 32 MiB."""

GRANULARITIES = tuple(1 << shift for shift in range(12, 21))
"""What a bit of a dirty bitmap may stand for, in bytes."""

LEAVE_COMPRESS = "leave --compress to 'auto'"

MIN_DOWNTIME_BOUND = 1.0
"""Seconds that every pause may take, because any busy machine misses a limit of a few milliseconds now and then."""

Reading = Literal["auto", "inline", "parallel"]
Switchover = Literal["auto", "manual"]
WritersAfter = Literal["release", "refuse"]
MachineCompat = Literal["2.2", "2.3"]
Format = Literal["auto", "block", "blkmig"]
Compress = Literal["auto", "off", "zstd"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MigrationParameters:
    """The parameters of an outgoing migration.

    Sizes may be given as text ("1GiB") and are stored in bytes. Raises
    :class:`~blkmig.errors.ParameterError` for values that make no sense.
    """

    max_bandwidth: int | str = 0
    """Bytes per second on the wire while the disk is live; 0 is unlimited. The last pass is never limited."""

    downtime_limit: float = 0.3
    """Seconds that the writers may be held for the last pass, 0 to 2,000. It decides when the pause begins."""

    downtime_factor: float = 4.0
    """How many times the downtime limit a pause may take before it is given up, 1 at least; see `downtime_bound`."""

    shared_base: bool = False
    """Send only what the top layer of each disk holds; the target already has the base."""

    zero_blocks: bool = True
    """Send a block of zeros as a record without payload."""

    granularity: int | str = "auto"
    """Bytes that one bit of a dirty bitmap stands for: a power of two from 4 KiB to 1 MiB. ``auto`` is 1 MiB where
    whole blocks are sent, and else as fine as 8 MiB of bitmaps allow."""

    format: Format = "auto"
    """The section that carries the disks. ``block`` is QEMU's. ``blkmig`` is for a target that is a blkmig as new as
    this one; on a one-way channel it is written without asking. ``auto``: ``blkmig`` where the target says that it
    takes it, else ``block``."""

    compress: Compress = "auto"
    """Compress payloads for a target that is a blkmig, and has the library as well. ``zstd``: all that shrink, also
    within a machine and into files. ``auto``: where the link leaves the machine, and as far as it is worth it."""

    max_rounds: int | None = None
    """Give up after so many dirty rounds without convergence, 1 at least; None: after as many as it takes."""

    timeout: float | None = None
    """Give up after so many seconds without convergence, whatever is waited for; None: never."""

    auto_converge: bool = False
    """Slow the writers down to what the link can carry, once they dirty blocks faster than half of that."""

    switchover: Switchover = "auto"
    """When the last pass begins: ``auto`` as soon as what is pending fits the downtime limit, ``manual`` when the
    caller says so."""

    writers_after: WritersAfter = "release"
    """After success: ``release`` lets the source's writers go on, ``refuse`` turns them away for good (the disk has
    moved)."""

    delta: bool = True
    """Where the target offers to compare the disks with old copies that it has, send only what differs."""

    reading: Reading = "auto"
    """``inline`` reads a block just before it is sent; ``parallel`` keeps `max_parallel_reads` reads in flight;
    ``auto`` is parallel if reads of any of the disks have latency."""

    max_parallel_reads: int = MAX_PARALLEL_IO
    """The most reads in flight, for disks that are read in parallel: 1 to 16."""

    max_buffers: int = MAX_PARALLEL_IO
    """The most buffers of 1 MiB, for reads in flight and blocks that wait to be sent: 1 to 512."""

    return_path: bool = True
    """On two-way channels, ask the target to confirm that everything is on its disks, and wait for that. QEMUs before
    2.5 cannot confirm it: for them say False, and look at the target, because a late failure there is not noticed
    here."""

    digests: bool = False
    """Put a digest of each disk into the stream, so that the receiver can verify what it wrote."""

    machine: str = ""
    """Machine type that is written into the configuration section; every QEMU accepts ""."""

    machine_compat: MachineCompat | None = None
    """Write the container of an old machine type: "2.3" without configuration section and footers, "2.2" also
    without a vmdescription."""

    qemu: bool = False
    """The target is a QEMU: refuse at once what a QEMU cannot load."""

    connect_timeout: float = 30.0
    """Seconds to wait for the other end to answer, 0.001 to 86,400."""

    reconnect: float | None = None
    """Seconds to try to come again when the link to a blkmig is lost, up to 86,400; 0 fails at once; None: 60. The
    target waits as long, an hour at most. Only what it has not stored by then is sent again, or compared. An older
    target that compares with old copies does not wait, and seconds that were said are refused then: see `delta`."""

    resume: bool = False
    """Go on where an earlier migration of these disks has ended, because its link was lost for good or one end was
    killed. The target compares what is there of them, and what differs is sent. Start the receiver again before, as it
    was started then, unless it still waits: then the key goes on that the killed process has left beside its disks, or
    in `state_dir`. A target that has nothing of the disks refuses."""

    connections: int | Literal["auto"] = "auto"
    """Over how many connections the stream goes to a blkmig at ``tcp:``, ``tls:`` or ``unix:``, 1 to 16. ``auto``: one,
    and more the longer the round trip is, from 15 ms on."""

    idle_timeout: float = 60.0
    """Seconds that the other end may be idle while it should take or confirm something, up to 86,400; 0: for ever."""

    tls: credentials.TlsParameters | None = None
    """Certificates, for a target at ``tls:``."""

    state_dir: str | None = None
    """The folder for session files, which say who has the disks after this process was killed; it must be there. None:
    beside the disks, and of devices and NBD exports there are none."""

    def __post_init__(self) -> None:
        """Turn texts into bytes and refuse what makes no sense."""
        settings.set_flags(self)
        object.__setattr__(self, "max_bandwidth", units.parse_size(self.max_bandwidth))
        settings.set_number(self, "downtime_limit", 0, 2000)
        settings.set_whole(self, "max_parallel_reads", 1, MAX_PARALLEL_IO)
        settings.set_whole(self, "max_buffers", 1, MAX_IO_BUFFERS)
        settings.set_number(self, "downtime_factor", 1, 1e6)
        settings.set_number(self, "connect_timeout", 0.001, 86400)
        settings.set_number(self, "idle_timeout", 0, 86400)
        settings.set_folder(self)
        if self.reconnect is not None:
            settings.set_number(self, "reconnect", 0, 86400)
        if not isinstance(self.connections, str) or self.connections != "auto":  # an array is compared item by item
            settings.set_whole(self, "connections", 1, 16)
        if self.timeout is not None:
            settings.set_number(self, "timeout", 0, float("inf"))
        if self.max_rounds is not None:
            settings.set_whole(self, "max_rounds", 1, 1 << 63)
        if not isinstance(self.machine, str):
            raise errors.WrongType(f"machine must be a text, not {self.machine!r}")
        if any("\ud800" <= char <= "\udfff" for char in self.machine):
            raise errors.ParameterError(f"machine must be a text, not {self.machine!r}")
        if len(self.machine.encode()) > MAX_MACHINE_NAME:
            raise errors.ParameterError(f"machine must have {MAX_MACHINE_NAME} bytes at most: receivers take no more")
        settings.check_tls(self)
        settings.check_resume(self)
        self._set_granularity()
        for name, allowed in (
            ("switchover", ("auto", "manual")),
            ("writers_after", ("release", "refuse")),
            ("reading", ("auto", "inline", "parallel")),
            ("machine_compat", (None, "2.2", "2.3")),
            ("format", ("auto", "block", "blkmig")),
            ("compress", ("auto", "off", "zstd")),
        ):
            value = getattr(self, name)
            if not isinstance(value, str | None) or value not in allowed:  # an array is compared item by item
                raise errors.ParameterError(f"{name} must be one of {allowed}, not {value!r}")
        if self.format == "blkmig" and self.is_for_qemu:
            raise errors.ParameterError("a QEMU does not take the section 'blkmig': leave the format to 'auto'")
        if self.compress == "zstd" and (self.format == "block" or self.is_for_qemu):
            raise errors.ParameterError(f"nothing of the section 'block' is compressed: {LEAVE_COMPRESS}")
        if self.compress == "zstd" and not zstd.is_available():
            raise errors.ParameterError(f"payloads cannot be compressed: {zstd.MISSING}")

    @property
    def is_for_qemu(self) -> bool:
        """Return whether somebody has said that the target is a QEMU."""
        return self.qemu or bool(self.machine) or self.machine_compat is not None

    def _set_granularity(self) -> None:
        if isinstance(self.granularity, str) and self.granularity == "auto":
            return
        granularity = units.parse_size(self.granularity)
        if granularity not in GRANULARITIES:
            raise errors.ParameterError(
                f'granularity must be "auto" or a power of two from 4K to 1M, not {units.format_size(granularity)}'
            )
        object.__setattr__(self, "granularity", granularity)

    @property
    def downtime_bound(self) -> float:
        """Return the seconds after which a pause is given up: `downtime_factor` limits, but at least one second."""
        return max(self.downtime_limit * self.downtime_factor, MIN_DOWNTIME_BOUND)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IncomingParameters:
    """The parameters of an incoming migration."""

    sizes: Mapping[str, int | str] = dataclasses.field(default_factory=dict)
    """Exact sizes of disks, by name, for streams that do not tell them; "" stands for every other disk."""

    incremental: bool = False
    """The targets hold the base already: write what comes, and do not expect every block."""

    verify: bool = False
    """Read everything back and compare it with the digests in the stream; a stream without digests is an error."""

    direct: bool = False
    """Write around the page cache (O_DIRECT)."""

    accept_timeout: float | None = None
    """Seconds to wait for the source to connect, up to 2,000,000; None waits for ever."""

    idle_timeout: float = 60.0
    """Seconds that the source may send nothing of its disks or of its VM, up to 86,400; 0 waits for ever."""

    overwrite: bool = False
    """Replace files that a target folder holds already."""

    delta: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Old copies of disks, by name: files, devices or NBD exports. The new target begins with what its old copy holds,
    and a source that is a blkmig sends what differs."""

    in_place: bool = False
    """The targets hold old copies, which are written over, and are gone on failure; what differs is sent."""

    keep_tail: bool = False
    """Leave what an existing file holds behind the end of the disk; without it, a larger file is refused."""

    tls: credentials.TlsParameters | None = None
    """Certificates, for listening at ``tls:``."""

    allow: Sequence[str] = ()
    """Networks, as ``10.0.0.0/8``, or addresses, from which a source may connect at ``tcp:`` or ``tls:``. Others are
    closed at once. Without any, every address may."""

    insecure: bool = False
    """At a plain address that other machines can reach, answer whoever connects also about old copies, and let them be
    resumed. Without it, and without `allow`, all of a disk comes then."""

    state_dir: str | None = None
    """The folder for session files, which say who has the disks after this process was killed; it must be there. None:
    beside the disks, and of devices and NBD exports there are none."""

    def __post_init__(self) -> None:
        """Turn texts into bytes and refuse what makes no sense."""
        settings.set_flags(self)
        if not isinstance(self.sizes, Mapping) or not all(isinstance(name, str) for name in self.sizes):
            raise errors.ParameterError(f"sizes must map names of disks to sizes, not {self.sizes!r}")
        object.__setattr__(self, "sizes", {name: units.parse_size(size) for name, size in self.sizes.items()})
        if not isinstance(self.delta, Mapping) or not all(isinstance(name, str) for name in self.delta):
            raise errors.ParameterError(f"delta must map names of disks to old copies, not {self.delta!r}")
        object.__setattr__(self, "delta", {name: paths.check("an old copy", old) for name, old in self.delta.items()})
        if self.compares and self.incremental:
            raise errors.ParameterError("only the top layers come: leave out --incremental, or --delta and --in-place")
        settings.set_networks(self)
        if self.accept_timeout is not None:
            settings.set_number(self, "accept_timeout", 0, 2e6)
        settings.check_tls(self)
        settings.set_number(self, "idle_timeout", 0, 86400)
        settings.set_folder(self)

    @property
    def compares(self) -> bool:
        """Return whether targets hold, or begin with, old copies of their disks."""
        return self.in_place or bool(self.delta)

    def size_of(self, name: str) -> int | None:
        """Return the size that was given for this disk, in bytes."""
        size = self.sizes.get(name, self.sizes.get(""))
        return None if size is None else units.parse_size(size)
