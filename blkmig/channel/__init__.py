# SPDX-License-Identifier: GPL-2.0-or-later
"""The byte stream between two machines: QEMUFile over tcp: unix: exec: fd: file: and the standard streams."""

from typing import TYPE_CHECKING

from .. import later

if TYPE_CHECKING:
    from .breaking import Breaker
    from .bundle import join, split
    from .listener import Listener, listen
    from .measuring import LinkSpeed, NotMeasured, measure
    from .open import Connector, connect
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

__getattr__ = later.opener(
    __name__,
    breaking="Breaker",
    bundle="join split",
    listener="Listener listen",
    measuring="LinkSpeed NotMeasured measure",
    open="Connector connect",
    qemufile="InputQEMUFile OutputQEMUFile",
    uri="parse_uri",
)
