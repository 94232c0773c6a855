# SPDX-License-Identifier: GPL-2.0-or-later
"""How the blocks of one disk arrive. In the table the first line that fits decides.

::

    payload   pages
    piped     yes
    moved     no

    pages     the disk stores pages without looking at them: it is a file of the page cache

Whether payloads come as pages at all the sender says, or the channel knows, as a pipe does: see
`ReceivingFile.expect_pages`. How they are stored then is the disk's: a whole block that is moved or piped may be stored
by a thread of the disk, soon, and before anything that is done to the disk later; any other is stored when
`write_block` returns.

Invariants:

* **A payload is stored when all of it has come**, and never in part.
* **Nobody looks at a payload after it was given to the disk.** So storing may take the memory away and give the buffer
  other memory, and a thread may store it while the next block comes. What is verified is read back from the disk.
* **Nobody looks at a payload before that, either.** So it may stay pages in a pipe between the socket and the file. A
  disk that must look at it, because it finds out about zeros or goes past the page cache, gets it in memory.
* **One block after the other.** All disks of a stream that arrive alike share one buffer.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from .. import disk


class Arrival(NamedTuple):
    """How the blocks of one disk arrive."""

    payload: Literal["moved", "piped"]
    """The kind of the buffer."""


def arrival(backend: disk.BlockBackend) -> Arrival:
    """Decide how the blocks of `backend` arrive; see the table."""
    return Arrival("piped" if backend.takes_pages else "moved")
