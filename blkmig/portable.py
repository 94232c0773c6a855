# SPDX-License-Identifier: GPL-2.0-or-later
"""Exceptions that come out of a process pool as what they are: with their fields, notes and cause."""

from __future__ import annotations

from typing import Any


class Portable:
    """What makes an exception one that can be copied and pickled, whatever its constructor asks for."""

    def __reduce__(self: Any) -> tuple[object, ...]:
        """Make the copy from message and fields, without the constructor."""
        state = {name: _portable(value) for name, value in vars(self).items()}
        if self.__cause__ is not None:
            state["__cause__"] = _portable_cause(self.__cause__)
        return _remade, (type(self), self.args), state


def _remade(kind: type[BaseException], args: tuple[object, ...]) -> BaseException:
    return kind.__new__(kind, *args)  # sets the args, which are the message; __setstate__ sets the fields


def _portable(value: object) -> object:
    """Return `value`, or the text of one that cannot be pickled: no field may keep an error from being told."""
    if isinstance(value, str | bytes | int | float | None):
        return value
    import pickle

    try:
        pickle.loads(pickle.dumps(value))
    except Exception:
        return repr(value)
    return value


def _portable_cause(cause: BaseException) -> BaseException:
    whole = _portable(cause)
    return whole if isinstance(whole, BaseException) else Exception(f"{type(cause).__name__}: {cause}")
