# SPDX-License-Identifier: GPL-2.0-or-later
"""Outgoing and incoming migrations: setup, iterate, switchover, complete, cleanup; convergence and the verdict."""

from .incoming import IncomingMigration, incoming, receive
from .outgoing import OutgoingMigration, outgoing, send

__all__ = ["IncomingMigration", "OutgoingMigration", "incoming", "outgoing", "receive", "send"]
