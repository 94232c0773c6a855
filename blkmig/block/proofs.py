# SPDX-License-Identifier: GPL-2.0-or-later
"""The threads that read the source's disks again, behind the bulk phase, and what they have ready for the target.

What their hashes are worth is in `proof`. They are cancelled between two blocks, and a read that hangs is ended by the
disk's own cancel, as any read of a migration is.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import threading
from collections.abc import Iterable, Iterator, Sequence

from .. import errors, threads
from ..disk import storage
from . import device, prooftable, proofwords
from .proof import DiskProof, Shared

WORKERS = 2
"""Threads: while one waits for the storage, the other one hashes."""

BLOCKS_AT_ONCE = 8
"""A thread takes at least so many neighbouring blocks at a time: storage is quicker for whoever reads in order."""

_SHARE = 64
"""Of more neighbours than that, as of a large hole, a thread takes this part at a time."""

Work = tuple[int, int, int]
"""A disk's number, a block, and how many blocks from there on."""


class Proofs:
    """The proofs of all disks of one migration, and the threads that read again."""

    def __init__(self, bmds_list: Sequence[device.BlkMigDevState]) -> None:
        """Begin with disks of which nothing was sent; each has a second reader. `close` ends it."""
        # Under the lock, which `_changed` has, too.
        counts = [len(bmds.dirty_bitmap.bits) for bmds in bmds_list]
        lock = threading.Lock()
        self._shared = Shared(lock, prooftable.HashTable(sum(counts)))
        self._changed = threading.Condition(lock)
        self._due: collections.deque[Work] = collections.deque()
        self._busy = 0
        self._stops = False
        self._error: BaseException | None = None
        self.notes: list[str] = []
        """What the user should know of the second reads."""

        # Set here, then read-only.
        self._bmds_list = bmds_list
        self._disks: list[DiskProof] = []
        for index, bmds in enumerate(bmds_list):
            have_read = functools.partial(self._have_read, index)
            self._disks.append(DiskProof(self._shared, index, bmds.dirty_bitmap, sum(counts[:index]), have_read))
            bmds.proof = self._disks[-1]
        # Migration thread only.
        self._threads: list[threading.Thread] = []
        self.records = self.blocks = 0
        """Records PROOF that were handed out, and how many blocks they prove whole."""

        self._log: list[proofwords.Proof] | None = None  # handed out since the last barrier, once there is one
        self._awaited: list[proofwords.Proof] = []  # those before it, which it is to acknowledge
        self._awaited_records = self._acknowledged_records = 0

    # -- the migration thread ----------------------------------------------------------------------------------------

    def _have_read(self, index: int, block: int, count: int) -> None:
        """Have blocks read again, soon."""
        with self._changed:
            if self._due and self._due[-1][0] == index and sum(self._due[-1][1:]) == block:
                _, first, before = self._due.pop()
                block, count = first, before + count
            self._due.append((index, block, count))
            self._changed.notify()
        if len(self._threads) < WORKERS:
            thread = threads.Thread(target=self._run, name="blkmig-prove", daemon=True)
            self._threads.append(thread)
            thread.start()

    def take_records(self) -> list[bytes]:
        """Return the bodies of the records PROOF that are ready. Raises what a thread has met."""
        with self._changed:
            if self._error is not None:
                raise self._error
            found, self._shared.ready = self._shared.ready, collections.deque()
        joined = list(_joined(found))
        if self._log is not None:
            self._log += joined
        self.records += len(joined)
        self.blocks += sum(proof.count for proof in joined)
        return [proof.encode() for proof in joined]

    # What was handed out and is not acknowledged is said again when the link is lost. It is as good as it was, for a
    # proof is of this disk, and ends when its block is put again, which the loss has marked where it was put in vain.

    def keep_log(self) -> None:
        """Keep what is handed out, from now on, until a barrier behind it is acknowledged."""
        self._log = []

    def barrier(self) -> None:
        """Take note that a barrier was sent, and the one before it was acknowledged."""
        assert self._log is not None
        self._awaited, self._log, self._awaited_records = self._log, [], self.records

    def acknowledged(self) -> None:
        """Forget what the last barrier is about."""
        self._awaited, self._acknowledged_records = [], self._awaited_records

    def take_back(self) -> None:
        """Have everything be told again that is not acknowledged, because the link was lost."""
        assert self._log is not None
        lost, self._awaited, self._log = self._awaited + self._log, [], []
        self.records = self._acknowledged_records
        self.blocks -= sum(proof.count for proof in lost)
        with self._changed:
            self._shared.ready.extendleft(reversed(lost))

    def is_behind(self) -> bool:
        """Return whether blocks that were sent are still to be read again, or to be told of."""
        with self._changed:
            return bool(self._due or self._busy or self._shared.ready or self._error)

    def wait(self, seconds: float) -> None:
        """Return when there is something to tell, or nothing is left to be read, or `seconds` are over."""
        with self._changed:
            self._changed.wait_for(lambda: self._shared.ready or self._error or not (self._due or self._busy), seconds)

    def last_records(self) -> Iterator[bytes]:
        """Yield the bodies of the records PROOF that go after the pause."""
        yield from self.take_records()  # those that were lost with a link behind COMMIT
        for disk in self._disks:
            for proof in disk.pieces():
                self.records += 1
                yield proof.encode()

    def proven(self) -> bytes:
        """Return the body of the record PROVEN, after all others."""
        return proofwords.encode_proven(self.records)

    def close(self) -> None:
        """End the threads, and let the table go. Waits for reads that are under way. Twice does no harm."""
        with self._changed:
            self._stops = True
            self._changed.notify_all()
        for thread in self._threads:
            with contextlib.suppress(RuntimeError):  # it could not be started
                thread.join()
        self._threads.clear()
        self._shared.table.close()

    # -- the threads -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        readers: dict[int, storage.StorageReader] = {}
        try:
            with contextlib.ExitStack() as stack:
                while (work := self._next()) is not None:
                    index = work[0]
                    if index not in readers:
                        readers[index] = _open(self._bmds_list[index])
                        stack.callback(readers[index].close)
                    self._read(readers[index], *work)
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _next(self) -> Work | None:
        """Return what to read, once there is something; None: it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stops or self._error or self._due)
            if self._stops or self._error is not None:
                return None
            index, block, count = self._due.popleft()
            mine = min(count, max(BLOCKS_AT_ONCE, count // _SHARE))
            if mine < count:
                self._due.appendleft((index, block + mine, count - mine))
                self._changed.notify()
            self._busy += 1
            return index, block, mine

    def _read(self, reader: storage.StorageReader, index: int, block: int, count: int) -> None:
        done = 0
        while done < count and not self._stops:
            done += self._disks[index].read_again(reader, block + done, count - done)
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()
            name = self._bmds_list[index].label
            note = f"disk {name!r}: the second read was not from storage: {reader.why_not_storage}"
            if reader.why_not_storage and note not in self.notes:
                self.notes.append(note)


def _open(bmds: device.BlkMigDevState) -> storage.StorageReader:
    reader = bmds.backend.open_reader(is_target=False)
    if reader is None:
        raise errors.DeviceError("cannot be proven", device=bmds.label, cause="it cannot be read twice at a time")
    return reader


def _joined(proofs: Iterable[proofwords.Proof]) -> Iterator[proofwords.Proof]:
    """Yield the same with neighbours as one."""
    last: proofwords.Proof | None = None
    for proof in proofs:
        is_next = last is not None and (last.disk, last.form, last.block + last.count) == (
            proof.disk,
            proof.form,
            proof.block,
        )
        if last is not None and is_next and last.count < proofwords.MAX_BLOCKS - 1:
            last = proofwords.Proof(
                last.disk, last.form, last.block, last.count + proof.count, last.hashes + proof.hashes
            )
            continue
        if last is not None:
            yield last
        last = proof
    if last is not None:
        yield last
