# SPDX-License-Identifier: GPL-2.0-or-later
"""How a payload travels: decided once, when a stream is set up, and in this room alone.

A disk says four facts of itself, a channel four, and nobody else combines them::

    disk       mapping            read_block reads one file, and this is its mapping
               is_written         somebody may write it while it is open here
               reads_in_parallel  its reads have latency
               takes_pages        write_block stores pages without looking at them
    channel    takes_pages        a file's pages may stand in it instead of copies
               keeps_pages        pages may be given to it for good: it is a pipe
               is_answered        a word comes back when the peer has everything
               is_local           the peer is on this machine

From these, and from the parameters, come two frozen decisions: `Departure` of the stream that is sent, `Arrival` of
each disk that is received. Each module has its table of cases and the invariants that the table keeps; a test walks
through all combinations and reads what it expects from the table.

A decision ends as the kind of the block buffers, which is set when they are made (see ``_core.BlockBuffer``)::

    own       the payload is in the buffer's memory                            sent, after somebody has looked at it
    mapped    it may be a file's mapping, which the kernel copies from         sent
    lent      it may be a file's pages, which the channel takes as they are    sent
    given     it is in the buffer's memory, which a pipe may take away                 sent
    moved     it is in the buffer's memory, which storing may take away        received
    piped     it may be pages that nobody has looked at                        received
"""

from typing import TYPE_CHECKING

from .. import later

if TYPE_CHECKING:
    from .receiving import Arrival, arrival
    from .sending import Departure, departure

__all__ = ["Arrival", "Departure", "arrival", "departure"]

__getattr__ = later.opener(
    __name__,
    receiving="Arrival arrival",
    sending="Departure departure",
)
