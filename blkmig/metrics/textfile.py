# SPDX-License-Identifier: GPL-2.0-or-later
"""A file with the metrics, for node_exporter's textfile collector: replaced once a second, and at the end.

It stays there afterwards, so that whoever collects learns how the migration ended.
"""

from __future__ import annotations

import os
from typing import Any

from .. import logs, ownfile
from . import library
from .ticking import Ticking

logger = logs.Logger(__name__)

MARK = b"# HELP blkmig_"


class TextFile(Ticking):
    """Writes what a registry knows, in a thread of its own."""

    def __init__(self, registry: Any, path: str | os.PathLike[str], **options: Any) -> None:
        super().__init__("blkmig-metrics-file", **options)
        self._registry = registry
        self._path = path
        self._generate = library.load("openmetrics.exposition").generate_latest
        self._has_warned = False

    def tick(self) -> None:
        """Write the file."""
        try:
            ownfile.replace(self._path, self._generate(self._registry), MARK)
        except OSError as error:
            self._warn(error.strerror or str(error))

    def left_behind(self) -> None:
        """Say that the file may not have the end of the migration."""
        self._warn("the file system is slow, and the end of the migration may be missing there")

    def _warn(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("the metrics cannot be written to %r: %s", os.fspath(self._path), why)
