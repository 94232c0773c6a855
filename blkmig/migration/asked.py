# SPDX-License-Identifier: GPL-2.0-or-later
"""What a caller hands over: disks, targets and where they go. It is looked at once, before anything is opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from .. import block, disk, errors, params, paths, units, unrun
from ..disk import names

T = TypeVar("T")


def disks_of(disks: Iterable[T]) -> list[T]:
    """Return the disks that are to be sent. Raises :class:`~blkmig.errors.ParameterError` if there are none.

    A text is no list of disks, although it can be iterated, and a mapping would lose what it maps to.
    """
    if isinstance(disks, str | bytes) or (isinstance(disks, Mapping) and disks) or not isinstance(disks, Iterable):
        raise errors.WrongType(f"the disks must be a list of disks, not {disks!r}")
    found = list(disks)
    if not found:
        raise errors.ParameterError("there is no disk to send: say at least one")
    return found


def backends_of(disks: Iterable[disk.BlockBackend]) -> list[disk.BlockBackend]:
    """Return the open disks that are to be sent, as :func:`disks_of`; each has a name and a size that can be."""
    found = disks_of(disks)
    for backend in found:
        if not isinstance(backend, disk.BlockBackend):
            raise errors.WrongType(f"{backend!r} is no open disk: open it first, as open_disk does")
        _check_shape(backend)
    return found


def _check_shape(backend: disk.BlockBackend) -> None:
    """Raise unless name and size of a disk, which another package may have made, can stand on the wire."""
    name: Any = getattr(backend, "name", None)
    size: Any = getattr(backend, "size", None)
    if name != "":  # a QEMU may have a disk without a name
        names.check_name(name)
    nbytes = units.whole(size)
    if nbytes is None or not 0 <= nbytes < 1 << 63:
        why = f"its size must be a whole number of bytes from 0 to 2^63 - 1, not {size!r}"
        raise errors.ParameterError(f"disk {name!r} cannot be sent: {why}")


def parameters_of(given: T | None, kind: type[T]) -> T:
    """Return the parameters of a migration, without any the default ones: those of the other end are none of it."""
    if given is None:
        return kind()
    if not isinstance(given, kind):
        raise errors.WrongType(f"the parameters must be {kind.__name__}, not {given!r}")
    return given


def check_targets(targets: object, by_index: object, into: object) -> None:
    """Raise :class:`~blkmig.errors.ParameterError` for targets of which one could not be meant."""
    for what, mapping in (("targets", targets), ("by_index", by_index)):
        if mapping is not None and not isinstance(mapping, Mapping):
            raise errors.WrongType(f"{what} must map disks to where they go, not be {mapping!r}")
        for key, target in (mapping or {}).items():
            _check_key(what, key)
            if not isinstance(target, disk.BlockBackend):
                paths.check(f"{what}[{key!r}]", target)
    if into is not None and not paths.check("into", into):
        raise errors.ParameterError("the name of the folder is empty; the present one is called .")
    if not targets and into is None and not by_index:
        raise errors.ParameterError("say where the disks go: NAME=PATH for each, or a folder for all")


def listener(on_progress: T) -> T:
    """Return what is told of a migration. Raises :class:`~blkmig.errors.WrongType` for what cannot be called."""
    if on_progress is not None and not callable(on_progress):
        raise errors.WrongType(f"on_progress must be a function, not {on_progress!r}")
    unrun.check("on_progress", on_progress)
    return on_progress


def check_old_copies(parameters: params.IncomingParameters, targets: Mapping[str, object], into: object) -> None:
    """Raise :class:`~blkmig.errors.ParameterError` for old copies that cannot be used for these targets."""
    for name in parameters.delta:
        if name not in targets:
            raise errors.ParameterError(f"say where disk {name!r} goes that begins with an old copy: {name}=PATH")
        if isinstance(targets[name], disk.BlockBackend):
            raise errors.ParameterError(f"the target of disk {name!r} is open: what it holds is compared with in_place")
    if parameters.in_place and into is not None:
        raise errors.ParameterError("what is written in place is named: say NAME=PATH for each disk, and no folder")
    if parameters.compares and not block.can_hash():
        raise errors.ParameterError(f"old copies cannot be compared: {block.MISSING}")


def _check_key(what: str, key: object) -> None:
    if what == "targets":
        if not isinstance(key, str):
            raise errors.WrongType(f"targets are said by the names of disks, not by {key!r}; by_index counts them")
        if key:  # a QEMU may have a disk without a name
            names.check_name(key)
    else:
        number = units.whole(key)
        if number is None:
            raise errors.WrongType(f"by_index counts the disks from 0, it does not name them: not {key!r}")
        if number < 0:
            raise errors.ParameterError(f"by_index counts the disks from 0, not from {key!r}")
