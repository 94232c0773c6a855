# SPDX-License-Identifier: GPL-2.0-or-later
"""How a public name says that it will go: by a DeprecationWarning at the line of whoever uses it.

The promise of ``docs/reference/promise.md`` is kept with it: a name that goes warns for a whole minor version before,
and says what to use instead.
"""

from __future__ import annotations

import sys
import warnings


def warn(what: str, *, instead: str, goes_with: str) -> None:
    """Warn that `what` goes with the version `goes_with`, and what to use `instead`.

    The warning is at the line outside of blkmig that led here, however deep the call; so Python shows it to whoever
    runs that line as a program or in tests, and hides it from the users of a tool that embeds blkmig.
    """
    message = f"{what} is deprecated, and goes with blkmig {goes_with}: use {instead}"
    warnings.warn(message, DeprecationWarning, stacklevel=_depth_outside())


def _depth_outside() -> int:
    """Return the `stacklevel`, for `warn`, of the nearest caller that is no code of the package."""
    package = __name__.partition(".")[0]
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
        frame, depth = frame.f_back, depth + 1
    return depth
