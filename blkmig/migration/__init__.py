# SPDX-License-Identifier: GPL-2.0-or-later
"""Outgoing and incoming migrations: setup, iterate, switchover, complete, cleanup; convergence and the verdict.

What a migration itself does not need, the forecast and the inspection, is loaded when it is first used.
"""

from typing import TYPE_CHECKING

from .. import later

if TYPE_CHECKING:
    from .calls import incoming, outgoing, receive, send
    from .forecasting import Forecast, forecast
    from .incomingmigration import IncomingMigration
    from .inspecteddisk import InspectedDisk, RecordListener
    from .inspection import Inspection, as_json, inspect
    from .outgoingmigration import OutgoingMigration

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






def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__getattr__ = later.opener(
    __name__,
    calls="incoming outgoing receive send",
    forecasting="Forecast forecast",
    incomingmigration="IncomingMigration",
    inspecteddisk="InspectedDisk RecordListener",
    inspection="Inspection as_json inspect",
    outgoingmigration="OutgoingMigration",
)
