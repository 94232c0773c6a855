# SPDX-License-Identifier: GPL-2.0-or-later
"""Image files and QEMU's tools for them: how ``qemu-img`` is called, and what its and ``qemu-nbd``'s errors mean."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import subprocess

from .. import children, errors
from ..disk import identity
from ..files import lockholders

SECTOR = 512

_BUSY = 'Failed to get (shared )?"'
_WRONG_FORMAT = (
    r"not in .* format|unknown (driver|file format)|invalid \w+ image|invalid .*(signature|header)"
    r"|^Could not open '.*': Invalid argument$"
)


def image_options(path: pathlib.Path, *, format: str, locking: bool) -> dict[str, str]:
    """Return QEMU's block options of an image."""
    is_device = False
    with contextlib.suppress(OSError):  # QEMU will say why the image cannot be opened
        is_device = identity.KnownFile.of(path).is_device
    protocol = "host_device" if is_device else "file"
    options = {"driver": format, "file.driver": protocol, "file.filename": str(path.absolute())}
    return options if locking else options | {"file.locking": "off"}


def create_image(
    path: pathlib.Path,
    size: int,
    *,
    format: str,
    device: str,
    base: str | os.PathLike[str] | None = None,
    base_format: str = "raw",
    is_placeholder: bool = False,
) -> None:
    """Make an image of `size` bytes, rounded up to the format's unit; with a base, 0 means the size of the base.

    Only this user can use it. An existing `path` is refused, unless it is an empty placeholder for the image.
    """
    if not is_placeholder and os.path.lexists(path):
        raise errors.DeviceError("cannot be made", device=device, cause=f"{path} exists")
    arguments = ["create", "-q", "-f", format]
    if base is not None:
        arguments += ["-b", str(pathlib.Path(base).absolute()), "-F", base_format]
    sizes = [] if base is not None and not size else [str(size)]
    run_qemu_img("cannot be made", *arguments, str(path.absolute()), *sizes, device=device)


def resize_image(path: pathlib.Path, size: int, *, format: str, device: str) -> None:
    """Change an image's size to `size` bytes, rounded up to a sector. Nobody may have the image open."""
    size = -(-size // SECTOR) * SECTOR
    run_qemu_img(
        "cannot be resized", "resize", "-q", "-f", format, "--shrink", str(path.absolute()), str(size), device=device
    )


def run_qemu_img(doing: str, *arguments: str, device: str) -> None:
    """Run qemu-img. If it fails, raise the error that its message stands for."""
    command = [find_program("qemu-img", device=device), *arguments]
    with errors.failing(doing, device=device):
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, umask=0o077, restore_signals=False
        )
    if result.returncode:
        text = " ".join(result.stderr.decode(errors="replace").split()).removeprefix("qemu-img: ")
        kind = refusal_of(text)
        if kind is errors.DeviceBusy:
            text += "".join(lockholders.describe(word) for word in arguments if word.startswith("/"))
        raise kind(doing, device=device, cause=text)


def refusal_of(text: str) -> type[errors.DeviceError]:
    """Return the kind of error that a message of QEMU stands for."""
    if re.search(_BUSY, text):
        return errors.DeviceBusy
    return errors.FormatError if re.search(_WRONG_FORMAT, text, re.IGNORECASE) else errors.DeviceError


def find_program(program: str, *, device: str) -> str:
    """Return the path of one of QEMU's tools.

    Raises DeviceError if the tool is not installed, or if this process would not learn the tool's exit status.
    """
    with errors.failing("cannot be opened", device=device):
        children.require_statuses()
    found = shutil.which(program)
    if found is None:
        cause = f"{program} is not installed; it comes with qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL)"
        raise errors.DeviceError("cannot be opened", device=device, cause=cause)
    return found
