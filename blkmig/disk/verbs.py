# SPDX-License-Identifier: GPL-2.0-or-later
"""That a disk keeps the contract, whoever wrote its class: each verb of a subclass of BlockBackend is guarded.

The contract says that failures are DeviceErrors. A class that somebody brings along may forget it in one of the verbs,
and then a migration would end with a bare OSError that names no disk. So the verbs are wrapped when the class is made.
`read_block` and `write_block`, which are called for each block, are not: their callers do the same, at no cost.

What a class of another package answers is looked at, too; see `promises`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .. import _core, _storing, errors, unrun
from . import promises

DOING = {
    "read_extents": "cannot read",
    "write_extents": "cannot write",
    "write_zeroes": "cannot write zeros",
    "rest": "cannot write",
    "drain": "cannot write",
    "flush": "cannot flush",
    "flush_drained": "cannot flush",
    "resize": "cannot be resized",
    "next_data": "cannot look for data",
    "zeroes_end": "cannot look for data",
    "next_allocated": "cannot look for data",
    "create_dirty_bitmap": "cannot track its writes",
    "release_dirty_bitmap": "cannot end tracking its writes",
    "sync_dirty": "cannot tell what was written",
    "hold_writers": "cannot hold its writers",
    "release_writers": "cannot release its writers",
    "throttle_writers": "cannot slow its writers down",
    "written_bytes": "cannot tell how much was written",
    "about_to_move": "cannot take note that it moves",
    "leave_in_doubt": "cannot keep its writers held",
    "check_source": "cannot be looked at",
    "close": "cannot close",
}
"""The verbs that may fail, and what they do then. `cancel` is called by signal handlers and does not fail."""

OURS = f"{__name__.partition('.')[0]}."
"""The classes of this package keep their promises: its tests see to that."""


def guard(cls: type, base: type) -> None:
    """Have the verbs of `cls` raise DeviceError where they would raise an OSError, and answer what makes sense.

    They are those that it defines itself, or has from a class beside it that is none of the subclasses of `base`.
    Raises :class:`~blkmig.errors.WrongType` for one that is async, and for a generator.
    """
    if not cls.__module__.startswith(OURS):
        _check_run(cls)
    for verb in (*DOING, *promises.CHECKS):
        function = _defined(cls, base, verb)
        if not callable(function) or getattr(function, "__isabstractmethod__", False):
            continue
        if verb in promises.CHECKS and not cls.__module__.startswith(OURS):
            function = promises.CHECKS[verb](function)
        if verb in DOING:
            function = _guarded(function, DOING[verb])
        setattr(cls, verb, function)


def _check_run(cls: type) -> None:
    ours = [vars(each) for each in cls.__mro__ if each.__module__.startswith(OURS)]
    for verb in dir(cls):
        if any(verb in names for names in ours):
            unrun.check(f"{cls.__name__}.{verb}", getattr(cls, verb, None))


def _defined(cls: type, base: type, verb: str) -> Any:
    """Return what `cls` has as this verb, None if that was guarded when another class was made."""
    definer = next((each for each in cls.__mro__ if verb in vars(each)), cls)
    return None if definer is not cls and issubclass(definer, base) else vars(definer).get(verb)


def _guarded(function: Callable[..., Any], doing: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(self, *args, **kwargs)
        except OSError as error:
            what, place, nbytes = doing, getattr(error, "offset", None), getattr(error, "nbytes", None)
            if isinstance(error, _storing.LateError):  # of a block that was put before; an ExtentError has both numbers
                what, nbytes = "cannot write", _core.BLOCK_SIZE
            raise errors.DeviceError(what, device=self.name, cause=error, offset=place, nbytes=nbytes) from error

    return call
