# SPDX-License-Identifier: GPL-2.0-or-later
"""The byte stream between two machines: QEMUFile over tcp: unix: exec: fd: file: and the standard streams."""

from .breaking import Breaker
from .bundle import join, split
from .measuring import LinkSpeed, NotMeasured, measure
from .open import Connector, Listener, connect, listen
from .qemufile import InputQEMUFile, OutputQEMUFile
from .uri import parse_uri

__all__ = [
    "Breaker",
    "Connector",
    "InputQEMUFile",
    "LinkSpeed",
    "Listener",
    "NotMeasured",
    "OutputQEMUFile",
    "connect",
    "join",
    "listen",
    "measure",
    "parse_uri",
    "split",
]
