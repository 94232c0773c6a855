# SPDX-License-Identifier: GPL-2.0-or-later
"""What somebody who has just connected is: a candidate, with or without TLS before it, or nobody who is served."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import networks
from . import candidates

if TYPE_CHECKING:
    from . import tls


def candidate_of(
    sock: socket.socket, listening: str, security: tls.Security | None, allow: Sequence[networks.Network]
) -> candidates.Candidate:
    """Return what an accepted `sock` is until its stream begins; only who comes from `allow` is admitted."""
    is_admitted = networks.admits(allow, candidates.host_of(sock))
    if security is None or not is_admitted:
        return candidates.Candidate(sock, listening, is_admitted=is_admitted)
    from . import handshakes

    return handshakes.SecuredCandidate(sock, listening, security)
