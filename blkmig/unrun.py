# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions that somebody brings along and blkmig calls: of an async one, a call runs nothing, and says so to nobody.

It makes a coroutine, and a generator function makes a generator. Whoever took that for done would flush no target,
write no block, and end well. So such functions are refused where they come in.
"""

from __future__ import annotations

import functools
import inspect

from . import errors

_ASYNC = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR


def check(what: str, function: object, *, may_yield: bool = False) -> None:
    """Raise :class:`~blkmig.errors.WrongType` if a call of `function`, which is called `what`, would run nothing of it.

    `may_yield`: what it returns is iterated, so it may be a generator. What is no function is none of this.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__code__"):
        function = inspect.getattr_static(type(function), "__call__", None)  # an object that can be called
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    if flags & _ASYNC or (flags & inspect.CO_GENERATOR and not may_yield):
        kind = "an async function" if flags & _ASYNC else "a generator"
        raise errors.WrongType(f"{what} is {kind}, and a call would run nothing of it: make it a plain function")
