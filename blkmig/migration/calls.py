# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole migration in one call, and a migration to be driven by the caller: what most programs use of this room."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from .. import disk, params, paths, stats
from ..sources import together
from . import asked, figures
from . import targets as load_targets
from .incoming import IncomingMigration
from .outgoing import OutgoingMigration


def outgoing(
    disks: Iterable[disk.BlockBackend],
    uri: str,
    parameters: params.MigrationParameters | None = None,
    *,
    on_progress: figures.OnProgress | None = None,
) -> OutgoingMigration:
    """Return a migration of `disks` to `uri`, driven step by step in a ``with``; see :class:`OutgoingMigration`."""
    return OutgoingMigration(disks, uri, parameters, on_progress=on_progress)


def send(
    disks: Iterable[disk.BlockBackend | str | os.PathLike[str]],
    uri: str,
    *,
    on_progress: figures.OnProgress | None = None,
    **parameters: Any,
) -> stats.OutgoingStatistics:
    """Migrate `disks` to `uri` and return the statistics. Blocks until it is done or has failed.

    A disk may be a path: it is opened for the length of the call. `parameters` are those of
    :class:`~blkmig.MigrationParameters`.
    """
    chosen = params.MigrationParameters(**parameters)
    timeouts: dict[str, Any] = {"connect_timeout": chosen.connect_timeout, "idle_timeout": chosen.idle_timeout}
    with contextlib.ExitStack() as opened:
        sources = asked.disks_of(disks)
        for source in sources:
            if not isinstance(source, disk.BlockBackend):
                paths.check("a disk", source)
        texts = [(None, source) for source in sources if not isinstance(source, disk.BlockBackend)]
        found = iter(together.open_sources(texts, writable=False, **timeouts))
        backends: list[disk.BlockBackend] = []
        for source in sources:
            if isinstance(source, disk.BlockBackend):
                backends.append(source)
            else:
                backends.extend(map(opened.enter_context, next(found)))
        migration = OutgoingMigration(backends, uri, chosen, on_progress=on_progress)
        with migration:
            migration.run()
        return migration.stats


def incoming(
    uri: str,
    targets: Mapping[str, load_targets.Target] | None = None,
    parameters: params.IncomingParameters | None = None,
    *,
    into: str | os.PathLike[str] | None = None,
    by_index: Mapping[int, load_targets.Target] | None = None,
    on_progress: figures.OnProgress | None = None,
) -> IncomingMigration:
    """Return a migration that comes in on `uri`, to be run in a ``with``; see :class:`IncomingMigration`."""
    targets = {} if targets is None else targets
    return IncomingMigration(uri, targets, parameters, into=into, by_index=by_index, on_progress=on_progress)


def receive(
    uri: str,
    targets: Mapping[str, load_targets.Target] | None = None,
    *,
    into: str | os.PathLike[str] | None = None,
    by_index: Mapping[int, load_targets.Target] | None = None,
    on_progress: figures.OnProgress | None = None,
    **parameters: Any,
) -> stats.IncomingStatistics:
    """Receive the disks of one migration and return the statistics. Blocks until everything is on stable storage.

    `parameters` are those of :class:`~blkmig.IncomingParameters`.
    """
    migration = IncomingMigration(
        uri,
        {} if targets is None else targets,
        params.IncomingParameters(**parameters),
        into=into,
        by_index=by_index,
        on_progress=on_progress,
    )
    with migration:
        return migration.run()
