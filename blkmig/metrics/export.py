# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever collects gets the metrics: by a file, over HTTP, and a stall in the log, for the length of a ``with``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from . import collector, library
from .listen import Server
from .stall import StallWatch
from .textfile import TextFile


@contextlib.contextmanager
def exported(
    metrics: collector.MigrationMetrics, *, file: str | os.PathLike[str] | None = None, listen: str | None = None
) -> Iterator[str | None]:
    """Export `metrics`; yield the URL at which they are, or None.

    `file` is written once a second and at the end, for node_exporter's textfile collector: its name should end in
    ``.prom``. `listen` is ``[ADDRESS]:PORT`` in numbers; without an address only this machine is served, and port 0 is
    any free one. What is raised in the body is what the migration ended with. Raises
    :class:`~blkmig.errors.ParameterError` before the body, for an address that cannot be had or a library that is
    missing. A file that cannot be written is a warning, once.
    """
    registry = library.load().CollectorRegistry()
    registry.register(metrics)
    with contextlib.ExitStack() as stack:
        server = None if listen is None else stack.enter_context(Server(registry, listen))
        stack.enter_context(StallWatch(metrics))
        if file is not None:
            stack.enter_context(TextFile(registry, file))
        try:
            yield None if server is None else server.url
        except BaseException as error:
            metrics.ended(error)
            raise
