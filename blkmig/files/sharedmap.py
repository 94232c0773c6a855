# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that another program writes: it tells which parts through a dirty map, see `dirtymap`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
from collections.abc import Callable

from .. import _core, children, errors, paths, units
from ..disk import backend, dirty, local, names, storage
from ..disk import extents as disk_extents
from . import dirtymap

SCHEME = "dirtymap:"
COMMAND_SECONDS = 60.0

Action = Callable[[], object]


class SharedMapBackend(backend.BlockBackend):
    """The disk `source`, written by another program that marks its writes in the dirty map at `path`.

    `hold` must return when the writer has paused, nothing of it is in flight, and all of it is marked; `release` lets
    it go on; `refuse`, if there is one, turns it away for good after the disk has moved, else it stays held. Each is a
    function, or a command for the shell, which fails by its exit status. Closing closes `source`, too.

    Raises :class:`~blkmig.errors.FormatError` for a map that is not one of this disk.
    """

    def __init__(
        self,
        source: local.LocalBackend,
        path: str | os.PathLike[str],
        *,
        hold: Action | str,
        release: Action | str,
        refuse: Action | str | None = None,
        name: str | None = None,
    ) -> None:
        self._source = source
        self.name = source.name = source.name if name is None else name
        names.check_name(self.name)
        self.size = source.size
        self.is_read_only = source.is_read_only
        self.reads_in_parallel = source.reads_in_parallel
        self._hold, self._release, self._refuse = hold, release, refuse
        self._is_held = self._stays_held = False
        self._trackers: list[dirty.DirtyBitmap] = []
        self._map = dirtymap.DirtyMap(path, size=self.size, device=self.name)
        self.min_granularity = self._map.granularity
        # Written by another program, on purpose, and marked.
        self.files = tuple(file._replace(is_tracked=True) for file in (*source.files, self._map.known))

    def open_reader(self, *, is_target: bool) -> storage.StorageReader | None:
        """Return a reader of the source."""
        return self._source.open_reader(is_target=is_target)

    # -- contents: the source's --------------------------------------------------------------------------------------

    def read_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> bool:
        """Read a block of the source."""
        return self._source.read_block(blk, offset, nbytes)

    def next_data(self, offset: int) -> tuple[int, int] | None:
        """Return the next extent that may hold data."""
        return self._source.next_data(offset)

    def next_allocated(self, offset: int, nbytes: int) -> tuple[int, int] | None:
        """Return the next extent that the top layer holds."""
        return self._source.next_allocated(offset, nbytes)

    def forget_extents(self) -> None:
        """Have the source look again."""
        self._source.forget_extents()

    def write_block(self, blk: _core.BlockBuffer, offset: int, nbytes: int) -> None:
        """Write a block of the source; it is not marked in the map."""
        self._source.write_block(blk, offset, nbytes)

    def read_extents(self, blk: _core.BlockBuffer, extents: disk_extents.Extents) -> None:
        """Read extents of the source."""
        self._source.read_extents(blk, extents)

    def write_extents(self, blk: _core.BlockBuffer, extents: disk_extents.Extents) -> None:
        """Write extents of the source; they are not marked in the map."""
        self._source.write_extents(blk, extents)

    def write_zeroes(self, offset: int, nbytes: int) -> None:
        """Write zeros to the source; they are not marked in the map."""
        self._source.write_zeroes(offset, nbytes)

    def flush(self) -> None:
        """Flush the source."""
        self._source.flush()

    # -- dirty tracking ----------------------------------------------------------------------------------------------

    def create_dirty_bitmap(self, granularity: int) -> dirty.DirtyBitmap:
        """Start to take marks from the map. Raises :class:`~blkmig.errors.DeviceBusy` if another migration does."""
        self._source.check_home("cannot be migrated")
        if not self._trackers:
            self._map.lock()
        self.sync_dirty()  # what was marked before is for the trackers that were there before
        bitmap = self._source.create_dirty_bitmap(granularity)
        self._trackers.append(bitmap)
        return bitmap

    def release_dirty_bitmap(self, bitmap: dirty.DirtyBitmap) -> None:
        """Stop tracking in `bitmap`; the last one leaves the map to others."""
        self._source.release_dirty_bitmap(bitmap)
        self._trackers = [tracker for tracker in self._trackers if tracker is not bitmap]
        if not self._trackers:
            self._map.unlock()

    def sync_dirty(self) -> None:
        """Take the marks: store 0, then mark here, so that the reads come after."""
        self._source.check_home("cannot be migrated")
        for offset, nbytes in self._map.take():
            self._source.mark_dirty(offset, min(nbytes, self.size - offset))
        self._source.sync_dirty()

    # -- writers -----------------------------------------------------------------------------------------------------

    def hold_writers(self) -> None:
        """Have the writer pause, by the function or the command."""
        self._source.check_home("cannot be held")
        if not self._is_held:
            self._run(self._hold, "hold its writer")
            self._is_held = True

    def release_writers(self, *, refuse: bool = False) -> None:
        """Have the writer go on, or with `refuse` turn it away, or leave it held where there is no way to."""
        units.check_flags(refuse=refuse)
        if self._source.is_foreign:
            return
        self._stays_held = False
        if self._is_held:
            self._is_held = False
            action = self._refuse if refuse else self._release
            if action is not None:
                self._run(action, "refuse its writer" if refuse else "release its writer")

    def about_to_move(self) -> bool:
        """Leave the writer held once it is, also when this disk is closed."""
        self._stays_held = True
        return True

    def leave_in_doubt(self) -> None:
        """Leave the writer held: to turn it away for good, somebody would have to know."""

    def _run(self, action: Action | str, doing: str) -> None:
        try:
            with errors.failing(f"cannot {doing}", device=self.name):
                if not isinstance(action, str):
                    action()
                    return
                children.require_statuses()  # an unknown status would be a 0
                subprocess.run(action, shell=True, check=True, stdin=subprocess.DEVNULL, timeout=COMMAND_SECONDS)
        except subprocess.SubprocessError as error:
            raise errors.DeviceError(f"cannot {doing}", device=self.name, cause=str(error)) from error

    def close(self) -> None:
        """Release the writer, unless it is to stay held, the map, and the source. Twice does no harm."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._source.close)
            stack.callback(self._map.close)
            if not self._stays_held:
                self.release_writers()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MapAddress:
    """What ``dirtymap:MAP,disk=DISK,hold=COMMAND,release=COMMAND[,refuse=COMMAND]`` says."""

    path: str
    disk: str
    hold: str
    release: str
    refuse: str | None = None


def parse(text: str) -> MapAddress:
    """Parse ``dirtymap:...``; a comma in a value is written twice. Raises :class:`~blkmig.errors.ParameterError`."""
    path, *options = paths.split(text.removeprefix(SCHEME))
    form = f"{text!r} must be dirtymap:MAP,disk=DISK,hold=COMMAND,release=COMMAND[,refuse=COMMAND]"
    values: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in ("disk", "hold", "release", "refuse") or not value or key in values:
            why = f"{option!r} is not known, has no value or comes twice"
            raise errors.ParameterError(f"{form}: {why}; {paths.COMMA_TWICE}")
        values[key] = value
    if not path or not {"disk", "hold", "release"} <= values.keys():
        raise errors.ParameterError(form)
    return MapAddress(path=path, **values)
