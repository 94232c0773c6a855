# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the disks of an incoming stream go: by name, by order of appearance, or all into one folder.

A target that does not exist is created when its disk's first block comes: a stream does not say earlier which disks it
holds. An existing target keeps its size; an empty file counts as one that does not exist.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Mapping
from types import TracebackType

from .. import block, disk, errors, params, stats

Target = disk.BlockBackend | str | os.PathLike[str]


class TargetSet(contextlib.AbstractContextManager["TargetSet"]):
    """Opens the target of each disk when the disk first appears, and closes those that it opened.

    `targets` maps names to paths or to backends (these stay open); `by_index` maps the order of appearance, from 0,
    to paths, for disks without a name of their own; `into` is a folder that takes every other disk.
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        parameters: params.IncomingParameters,
        statistics: stats.IncomingStatistics,
        *,
        into: str | os.PathLike[str] | None = None,
        by_index: Mapping[int, Target] | None = None,
    ) -> None:
        if not targets and into is None and not by_index:
            raise errors.ParameterError("say where the disks go: NAME=PATH for each, or a folder for all")
        self._targets = dict(targets)
        self._by_index = dict(by_index or {})
        self._into = None if into is None else pathlib.Path(into)
        self._parameters = parameters
        self._statistics = statistics
        self._stack = contextlib.ExitStack()
        self._used: set[str | int] = set()
        self.devices: list[block.BlkLoadDevice] = []

    def close(self) -> None:
        """Close what was opened here. Twice does no harm."""
        self._stack.close()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what was opened here; what fails then is a note to the error that the body ended with."""
        self._stack.__exit__(exc_type, exc, traceback)

    def open(self, name: str, position: int) -> block.BlkLoadDevice:
        """Return the target of the disk called `name`, whose first block is at `position` of the stream.

        Raises :class:`~blkmig.errors.UnknownDevice` if nobody said where it goes, and errors of the disk.
        """
        target = self._find(name, position)
        if not name and self._parameters.incremental:
            raise errors.UnsupportedStream(
                "an incremental stream holds a disk without a name, and a second one would not be noticed: "
                "give the source's disk a name, as in -drive id=NAME",
                position=position,
            )
        statistics = stats.DiskStatistics(name)
        backend = target if isinstance(target, disk.BlockBackend) else self._open_path(target, name)
        if backend.is_read_only:
            raise errors.DeviceError("cannot be a target", device=name, cause="it is read-only")
        if backend.is_growable and self._parameters.incremental:
            raise errors.DeviceError("cannot be a target", device=name, cause="it is new, and does not hold the base")
        self._stack.enter_context(backend.block_use("a migration that writes it"))
        device = block.BlkLoadDevice(backend, statistics, size=self._parameters.size_of(name))
        self._statistics.disks[name] = statistics
        self.devices.append(device)
        return device

    def is_wanted(self, name: str) -> bool:
        """Return whether somebody has said where the disk called `name` goes, if it is the next that appears."""
        return name in self._targets or len(self.devices) in self._by_index or self._into is not None

    def check_counts(self, disks: int, empty: int, *, position: int) -> None:
        """Raise as early as can be if a stream of so many disks, and `empty` more, does not fit what was asked for.

        Only their names, which come later, can tell which disk it is that nobody expects, or that is missing.
        """
        wanted = [repr(name) for name in self._targets] + [f"number {index}" for index in self._by_index]
        if disks + empty < max(len(wanted), 1):
            raise errors.IncompleteMigration(
                f"the stream holds {disks + empty or 'no'} disk{'s' * (disks + empty != 1)}, and targets were given "
                f"for {len(wanted)}: {', '.join(wanted) or 'all'}",
                missing={},
            )
        if disks > len(wanted) and self._into is None:
            raise errors.StreamError(
                f"the stream holds {disks} disks, and targets were given for {len(wanted)}: {', '.join(wanted)}; say "
                "where the others go, by NAME=PATH or --into a folder",
                position=position,
            )

    def check_all_came(self) -> None:
        """Raise :class:`~blkmig.errors.IncompleteMigration` if a disk that was asked for is not in the stream."""
        absent = [key for key in (*self._targets, *self._by_index) if key not in self._used]
        if absent:
            wanted = [f"disk {key!r}" if isinstance(key, str) else f"disk number {key}" for key in absent]
            raise errors.IncompleteMigration(
                f"the stream holds no block of {', '.join(wanted)}; it holds "
                f"{', '.join(map(repr, self._statistics.disks)) or 'no disks'}",
                missing={key: [] for key in absent if isinstance(key, str)},
            )

    def _find(self, name: str, position: int) -> Target:
        """Return where the disk called `name` goes."""
        index = len(self.devices)
        if name in self._targets:  # first: whoever says both means this disk
            self._used.add(name)
            return self._targets[name]
        if index in self._by_index:
            self._used.add(index)
            return self._by_index[index]
        if self._into is not None:
            return self._path_in_folder(self._into, name)
        raise errors.UnknownDevice(unknown_device(name, index, list(self._targets)), device=name, position=position)

    def _path_in_folder(self, folder: pathlib.Path, name: str) -> pathlib.Path:
        """Return the file for a disk in the folder; a name from the stream must not lead out of it."""
        if not name or name in (".", "..") or "/" in name or "\0" in name or not name.isprintable():
            raise errors.ParameterError(
                f"the stream's disk {name!r} has no name that can be a file's: say where it goes, "
                f"by NAME=PATH or --map {len(self.devices)}=PATH"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.raw"

    def _open_path(self, path: str | os.PathLike[str], name: str) -> disk.BlockBackend:
        """Open a target, or create it: of the size that was said, else growing with the blocks that come."""
        size, label = self._parameters.size_of(name), name or f"number {len(self.devices)}"
        backend = disk.open_target(
            path, name=label, size=size, direct=self._parameters.direct, incremental=self._parameters.incremental
        )
        return self._stack.enter_context(backend)


def unknown_device(name: str, index: int, known: list[str]) -> str:
    """Say what to do about a disk that nobody expected."""
    if name:
        return f"the stream holds a disk {name!r}, but targets were given for {', '.join(map(repr, known)) or 'none'}"
    what = (
        "the stream holds a disk without a name, as a QEMU sends for -blockdev without a drive id"
        if index == 0
        else f"the stream holds another disk without a name: number {index} may be the image file below {index - 1}"
    )
    return f"{what}; say where it goes with --map {index}=PATH"
