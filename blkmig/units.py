# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes as people write and read them: K, M, G, T are powers of 1024."""

from __future__ import annotations

import operator
import re
import sys
from typing import SupportsIndex

from . import errors

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40

_MOST_DIGITS = 100  # int() itself refuses some thousands, with an error of its own
_SUFFIXES = {"": 1, "k": KiB, "m": MiB, "g": GiB, "t": TiB, "p": 1 << 50, "e": 1 << 60}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtpe]?)(?:i?b)?(?:/s)?\s*", re.IGNORECASE | re.ASCII)


def index(value: SupportsIndex) -> int:
    """Return the plain int that `value` is: numpy's integers, too. A float is a TypeError, and so is a bool."""
    if isinstance(value, bool):
        raise errors.WrongType(f"{value} is no number: say how many")
    return operator.index(value)


def place(what: str, value: SupportsIndex) -> int:
    """Return the plain int of a size or an offset called `what`, as :func:`index` does, from 0 to 2^63 - 1.

    Raises :class:`~blkmig.errors.ParameterError` for what no system call could take.
    """
    found = index(value)
    if not 0 <= found < 1 << 63:
        raise errors.ParameterError(f"{what} must be from 0 to 2^63 - 1 bytes, not {found}")
    return found


def check_flags(**flags: object) -> None:
    """Raise :class:`~blkmig.errors.WrongType` unless each of these options is a bool, Python's or numpy's.

    Every text but the empty one counts as true, "no" as well: whoever gives one means something else.
    """
    for name, value in flags.items():
        if not isinstance(value, bool) and not _is_numpy_bool(value):
            raise errors.WrongType(f"{name} must be True or False, not {value!r}")


def _is_numpy_bool(value: object) -> bool:
    numpy = sys.modules.get("numpy")  # who has one of its bools has imported it
    return numpy is not None and isinstance(value, numpy.bool_)


def whole(value: object) -> int | None:
    """Return the plain int that `value` is, if it is a whole number of any kind, numpy's too; None if it is not.

    A float is none, whatever its value, nor is a bool.
    """
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:  # an array
        return None


def real(value: object) -> float | None:
    """Return the plain float that `value` is, if it is a number of any kind, numpy's too; None for a bool and NaN."""
    number = whole(value)
    if number is None and not isinstance(value, float):
        import numbers

        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return None
    try:
        result = float(value if number is None else number)  # type: ignore[arg-type]
    except OverflowError:  # of an int
        return None
    return result if result == result else None


def number(name: str, value: object) -> float:
    """Return the plain float that the argument `name` is, raise :class:`~blkmig.errors.WrongType` if it is none."""
    found = real(value)
    if found is None:
        raise errors.WrongType(f"{name} must be a number, not {value!r}")
    return found


def share(name: str, value: object) -> float:
    """Return the plain float that the argument `name` is: above 0, for nobody comes back from 0, and 1 at most.

    Raises :class:`~blkmig.errors.ParameterError`.
    """
    found = number(name, value)
    if not 0 < found <= 1:
        raise errors.ParameterError(f"{name} must be above 0 and at most 1, which is all of it, not {value!r}")
    return found


def parse_size(text: SupportsIndex | str) -> int:
    """Return the bytes that `text` says: ``4096``, ``"64K"``, ``"1.5GiB"``, ``"100MiB/s"``.

    A fraction in a text is rounded down to whole bytes. Raises :class:`~blkmig.errors.ParameterError`.
    """
    if not isinstance(text, str):
        number_given = whole(text)
        if number_given is None:
            raise errors.ParameterError(f"a size must be a number of bytes or a text such as '64K', not {text!r}")
        size = number_given
    else:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise errors.ParameterError(f"{text!r} is not a size: say bytes, or use a suffix, as in 64K, 512M, 1.5GiB")
        number, suffix = match.groups()
        factor = _SUFFIXES[suffix.lower()]
        if len(number) > _MOST_DIGITS:
            raise errors.ParameterError(f"a number of {len(number)} digits is not a size")
        size = int(number) * factor if "." not in number else int(float(number) * factor)
    if not 0 <= size < 1 << 63:
        raise errors.ParameterError(f"{text!r} is not a size: it must be from 0 to 2^63 - 1 bytes")
    return size


def format_size(nbytes: float) -> str:
    """Return `nbytes` for a person: ``"512 B"``, ``"1.5 MiB"``, ``"12.0 GiB"``."""
    for unit, factor in (("TiB", TiB), ("GiB", GiB), ("MiB", MiB), ("KiB", KiB)):
        if abs(nbytes) >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes:.0f} B"


def format_rate(bytes_per_second: float) -> str:
    """Return a throughput for a person: ``"1.2 GiB/s"``."""
    return f"{format_size(bytes_per_second)}/s"


def counted(count: int, one: str, many: str = "") -> str:
    """Return how many there are of something: ``"1 pack"``, ``"2 packs"``; `many` is for what has another plural."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def describe_pieces(granule: int) -> str:
    """Say what a figure of dirty bytes counts: ``"of whole blocks"``, ``"in pieces of 4.0 KiB"``."""
    return "of whole blocks" if granule == MiB else f"in pieces of {format_size(granule)}"


def format_duration(seconds: float) -> str:
    """Return a duration for a person: ``"12 ms"``, ``"3.4 s"``, ``"2 min 05 s"``."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
