# SPDX-License-Identifier: GPL-2.0-or-later
"""The library that knows OpenMetrics; only who wants metrics needs it, and only then it is loaded."""

from __future__ import annotations

import importlib
from typing import Any

from .. import errors

MISSING = "the Python library prometheus_client is missing: pip install 'blkmig[metrics]'"


def load(module: str = "") -> Any:
    """Return the library, or a module of it. Raises :class:`~blkmig.errors.ParameterError` if it is missing."""
    try:
        return importlib.import_module(f"prometheus_client.{module}" if module else "prometheus_client")
    except ImportError as error:
        raise errors.ParameterError(MISSING) from error
