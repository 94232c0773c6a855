# SPDX-License-Identifier: GPL-2.0-or-later
"""From what a user calls a disk to the disk::

    vda.raw   /dev/vg/vda            raw file or block device
    vda.raw,base=golden.raw          raw file on top of another one
    vda.qcow2,format=qcow2           image of another format: [,base=FILE][,base-format=FORMAT]
    nbd://host/vda   nbds://...      export of an NBD server, also nbd+unix:///vda?socket=PATH
    qemu:qmp.sock[,device=ID]        disks of a running QEMU
    dirtymap:FILE,disk=vda.raw,...   disk of another program that keeps a dirty map: see sharedmap

Options of files are also ``direct=on`` and ``locking=off``. A comma in a path is written twice, as for QEMU, except in
the path of a file that exists. What a kind of disk needs is imported when the first such disk is opened.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

from .. import errors
from . import backend, file, local

_IMAGE_SUFFIXES = {f".{name}": name for name in ("qcow2", "qcow", "qed", "vmdk", "vhdx", "vdi")} | {".vhd": "vpc"}
_NBD_SCHEMES = ("nbd:", "nbds:", "nbd+", "nbds+")
_QEMU_SCHEME = "qemu:"
_MAP_SCHEME = "dirtymap:"
_LIVE_SCHEMES = (_QEMU_SCHEME, _MAP_SCHEME)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FileDescription:
    """What a text says about a disk in a file."""

    path: str
    format: str | None = None
    base: str | None = None
    base_format: str | None = None
    direct: bool = False
    locking: bool = True

    @property
    def is_raw(self) -> bool:
        """Whether no other program is needed to read it."""
        return self.format in (None, "raw")


def open_disks(
    text: str | os.PathLike[str], *, name: str | None = None, writable: bool = True, direct: bool = False, **qemu: Any
) -> list[backend.BlockBackend]:
    """Open the disk that `text` calls so, or for a QEMU all of its disks. Whoever opens them closes them.

    `name` is what the wire calls it. With ``writable=False`` nobody writes it through these objects, which is what a
    source that is not in use wants. Options in `qemu` are those of :func:`.qemu.open_qemu`.

    Raises :class:`~blkmig.errors.ParameterError` for a text that makes no sense, else as the disk's class does.
    """
    if isinstance(text, str) and text.startswith(_QEMU_SCHEME):
        from . import qemu as qemu_disks

        return list(qemu_disks.open_qemu(text, name=name, **qemu))
    if isinstance(text, str) and text.startswith(_MAP_SCHEME):
        return [_open_shared_map(text, name=name, direct=direct)]
    return [open_disk(text, name=name, writable=writable, direct=direct)]


def open_disk(
    text: str | os.PathLike[str],
    *,
    name: str | None = None,
    read_only: bool = False,
    writable: bool = True,
    direct: bool = False,
) -> backend.BlockBackend:
    """Open the one disk that `text` calls so; see :func:`open_disks`, and FileBackend for `read_only`."""
    if is_nbd(text):
        from . import nbd

        return nbd.NbdBackend(str(text), name=name, read_only=read_only, writable=writable)
    if isinstance(text, str) and text.startswith(_LIVE_SCHEMES):
        return _only_one(open_disks(text, name=name, direct=direct), text)
    return _open_file(describe(text, direct=direct), name=name, read_only=read_only, writable=writable)


def open_target(
    text: str | os.PathLike[str],
    *,
    name: str,
    size: int | None = None,
    direct: bool = False,
    incremental: bool = False,
) -> backend.BlockBackend:
    """Open the target of a migration, or create it; not one that ought to hold its base, for an `incremental` one.

    What exists keeps its size. A missing file, or an empty raw one, becomes a disk of `size` bytes; where nobody knows
    that, a raw or qcow2 one grows, and other formats cannot be. Raises :class:`~blkmig.errors.DeviceError` and
    :class:`~blkmig.errors.ParameterError`.
    """
    if is_nbd(text):
        return open_disk(text, name=name)
    if isinstance(text, str) and text.startswith(_LIVE_SCHEMES):
        raise errors.ParameterError(f"{text!r} can only be a source: give the target as a file or an NBD export")
    described = describe(text, direct=direct)
    if not pathlib.Path(described.path).exists():
        if incremental and described.base is None:
            cause = "it does not exist, and a new one does not hold the base: begin with a copy of the base"
            raise errors.DeviceError(f"cannot open {described.path!r}", device=name, cause=cause)
        return _create_file(described, name=name, size=size)
    target = _open_file(described, name=name)
    if target.is_growable and size is not None:
        target.resize(size)
    return target


def is_nbd(text: str | os.PathLike[str]) -> bool:
    """Tell whether `text` is an NBD URI."""
    return isinstance(text, str) and text.lower().startswith(_NBD_SCHEMES)


def describe(text: str | os.PathLike[str], *, direct: bool = False) -> FileDescription:
    """Take apart ``PATH[,option=value]...``. Raises :class:`~blkmig.errors.ParameterError`."""
    if not os.fspath(text) or "\0" in str(text):
        raise errors.ParameterError(f"{str(text)!r} names no file")
    if not isinstance(text, str) or os.path.exists(text):  # noqa: PTH110 - that of pathlib raises for a long name
        return FileDescription(path=os.fspath(text), direct=direct)
    path, *options = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    if not path:
        raise errors.ParameterError(f"{text!r} names no file")
    values: dict[str, Any] = {"direct": direct}
    for option in options:
        key, _, value = option.partition("=")
        if key in ("direct", "locking") and value in ("on", "off"):
            values[key] = value == "on"
        elif key in ("format", "base", "base-format") and value:
            values[key.replace("-", "_")] = value
        else:
            raise errors.ParameterError(
                f"{option!r} in {text!r} is not known: say format=, base=, base-format=, direct=on or locking=off, "
                "and write a comma in a path twice"
            )
    described = FileDescription(path=path, **values)
    if described.is_raw and described.base_format not in (None, "raw"):
        raise errors.ParameterError(f"{text!r}: a raw disk can only have a raw base; say format=, too")
    return described


def _open_shared_map(text: str, *, name: str | None, direct: bool) -> backend.BlockBackend:
    """Open ``dirtymap:MAP,disk=DISK,hold=COMMAND,release=COMMAND[,refuse=COMMAND]`` as a source.

    DISK is a file or an NBD export; its name on the wire is `name`, or what the DISK alone would be called.
    """
    from . import sharedmap

    where = sharedmap.parse(text)
    source = open_disk(where.disk, name=name, writable=False, direct=direct)
    try:
        if not isinstance(source, local.LocalBackend):
            raise errors.ParameterError(f"{where.disk!r} tracks its writes itself and needs no dirty map")
        actions = {"hold": where.hold, "release": where.release, "refuse": where.refuse}
        return sharedmap.SharedMapBackend(source, pathlib.Path(where.path), **actions)  # type: ignore[arg-type]
    except BaseException:
        source.close()
        raise


def _open_file(
    described: FileDescription,
    *,
    name: str | None,
    read_only: bool = False,
    writable: bool = True,
    create_size: int | None = None,
) -> backend.BlockBackend:
    common: dict[str, Any] = {
        "name": name,
        "base": described.base,
        "read_only": read_only,
        "writable": writable,
        "create_size": create_size,
        "direct": described.direct,
        "locking": described.locking,
    }
    if described.is_raw:
        return file.FileBackend(described.path, format="raw" if described.format else None, **common)
    from . import image

    assert described.format is not None
    return image.ImageBackend(
        described.path, format=described.format, base_format=described.base_format or "raw", **common
    )


def _create_file(described: FileDescription, *, name: str, size: int | None) -> backend.BlockBackend:
    usual = _IMAGE_SUFFIXES.get(pathlib.Path(described.path).suffix.lower())
    if described.format is None and usual is not None:
        raise errors.ParameterError(f"{described.path!r} would be a raw disk: say format={usual}, or format=raw")
    if size is None and described.format not in (None, "raw", "qcow2") and described.base is None:
        raise errors.ParameterError(f"{described.path!r}: to make a {described.format} image, its size must be said")
    return _open_file(described, name=name, create_size=size or 0)


def _only_one(disks: list[backend.BlockBackend], text: str) -> backend.BlockBackend:
    if len(disks) == 1:
        return disks[0]
    names = ", ".join(disk.name for disk in disks)
    for disk in disks:
        disk.close()
    raise errors.ParameterError(f"{text!r} has {len(disks)} disks ({names}): choose one, with device=")
