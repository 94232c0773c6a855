# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a target fits its disk: its size, its name, its folder.

A ``block`` stream from blkmig says at its end how large the disks are, one from QEMU never does. So a target that has
another size is found at once where somebody has said the disk's size, else when the stream has said it.
"""

from __future__ import annotations

import pathlib

from .. import block, disk, errors, params, sources, stats
from ..files import FileBackend, folder
from ..nbd import image

ADVICE = "say --keep-tail if what it holds behind the disk is to stay, or remove it and receive again"


def check_before(target: sources.TargetFile, parameters: params.IncomingParameters, key: str | int) -> None:
    """Check a prepared target for a disk of which the name, or else the number, is known, before anybody connects."""
    if isinstance(key, str) or parameters.sizes.keys() <= {""}:  # one size, or none, for disks of any name
        name = key if isinstance(key, str) else ""
        target.check_size_is_known(parameters.size_of(name))
        check_said_size(target, parameters, name)


def check_said_size(target: sources.TargetFile, parameters: params.IncomingParameters, name: str) -> None:
    """Refuse a target that does not have the size that was said for its disk. Nothing was written yet."""
    said, has = parameters.size_of(name), target.size
    if said is None or has is None or has == said:
        return
    if has < said:
        cause = f"it has {has} bytes, and the disk {said}, as was said; nothing was written"
        raise errors.DeviceError(f"cannot open {target.path!r}", device=target.label, cause=cause)
    if target.is_fixed_file and not parameters.keep_tail and not is_rounded(said, has, is_image=target.is_image):
        cause = f"it has {has} bytes, and the disk {said}, as was said; nothing was written; {ADVICE}"
        raise errors.DeviceError(f"cannot open {target.path!r}", device=target.label, cause=cause)


def check_settled_size(
    device: block.BlkLoadDevice, parameters: params.IncomingParameters, statistics: stats.IncomingStatistics
) -> None:
    """Refuse a file that is larger than its disk, unless its tail is to stay; say so of any other target."""
    name, size, has = device.statistics.name, device.statistics.size, device.backend.size
    if size is None or device.is_new:
        return
    files = device.backend.files
    is_file = bool(files) and files[0].is_regular
    is_image = isinstance(device.backend, image.ImageBackend)
    if device.statistics.size_source == "target":
        if is_file:
            statistics.notes.append(f"disk {name!r}: size not in the stream, taken as the {has} bytes of its target")
    elif has > size and not is_rounded(size, has, is_image=is_image):
        if is_file and not parameters.keep_tail:
            cause = f"it has {has} bytes, and the disk {size}, which is there, with old bytes behind it; {ADVICE}"
            raise errors.DeviceError(f"{files[0].path!r} is too large", device=name, cause=cause)
        statistics.notes.append(f"disk {name!r} has {size} bytes, its target {has}: the rest keeps what it held")


def is_rounded(size: int, has: int, *, is_image: bool) -> bool:
    """Return whether that is the size of an image for a disk of `size` bytes: images count in sectors."""
    return is_image and has == -(-size // image.SECTOR) * image.SECTOR


def check_is_named(backend: disk.BlockBackend) -> None:
    """Raise :class:`~blkmig.errors.DeviceError` if the file that was written is not the one that its name leads to."""
    for file in backend.files[:1]:
        if not file.is_still_named():
            cause = f"{file.path!r} was removed or replaced while it was written, and what was written is nowhere"
            raise errors.DeviceError("cannot be completed", device=backend.name, cause=cause)
        if isinstance(backend, FileBackend) and file.is_regular:
            _check_has_its_size(backend, file.path)


def _check_has_its_size(backend: disk.BlockBackend, path: str) -> None:
    try:
        has = pathlib.Path(path).stat().st_size
    except OSError as error:
        raise errors.DeviceError(f"cannot look at {path!r}", device=backend.name, cause=error) from error
    if has != backend.size:
        verb = "cut" if has < backend.size else "extended"
        what = f"it has {has} bytes instead of {backend.size}"
        cause = f"another program has {verb} {path!r} while it was written: {what}; receive it again"
        raise errors.DeviceError("cannot be completed", device=backend.name, cause=cause)


def check_folder(path: pathlib.Path) -> list[pathlib.Path]:
    """Make the folder for the disks of a stream if it is missing, and see whether files can be made there.

    Returns the folders that it made, the outermost first. Raises :class:`~blkmig.errors.DeviceError`.
    """
    try:
        place = folder.Folder(path, create=True)
        try:
            place.check_writable()
            return place.made
        finally:
            place.close()
    except OSError as error:
        raise errors.DeviceError(f"cannot be put into {str(path)!r}", device="*", cause=error) from error
