# SPDX-License-Identifier: GPL-2.0-or-later
"""Outgoing and incoming migrations: setup, iterate, switchover, complete, cleanup; convergence and the verdict.

What a migration itself does not need, the forecast and the inspection, is loaded when it is first used.
"""

from .calls import incoming, outgoing, receive, send
from .incoming import IncomingMigration
from .outgoing import OutgoingMigration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .forecasting import Forecast, forecast
    from .inspecteddisk import InspectedDisk, RecordListener
    from .inspection import Inspection, as_json, inspect

__all__ = [
    "Forecast",
    "IncomingMigration",
    "InspectedDisk",
    "Inspection",
    "OutgoingMigration",
    "RecordListener",
    "as_json",
    "forecast",
    "incoming",
    "inspect",
    "outgoing",
    "receive",
    "send",
]

_FORECASTING = ("Forecast", "forecast")
_INSPECTED = ("InspectedDisk", "RecordListener")


def __getattr__(name: str) -> object:
    """Load what is asked for, once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _FORECASTING:
        from . import forecasting as module
    elif name in _INSPECTED:
        from . import inspecteddisk as module  # type: ignore[no-redef]
    else:
        from . import inspection as module  # type: ignore[no-redef]
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
