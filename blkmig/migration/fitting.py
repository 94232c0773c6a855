# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a target fits its disk: its size, its name, its folder.

A ``block`` stream from blkmig says before the first block how large the disks are (see `block.sizes`), one from QEMU
never does. Where the stream, or the user, has said the disk's size, a target of another size is refused before anything
is written. For a QEMU's disk the difference is found when a block comes that does not fit.
"""

from __future__ import annotations

import contextlib
import errno
import pathlib
from typing import NamedTuple

from .. import block, disk, errors, params, sources, stats
from ..files import FileBackend, folder

ADVICE = "say --keep-tail if what it holds behind the disk is to stay, or remove it and receive again"


def check_before(target: sources.TargetFile, parameters: params.IncomingParameters, key: str | int) -> None:
    """Check a prepared target for a disk of which the name, or else the number, is known, before anybody connects."""
    if isinstance(key, str) or parameters.sizes.keys() <= {""}:  # one size, or none, for disks of any name
        name = key if isinstance(key, str) else ""
        target.check_size_is_known(parameters.size_of(name))
        check_known_size(target, parameters, name)


def check_known_size(
    target: sources.TargetFile | disk.BlockBackend,
    parameters: params.IncomingParameters,
    name: str,
    *,
    announced: int | None = None,
) -> None:
    """Refuse a target that does not have the size of the disk `name`, as far as that is known before its blocks come:
    from the user, or `announced` by the source. Nothing was written yet.
    """
    said = parameters.size_of(name)
    _check_said_size(f"disk {name!r}", said, announced)
    size, who = (announced, "as the source says") if said is None else (said, "as was said")
    fact = _Existing.of(target, name)
    if size is None or fact is None or fact.size == size:
        return
    cause = f"it has {fact.size} bytes, and the disk {size}, {who}; nothing was written"
    if fact.size < size:
        advice = "give it a larger one, or remove it and receive again"
        too_small = OSError(errno.EFBIG, f"{cause}; {advice}")  # with the status that the source hears
        raise errors.DeviceError(f"{fact.path!r} is too small", device=fact.label, cause=too_small)
    if fact.is_file and not parameters.keep_tail and not is_rounded(size, fact.size, fact.size_unit):
        raise errors.DeviceError(f"{fact.path!r} is too large", device=fact.label, cause=f"{cause}; {ADVICE}")


def check_said_sizes(parameters: params.IncomingParameters, announced: block.SaidSizes) -> None:
    """Refuse sizes that the user has said and the stream contradicts, wherever the disks go. Nothing was written yet.

    Of disks that the user did not name, the stream tells only the sizes at this time.
    """
    named = [name for name in parameters.sizes if name]
    for name in named:
        _check_said_size(f"disk {name!r}", parameters.size_of(name), announced.of(name))
    for size in announced.besides(named):
        _check_said_size("a disk of another name", parameters.size_of(""), size or None)


def _check_said_size(label: str, said: int | None, announced: int | None) -> None:
    if said is not None and announced is not None and said != announced:
        raise errors.ParameterError(f"{label} has {announced} bytes, not {said} as was said; nothing was written")


class _Existing(NamedTuple):
    """A target that was there before its disk came, and keeps its size."""

    label: str
    path: str
    size: int
    is_file: bool
    size_unit: int

    @classmethod
    def of(cls, target: sources.TargetFile | disk.BlockBackend, name: str) -> _Existing | None:
        """Describe a target for the disk `name`; None for one that takes any size."""
        if isinstance(target, sources.TargetFile):
            if target.size is None:
                return None
            return cls(target.label, target.path, target.size, target.is_fixed_file, target.size_unit)
        if target.is_growable:
            return None
        path = target.files[0].path if target.files else target.name
        is_file = bool(target.files) and target.files[0].is_regular
        return cls(name, path, target.size, is_file, target.size_unit)


def check_settled_size(
    device: block.BlkLoadDevice, parameters: params.IncomingParameters, statistics: stats.IncomingStatistics
) -> None:
    """Refuse a file that is larger than its disk, unless its tail is to stay; say so of any other target."""
    name, size, has = device.statistics.name, device.statistics.size, device.backend.size
    if size is None or device.is_new:
        return
    files = device.backend.files
    is_file = bool(files) and files[0].is_regular
    if device.statistics.size_source == "target":
        if is_file:
            statistics.notes.append(f"disk {name!r}: size not in the stream, taken as the {has} bytes of its target")
    elif has > size and not is_rounded(size, has, device.backend.size_unit):
        if is_file and not parameters.keep_tail:
            cause = f"it has {has} bytes, and the disk {size}: all of that was written, and old bytes follow; {ADVICE}"
            raise errors.DeviceError(f"{files[0].path!r} is too large", device=name, cause=cause)
        statistics.notes.append(f"disk {name!r} has {size} bytes, its target {has}: the rest keeps what it held")


def is_rounded(size: int, has: int, unit: int) -> bool:
    """Return whether that is the size of a target for a disk of `size` bytes, if it is counted in `unit` bytes."""
    return has == -(-size // unit) * unit


def check_is_named(backend: disk.BlockBackend) -> None:
    """Raise :class:`~blkmig.errors.DeviceError` if the file that was written is not the one that its name leads to."""
    for file in backend.files[:1]:
        if not file.is_still_named():
            cause = f"{file.path!r} was removed or replaced while it was written, and what was written is nowhere"
            raise errors.DeviceError("cannot be completed", device=backend.name, cause=cause)
        if isinstance(backend, FileBackend) and file.is_regular:
            _check_has_its_size(backend, file.path)


def _check_has_its_size(backend: disk.BlockBackend, path: str) -> None:
    with errors.failing(f"cannot look at {path!r}", device=backend.name):
        has = pathlib.Path(path).stat().st_size
    if has != backend.size:
        verb = "cut" if has < backend.size else "extended"
        what = f"it has {has} bytes instead of {backend.size}"
        cause = f"another program has {verb} {path!r} while it was written: {what}; receive it again"
        raise errors.DeviceError("cannot be completed", device=backend.name, cause=cause)


def check_folder(path: pathlib.Path) -> list[pathlib.Path]:
    """Make the folder for the disks of a stream if it is missing, and see whether files can be made there.

    Returns the folders that it made, the outermost first. Raises :class:`~blkmig.errors.DeviceError`.
    """
    failing = errors.failing(f"cannot be put into {str(path)!r}", device="*")
    with failing, contextlib.closing(folder.Folder(path, create=True)) as place:
        try:
            place.check_writable()
        except BaseException:
            folder.remove_empty(place.made)
            raise
        return place.made


def check_state_dir(path: str | None) -> None:
    """See whether the folder that was said for session files is there, and takes files; without one do nothing.

    Raises :class:`~blkmig.errors.ParameterError`. Nothing is made.
    """
    if path is None:
        return
    try:
        with contextlib.closing(folder.Folder(path)) as place:
            place.check_writable()
    except OSError as error:
        why = f"session files cannot be in {path!r} (--state-dir): {error.strerror}"
        raise errors.ParameterError(f"{why}; make that folder writable, or name another one") from error
