# SPDX-License-Identifier: GPL-2.0-or-later
"""The target's side of the proofs: what its storage holds is read back beside the stream, and compared.

::

    loading thread    PROOF ─► backlog                     (the word) ─► PROOF of pieces, PROVEN ─► verdict
    this thread                   └─► on stable storage, read back, compare

Each block's last comparison counts. A proof that came while the disk was live says what the source held when it was
read again, and the block may have been sent again since: then it need not be equal, and a proof of its pieces comes
after the pause. So nothing is said before all have come. See `proof` for what the source promises.

A target that cannot be read beside its writes is compared when the loading is over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Sequence

from .. import _core, threads
from ..disk import geometry, storage
from . import hashing, prooftable, proofwords, target

MAX_PLACES = 1024
"""So many places of differences are kept for a disk; of the others the block is told."""


@dataclasses.dataclass(slots=True)
class _Disk:
    """One disk of the table, under the lock."""

    device: target.BlkLoadDevice
    shape: geometry.BlockGeometry
    seen: _core.Bitmap
    """Blocks of which a proof was compared."""

    equal: _core.Bitmap
    places: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """Where blocks differ, as (offset, nbytes)."""

    settled: int = -1
    """The number of the last record by which all that came was brought to stable storage since."""

    why_not_storage: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """The first place in which a disk is not what the source has proven."""

    disk: int
    name: str
    offset: int
    nbytes: int
    is_seen: bool
    """Whether it was compared, or no proof of it has come."""


class Proving:
    """Compares targets with what their source has proven. `close` it, before the targets."""

    def __init__(self, devices: Sequence[tuple[target.BlkLoadDevice, int]]) -> None:
        """Begin with the disks of the table that have bytes, in its order, each with its size."""
        # Under the lock.
        self._changed = threading.Condition()
        self._backlog = prooftable.Backlog()
        self._taken = self._done = self._forgotten = 0
        self._stops = False
        self._error: BaseException | None = None
        self._disks = []
        for device, size in devices:
            shape = geometry.BlockGeometry(size)
            with geometry.keeping_account(size):
                bits = _core.Bitmap(shape.nblocks), _core.Bitmap(shape.nblocks)
            self._disks.append(_Disk(device, shape, *bits))
        # Set here, then read-only.
        self._shapes = [disk.shape for disk in self._disks]
        # The loading thread's.
        self._thread: threading.Thread | None = None
        self._is_loading = True
        self._knows_all = False
        self._is_beside = all(_is_beside(disk.device) for disk in self._disks)

    # -- the loading thread ------------------------------------------------------------------------------------------

    @property
    def has_begun(self) -> bool:
        """Return whether the source has proven anything."""
        return self._taken > 0

    @property
    def count(self) -> int:
        """Return how many records PROOF have come, but for those that the source says again after a lost link."""
        return self._taken - self._forgotten

    def rewind(self, count: int) -> None:
        """Count on from here, because the link was lost: whatever came since comes again, and counts then."""
        with self._changed:
            self._forgotten = self._taken - count

    def take_proof(self, body: bytes, position: int) -> None:
        """Take a record PROOF. Raises for a damaged one, and what the thread has met."""
        proof = proofwords.decode(body, self._shapes, position)
        with self._changed:
            if self._error is not None:
                raise self._error
            if proof.form == "pieces" and self._is_loading:
                raise proofwords.damaged("PROOF", position)
            self._backlog.append(body)
            self._taken += 1
            self._changed.notify()
        if self._thread is None and self._is_beside:
            self._begin()

    def progress(self) -> tuple[int, int]:
        """Return how many records have come, and how many of them are still to be compared before the pause.

        Raises what the thread has met: a source that has proven everything waits, and sends no record more.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            is_now = self._is_beside or not self._is_loading
            return self.count, self._taken - self._done if is_now else 0

    def loading_is_over(self) -> None:
        """Take note that nothing is stored any more: what could not be compared before is now."""
        self._is_loading = False
        self._begin()

    def take_proven(self, body: bytes, position: int) -> None:
        """Take the record PROVEN, with which the proofs end."""
        if self._is_loading or proofwords.decode_proven(body, position) != self.count:
            raise proofwords.damaged("PROVEN", position)
        self._knows_all = True

    @property
    def knows_all(self) -> bool:
        """Return whether all proofs have come."""
        return self._knows_all

    def finish(self, beat: Callable[[], None], look: Callable[[], None], seconds: float) -> Difference | None:
        """Wait until all is compared; return the first difference, None if there is none.

        Every `seconds` it calls `beat`, and `look`, which may raise.
        """
        while True:
            look()
            with self._changed:
                if self._error is not None:
                    raise self._error
                if self._done == self._taken:
                    return self._verdict()
                self._changed.wait_for(lambda: self._error or self._done == self._taken, seconds)
            beat()

    def notes(self) -> list[str]:
        """Return what the user should know of how the targets were read back."""
        with self._changed:
            return [
                f"disk {disk.device.statistics.name!r}: not read from storage: {disk.why_not_storage}"
                for disk in self._disks
                if disk.why_not_storage
            ]

    def close(self) -> None:
        """End the thread. Waits for a read that is under way. Twice does no harm."""
        with self._changed:
            self._stops = True
            self._changed.notify_all()
        if self._thread is not None:
            with contextlib.suppress(RuntimeError):  # it could not be started
                self._thread.join()
        self._backlog.close()

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threads.Thread(target=self._run, name="blkmig-read-back", daemon=True)
            self._thread.start()

    def _verdict(self) -> Difference | None:
        for index, disk in enumerate(self._disks):
            for block in (disk.equal.find_next_clear(0), disk.seen.find_next_clear(0)):
                if 0 <= block < disk.shape.nblocks:
                    start, nbytes = disk.shape.block_range(block)
                    place = disk.places.get(block, (start, disk.shape.clip(start, nbytes)))
                    name = disk.device.statistics.name
                    return Difference(index, name, *place, is_seen=disk.seen.test(block))
        return None

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        readers: dict[int, storage.StorageReader] = {}
        try:
            with contextlib.ExitStack() as stack:
                while (work := self._next()) is not None:
                    number, proof = work
                    if proof.disk not in readers:
                        readers[proof.disk] = _open(self._disks[proof.disk].device)
                        stack.callback(readers[proof.disk].close)
                    self._compare(readers[proof.disk], proof, number)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> tuple[int, proofwords.Proof] | None:
        """Return the next record and its number, once there is one; None: it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stops or self._backlog)
            if self._stops:
                return None
            return self._done, proofwords.decode(self._backlog.pop(), self._shapes, 0)

    def _compare(self, reader: storage.StorageReader, proof: proofwords.Proof, number: int) -> None:
        disk = self._disks[proof.disk]
        if disk.settled < number:
            with self._changed:
                came = self._taken - 1
            reader.settle()  # all that came before the last of these records, and only once for all of them
            disk.settled = came
        for block in range(proof.block, proof.block + proof.count):
            if self._stops:
                return
            if (missing := _missing(disk, block)) is not None:
                place: tuple[int, int] | None = missing
            else:
                place = difference(reader, disk.shape, proof, block)
            with self._changed:
                disk.seen.set(block)
                disk.places.pop(block, None)
                if place is None:
                    disk.equal.set(block)
                else:
                    disk.equal.clear(block)
                    if len(disk.places) < MAX_PLACES:
                        disk.places[block] = place
        with self._changed:
            disk.why_not_storage = reader.why_not_storage
            self._done += 1
            self._changed.notify_all()


def difference(
    reader: storage.StorageReader, shape: geometry.BlockGeometry, proof: proofwords.Proof, block: int
) -> tuple[int, int] | None:
    """Return where a block is not what `proof` says, as (offset, nbytes), None if it is."""
    offset, nbytes = shape.block_range(block)
    nbytes, size = shape.clip(offset, nbytes), hashing.HASH_SIZE
    if proof.form == "zeros" and reader.next_data(offset) >= offset + nbytes:
        return None
    data = reader.read(offset, nbytes)
    if proof.form == "zeros":
        return None if _core.buffer_is_zero(data) else (offset, nbytes)
    if proof.form == "blocks":
        at = (block - proof.block) * size
        return None if hashing.hash_of(data) == proof.hashes[at : at + size] else (offset, nbytes)
    found, piece = hashing.hashes_of(data, proof.piece), proof.piece
    for number, at in enumerate(range(0, len(found), size)):
        if found[at : at + size] != proof.hashes[at : at + size]:
            return offset + number * piece, min(piece, nbytes - number * piece)
    return None


def _missing(disk: _Disk, block: int) -> tuple[int, int] | None:
    """Return where a block is that a target which still grows does not have: it was lost with a link, and comes again.
    """
    offset, nbytes = disk.shape.block_range(block)
    nbytes = disk.shape.clip(offset, nbytes)
    return (offset, nbytes) if offset + nbytes > disk.device.backend.size else None


def _is_beside(device: target.BlkLoadDevice) -> bool:
    """Return whether a target can be read while it is written."""
    reader = device.backend.open_reader(is_target=True)
    if reader is None:
        return False
    with contextlib.closing(reader):
        return reader.is_beside_writes


def _open(device: target.BlkLoadDevice) -> storage.StorageReader:
    reader = device.backend.open_reader(is_target=True)
    return storage.BackendReader(device.backend) if reader is None else reader
