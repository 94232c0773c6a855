# SPDX-License-Identifier: GPL-2.0-or-later
"""For programs that embed blkmig and test themselves: disks that fail, writers and peers that follow a script.

::

    FaultyDisk ── Fault, Stop       a disk around another one: the n-th read fails, waits, is short, or is damaged
    StepWriter                      a thread that writes a disk, one write for each step
    Peer ── say, expect, reset ...  an end of a link that does what a list of steps says, and no more

Nothing here sleeps to wait for something, and nothing waits for ever: what does not come within `SECONDS` is an error.
"""

from .faults import SECONDS, Fault, Stop, Verb
from .faulty import FaultyDisk
from .peer import Peer, ScriptError, Step, message
from .steps import end, expect, half_close, reset, say, silence, take, take_all, take_until, wait_for
from .writer import StepWriter

__all__ = [
    "SECONDS",
    "Fault",
    "FaultyDisk",
    "Peer",
    "ScriptError",
    "Step",
    "StepWriter",
    "Stop",
    "Verb",
    "end",
    "expect",
    "half_close",
    "message",
    "reset",
    "say",
    "silence",
    "take",
    "take_all",
    "take_until",
    "wait_for",
]
