# SPDX-License-Identifier: GPL-2.0-or-later
"""From the text by which a user names a disk to the open disk::

    vda.raw   /dev/vg/vda            raw file or block device
    vda.raw,base=golden.raw          raw file on top of another one
    vda.qcow2,format=qcow2           image of another format: [,base=FILE][,base-format=FORMAT]
    nbd://host/vda   nbds://...      export of an NBD server, also nbd+unix:///vda?socket=PATH
    qemu:qmp.sock[,device=ID]        disks of a running QEMU
    dirtymap:FILE,disk=vda.raw,...   disk of another program that keeps a dirty map: see sharedmap

Options of files are also ``direct=on`` and ``locking=off``. A comma in a path is written twice, as for QEMU, except in
the path of a file that exists. The modules for a kind of disk are imported when the first such disk is opened.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeGuard

from .. import errors, paths, units
from ..disk import backend, identity, local
from ..files import file

_IMAGE_SUFFIXES = {f".{name}": name for name in ("qcow2", "qcow", "qed", "vmdk", "vhdx", "vdi")} | {".vhd": "vpc"}
_NBD_SCHEMES = ("nbd:", "nbds:", "nbd+", "nbds+")
_QEMU_SCHEME = "qemu:"
_MAP_SCHEME = "dirtymap:"
_LIVE_SCHEMES = (_QEMU_SCHEME, _MAP_SCHEME)

CONNECT_SECONDS = 30.0
IDLE_SECONDS = 60.0


class FileDescription(NamedTuple):
    """A disk in a file, as a text describes it."""

    path: str
    format: str | None = None
    base: str | None = None
    base_format: str | None = None
    direct: bool = False
    locking: bool = True

    @property
    def is_raw(self) -> bool:
        """Whether the disk is raw, so that no other program is needed to read it."""
        return self.format in (None, "raw")


def open_disks(
    text: str | os.PathLike[str],
    *,
    name: str | None = None,
    writable: bool = True,
    direct: bool = False,
    connect_timeout: float = CONNECT_SECONDS,
    idle_timeout: float = IDLE_SECONDS,
    **qemu: Any,
) -> list[backend.BlockBackend]:
    """Open the disk that `text` names; for a QEMU this may be several disks. Whoever opens them closes them.

    `name` is the disk's name on the wire. With ``writable=False`` nobody writes the disk through these objects; that
    suits a source that is not in use. `connect_timeout` is how many seconds an NBD server may take until it is ready,
    and the monitor of a QEMU for its greeting, but no more than 5 for that. `idle_timeout` is how many seconds an NBD
    server may be silent while requests are in flight, 0 for ever. Options in `qemu` are those of
    :func:`.qemu.open_qemu`.

    Raises :class:`~blkmig.errors.ParameterError` for a text that makes no sense, and the errors of the disk's class.
    """
    if is_qemu(text):
        from .. import qemu as qemu_disks

        greeting = min(connect_timeout, qemu_disks.GREETING_SECONDS)
        return list(qemu_disks.open_qemu(text, name=name, connect_timeout=greeting, **qemu))
    timeouts: dict[str, Any] = {"connect_timeout": connect_timeout, "idle_timeout": idle_timeout}
    if isinstance(text, str) and text.startswith(_MAP_SCHEME):
        return [_open_shared_map(text, name=name, direct=direct, **timeouts)]
    return [open_disk(text, name=name, writable=writable, direct=direct, **timeouts)]


def open_disk(
    text: str | os.PathLike[str],
    *,
    name: str | None = None,
    read_only: bool = False,
    writable: bool = True,
    direct: bool = False,
    connect_timeout: float = CONNECT_SECONDS,
    idle_timeout: float = IDLE_SECONDS,
) -> backend.BlockBackend:
    """Open the one disk that `text` names; see :func:`open_disks`, and FileBackend for `read_only`."""
    if is_nbd(text):
        from ..nbd import backend as nbd

        return nbd.NbdBackend(
            str(text),
            name=name,
            read_only=read_only,
            writable=writable,
            connect_timeout=connect_timeout,
            request_timeout=idle_timeout,
        )
    if isinstance(text, str) and text.startswith(_LIVE_SCHEMES):
        return _only_one(open_disks(text, name=name, direct=direct), text)
    return open_file(describe(text, direct=direct), name=name, read_only=read_only, writable=writable)


def is_qemu(text: str | os.PathLike[str]) -> TypeGuard[str]:
    """Tell whether `text` names the disks of a running QEMU."""
    return isinstance(text, str) and text.startswith(_QEMU_SCHEME)


def is_nbd(text: str | os.PathLike[str]) -> bool:
    """Tell whether `text` is an NBD URI."""
    return isinstance(text, str) and text.lower().startswith(_NBD_SCHEMES)


def is_live(text: str | os.PathLike[str]) -> bool:
    """Tell whether `text` names a disk that another program has open, which can only be a source."""
    return isinstance(text, str) and text.startswith(_LIVE_SCHEMES)


def files_named(text: str | os.PathLike[str]) -> Iterator[identity.KnownFile]:
    """Yield the files that `text` names, the disk's and its base's; none for what another program has open.

    Raises :class:`~blkmig.errors.ParameterError` as `describe`, and OSError.
    """
    if is_nbd(text) or is_live(text):
        return
    described = describe(text)
    for path in (described.path, described.base):
        if path is not None:
            yield identity.KnownFile.of(path)


def describe(text: str | os.PathLike[str], *, direct: bool = False) -> FileDescription:
    """Take apart ``PATH[,option=value]...``. Raises :class:`~blkmig.errors.ParameterError`."""
    units.check_flags(direct=direct)
    path = paths.check("a disk", text)
    if not path:
        raise errors.ParameterError(f"{path!r} names no file")
    if not isinstance(text, str) or os.path.exists(text):  # noqa: PTH110 - that of pathlib raises for a long name
        return FileDescription(path=path, direct=direct)
    path, *options = paths.split(text)
    if not path:
        raise errors.ParameterError(f"{text!r} names no file")
    values: dict[str, Any] = {"direct": direct}
    said: set[str] = set()
    for option in options:
        key, _, value = option.partition("=")
        if key in said:
            raise errors.ParameterError(f"{text!r} says {key}= twice: say it once")
        said.add(key)
        if key in ("direct", "locking") and value in ("on", "off"):
            values[key] = value == "on"
        elif key in ("format", "base", "base-format") and value:
            values[key.replace("-", "_")] = value
        else:
            raise errors.ParameterError(
                f"{option!r} in {text!r} is not known: say format=, base=, base-format=, direct=on or locking=off, and "
                f"{paths.COMMA_TWICE}"
            )
    described = FileDescription(path=path, **values)
    if described.is_raw and described.base_format not in (None, "raw"):
        raise errors.ParameterError(
            f"{text!r}: a raw disk has a raw base; if the disk is an image, say its format=, too"
        )
    return described


def _open_shared_map(text: str, *, name: str | None, direct: bool, **timeouts: Any) -> backend.BlockBackend:
    """Open ``dirtymap:MAP,disk=DISK,hold=COMMAND,release=COMMAND[,refuse=COMMAND]`` as a source.

    DISK is a file or an NBD export; its name on the wire is `name`, or what the DISK alone would be called.
    """
    from ..files import sharedmap

    where = sharedmap.parse(text)
    source = open_disk(where.disk, name=name, writable=False, direct=direct, **timeouts)
    try:
        if not isinstance(source, local.LocalBackend):
            raise errors.ParameterError(f"{where.disk!r} tracks its writes itself and needs no dirty map")
        actions = {"hold": where.hold, "release": where.release, "refuse": where.refuse}
        return sharedmap.SharedMapBackend(source, pathlib.Path(where.path), **actions)  # type: ignore[arg-type]
    except BaseException:
        source.close()
        raise


def open_file(
    described: FileDescription,
    *,
    name: str | None,
    read_only: bool = False,
    writable: bool = True,
    create_size: int | None = None,
    path: str = "",
    opened: int | None = None,
) -> backend.BlockBackend:
    """Open the disk that `described` is, or make it with `create_size` bytes. `path` replaces the path in `described`.

    `opened` is a descriptor of an empty file that becomes the disk; it belongs to this function from now on.
    """
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
        common["format"] = "raw" if described.format else None
        return file.FileBackend(path or described.path, opened=opened, **common)
    from ..nbd import image

    assert described.format is not None
    if opened is not None:
        os.close(opened)  # QEMU opens the file by its name
    return image.ImageBackend(
        path or described.path,
        format=described.format,
        base_format=described.base_format or "raw",
        is_placeholder=opened is not None,
        **common,
    )


def check_can_be_made(described: FileDescription) -> None:
    """Raise :class:`~blkmig.errors.ParameterError` for a new raw disk whose name looks like an image of another
    format."""
    usual = _IMAGE_SUFFIXES.get(pathlib.Path(described.path).suffix.lower())
    if described.format is None and usual is not None:
        raise errors.ParameterError(
            f"{described.path!r} is named as a {usual} image, and would be made as a raw disk: say format={usual}, or "
            "format=raw if that is meant"
        )


def check_size_is_known(described: FileDescription, size: int | None) -> None:
    """Raise :class:`~blkmig.errors.ParameterError` if an image of this format cannot be made without a `size`."""
    if size is None and described.format not in (None, "raw", "qcow2") and described.base is None:
        raise errors.ParameterError(f"{described.path!r}: to make a {described.format} image, its size must be said")


def _only_one(disks: list[backend.BlockBackend], text: str) -> backend.BlockBackend:
    if len(disks) == 1:
        return disks[0]
    names = ", ".join(disk.name for disk in disks)
    for disk in disks:
        disk.close()
    raise errors.ParameterError(f"{text!r} has {len(disks)} disks ({names}): choose one, with device=")
