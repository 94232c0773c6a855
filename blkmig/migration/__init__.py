# SPDX-License-Identifier: GPL-2.0-or-later
"""Outgoing and incoming migrations: setup, iterate, switchover, complete, cleanup; convergence and the verdict."""

from .forecast import Forecast, forecast
from .incoming import IncomingMigration, incoming, receive
from .inspection import InspectedDisk, Inspection, RecordListener, as_json, inspect
from .outgoing import OutgoingMigration, outgoing, send

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
