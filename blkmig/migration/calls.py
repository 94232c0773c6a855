# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole migration in one call, and a migration to be driven by the caller: what most programs use of this room."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .. import params, stats

if TYPE_CHECKING:
    from .. import disk
    from . import figures
    from . import targets as load_targets
    from .incomingmigration import IncomingMigration
    from .outgoingmigration import OutgoingMigration


def outgoing(
    disks: Iterable[disk.BlockBackend],
    uri: str,
    parameters: params.MigrationParameters | None = None,
    *,
    on_progress: figures.OnProgress | None = None,
) -> OutgoingMigration:
    """Return a migration of `disks` to `uri`, driven step by step in a ``with``; see :class:`OutgoingMigration`."""
    from .outgoingmigration import OutgoingMigration  # here, as in the others: an end loads nothing of the other one

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
    with sending(disks, uri, on_progress=on_progress, **parameters) as migration:
        with migration:
            migration.run()
        return migration.stats


@contextlib.contextmanager
def sending(
    disks: Iterable[disk.BlockBackend | str | os.PathLike[str]],
    uri: str,
    *,
    on_progress: figures.OnProgress | None = None,
    **parameters: Any,
) -> Iterator[OutgoingMigration]:
    """Yield the migration that :func:`send` is to run, with the disks that are said by paths open meanwhile.

    It is made when they are open: opening them takes as long as `connect_timeout` allows, and nothing ends it.
    """
    from .. import disk, paths
    from ..sources import together
    from . import asked
    from .outgoingmigration import OutgoingMigration

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
        yield OutgoingMigration(backends, uri, chosen, on_progress=on_progress)


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
    from .incomingmigration import IncomingMigration

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
    chosen = params.IncomingParameters(**parameters)
    with incoming(uri, targets, chosen, into=into, by_index=by_index, on_progress=on_progress) as migration:
        return migration.run()
