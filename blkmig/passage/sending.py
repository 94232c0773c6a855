# SPDX-License-Identifier: GPL-2.0-or-later
"""How the blocks of one outgoing stream travel. In each table the first line that fits decides; "-" is either.

::

    checked   offered  local  sealed
    yes       yes      no     no
    no        -        -      -

    compressed  wanted  taken  local  sealed  checked
    bare        zstd    yes    -      yes     -
    bare        zstd    yes    -      -       yes
    checked     zstd    yes    -      -       -
    bare        auto    yes    no     yes     -
    bare        auto    yes    no     -       yes
    checked     auto    yes    no     -       -
    no          -       -      -      -       -

    payload   hashed  sealed  files  steady  pages  word  kept
    own       yes     -       -      -       -      -     -
    own       -       yes     -      -       -      -     -
    lent      no      no      yes    yes     yes    yes   -
    given     no      no      -      -       -      -     yes
    mapped    no      no      -      -       -      -     -

    reading   asked     latency
    inline    inline    -
    parallel  parallel  -
    parallel  auto      yes
    inline    auto      no

    runs      hashed  reading   layers
    no        yes     -         -
    no        -       parallel  -
    no        -       -         yes
    yes       no      inline    no

    told      payload   local  qemu
    yes       lent      yes    no
    no        -         -      -

    offered   the target can check payloads
    wanted    the parameter `compress`
    taken     the target can decompress payloads, and this end can compress them
    hashed    somebody looks at payloads: digests were asked for, they are checked or compressed, or the target holds
              old copies to compare with
    files     each disk that is sent is one file with a mapping
    steady    each of them is as it was in the pause until the target has it: nobody writes it here, or its writers are
              turned away when they are let go
    pages     the channel takes a file's pages
    word      a word comes back on it when the target has everything
    kept      pages may be given to the channel for good
    asked     the parameter `reading`
    latency   the reads of a disk that is sent have latency
    layers    only the top layer of each disk is sent
    local     the target is on this machine, as far as one can see
    sealed    a bit that changes on the way breaks the link, as with TLS
    qemu      the target is a QEMU

Invariants:

* **Borrowed bytes.** A file's pages that are lent to a channel show what is written to the file, until the target has
  taken them. While the disk is live that does no harm: who writes marks the block, and it goes again. What the pause
  sends must stay as it is. So pages are lent only where all of this holds: no writer of ours goes on before the
  target's word (`steady`); the word comes after the last page was consumed (`word`); and who gives up resets the link
  before the writers go on (`SendingFile.abort`). Without the second, a pipe whose reader is slow would hand on bytes
  that some program wrote long after the sender had ended well. Without the third, a target would call an image complete
  that the disk never showed. That a pipe is empty proves nothing: its reader may hold the pages in a pipe of its own.
* **Given bytes.** Pages that were given to a pipe stand in it until somebody has read them, and whoever takes them out
  may keep them. They are not a file's, and nobody writes them any more: the buffer has other ones from then on.
* **What is hashed is what is sent.** A digest is of bytes in our own memory, which nobody else writes.
* **Nobody touches a mapping but the kernel.** Where a file was cut, a system call says EFAULT and the block is read; a
  program that touched the page would be killed. Pages that are copied are made present first, so that a read error is
  told as one; pages that are lent need not be.
* **One kind for all disks of a stream**, because they share the pool of buffers.
* **A run clears each block's marks before it reads the block**, as everybody does who reads. It sends what needs no
  look: a block that is zero, a block that cannot be read and the last one take the way of single blocks.
* **Being told changes no byte**: it lets the target keep payloads as pages, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from .. import _core, disk, params


class Channel(Protocol):
    """What is asked of the channel."""

    @property
    def takes_pages(self) -> bool:
        """Return whether a file's pages may stand in it instead of copies."""

    @property
    def keeps_pages(self) -> bool:
        """Return whether pages may be given to it for good."""

    @property
    def is_answered(self) -> bool:
        """Return whether a word comes back when the peer has everything."""

    @property
    def is_local(self) -> bool:
        """Return whether the peer is on this machine, as far as one can see."""

    @property
    def is_sealed(self) -> bool:
        """Return whether a bit that changes on the way breaks the link, as with TLS."""


class Departure(NamedTuple):
    """How the blocks of one outgoing stream travel."""

    payload: Literal["own", "mapped", "lent", "given"]
    """The kind of the buffers."""

    reading: Literal["inline", "parallel"]
    """How blocks are read: just before each is sent, or many at once."""

    runs: bool
    """Blocks of a disk that is one file go many in one call, straight from the file."""

    told: bool
    """The target is told that payloads are pages."""

    checked: bool
    """Each payload has a checksum."""

    compressed: Literal["no", "bare", "checked"] = "no"
    """Payloads that shrink are compressed: ``checked``, each with a checksum of its own, for nothing else has one."""

    def runs_from(self, backend: disk.BlockBackend) -> _core.Mapping | None:
        """Return what runs of blocks of `backend` are sent from; None where each block is read by itself."""
        return backend.mapping if self.runs else None


def departure(
    disks: Sequence[disk.BlockBackend],
    f: Channel,
    parameters: params.MigrationParameters,
    *,
    shared_base: bool,
    can_check: bool = False,
    can_compress: bool = False,
    compares: bool = False,
) -> Departure:
    """Decide how the blocks of `disks`, all of those that are sent, travel through `f`; see the tables.

    `can_check`, `can_compress`: the target has offered to check and to decompress payloads. `compares`: it holds old
    copies.
    """
    checked = can_check and not f.is_local and not f.is_sealed
    is_compressed = can_compress and _is_worth_compressing(f, parameters)
    hashed = checked or is_compressed or compares or parameters.digests
    payload = "own" if hashed or f.is_sealed else _payload(disks, f, parameters)
    reading = _reading(disks, parameters)
    return Departure(
        payload=payload,
        reading=reading,
        runs=not hashed and reading == "inline" and not shared_base,
        told=payload == "lent" and f.is_local and not parameters.qemu,
        checked=checked,
        compressed="no" if not is_compressed else "bare" if checked or f.is_sealed else "checked",
    )


def _is_worth_compressing(f: Channel, parameters: params.MigrationParameters) -> bool:
    return parameters.compress == "zstd" or (parameters.compress == "auto" and not f.is_local)


def _payload(
    disks: Sequence[disk.BlockBackend], f: Channel, parameters: params.MigrationParameters
) -> Literal["mapped", "lent", "given"]:
    may_lend = all(backend.mapping is not None and _is_steady(backend, parameters) for backend in disks)
    if may_lend and f.takes_pages and f.is_answered:
        return "lent"
    return "given" if f.keeps_pages else "mapped"


def _is_steady(backend: disk.BlockBackend, parameters: params.MigrationParameters) -> bool:
    return not backend.is_written or parameters.writers_after == "refuse"


def _reading(
    disks: Sequence[disk.BlockBackend], parameters: params.MigrationParameters
) -> Literal["inline", "parallel"]:
    if parameters.reading != "auto":
        return parameters.reading
    return "parallel" if any(backend.reads_in_parallel for backend in disks) else "inline"
