# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of what a caller sets in `params`: each makes a field of frozen parameters plain, or says what is wrong."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

from . import errors, networks, paths, units


def set_flags(parameters: Any) -> None:
    """Make bools of any kind, numpy's too, plain ones; raise :class:`~blkmig.errors.WrongType` for other values."""
    for field in dataclasses.fields(parameters):
        if isinstance(field.default, bool):
            value = getattr(parameters, field.name)
            units.check_flags(**{field.name: value})
            object.__setattr__(parameters, field.name, bool(value))


def check_tls(parameters: Any) -> None:
    """Raise :class:`~blkmig.errors.WrongType` for what does not say whom to trust."""
    if parameters.tls is None:
        return
    from . import credentials

    if not isinstance(parameters.tls, credentials.TlsParameters):
        raise errors.WrongType(f"tls must be TlsParameters, not {parameters.tls!r}")


def check_resume(parameters: Any) -> None:
    """Raise :class:`~blkmig.errors.ParameterError` for what cannot go on where an earlier migration has ended."""
    against = {
        "--no-delta (delta=False)": not parameters.delta,
        "--incremental (shared_base)": parameters.shared_base,
        "--format=block": parameters.format == "block",
        "--no-return-path (return_path=False)": not parameters.return_path,
        "a QEMU (--qemu, --machine)": parameters.is_for_qemu,
    }
    for what, is_said in against.items():
        if parameters.resume and is_said:
            raise errors.ParameterError(f"--resume compares what a blkmig holds, so it does not go with {what}")


def set_folder(parameters: Any) -> None:
    """Make the folder for session files, where one is said, a plain text."""
    said: str | os.PathLike[str] | None = parameters.state_dir
    if said is None:
        return
    if not isinstance(said, str | os.PathLike):
        raise errors.WrongType(f"state_dir must be a path, not {said!r}")
    if not os.fspath(said):
        raise errors.ParameterError("the name of the folder for session files is empty; the present one is called .")
    paths.check("state_dir", said)
    try:
        object.__setattr__(parameters, "state_dir", os.path.realpath(said))
    except OSError as error:  # it is within the present folder, which is gone
        raise errors.ParameterError(f"the folder for session files, {said!r}, is not found: {error}") from error


def set_networks(parameters: Any) -> None:
    """Make the networks that may connect a tuple; raise :class:`~blkmig.errors.ParameterError` for what is none."""
    said = parameters.allow
    if said is None:
        said = ()
    if isinstance(said, str | bytes) or not isinstance(said, Iterable):
        raise errors.WrongType(f"allow must be a list of networks, not {said!r}")
    object.__setattr__(parameters, "allow", tuple(said))
    networks.parse(parameters.allow)


def set_number(parameters: object, name: str, low: float, high: float) -> None:
    """Make a field a plain float; raise :class:`~blkmig.errors.ParameterError` unless low <= it <= high."""
    _set(parameters, name, units.real(getattr(parameters, name)), "", low, high)


def set_whole(parameters: object, name: str, low: int, high: int) -> None:
    """Make a field a plain int, as :func:`set_number` does."""
    _set(parameters, name, units.whole(getattr(parameters, name)), "a whole number ", low, high)


def _set(parameters: object, name: str, value: float | None, kind: str, low: float, high: float) -> None:
    if value is None or not low <= value <= high:
        bounds = f"at least {low}" if high >= 1 << 63 else f"from {low} to {high}"
        raise errors.ParameterError(f"{name} must be {kind}{bounds}, not {getattr(parameters, name)!r}")
    object.__setattr__(parameters, name, value)
