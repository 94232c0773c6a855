# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes to a storage daemon's disks, tracked finer than a block, copied by extents alone: a real QEMU's bitmaps."""

from __future__ import annotations

import random
from pathlib import Path

import lab
import peers
import pytest
import storage_daemon
from qemu_disks import SIZE, Copy, make_image, opened
from qemu_disks import folder as folder
from storage_daemon import MiB, StorageDaemon, image_options

import blkmig

peers.require("qemu-storage-daemon", "qemu-img", "qemu-io")

SEEDS = 6


class CopyOfExtents(Copy):
    """A copy that reads in rounds only what a bit of 4 KiB stands for."""

    granularity = 4096

    def rest(self) -> None:
        for block in range(self.geometry.nblocks):
            while extents := self.bitmap.take_extents(block, 3):
                for offset, nbytes in extents:
                    self.backend.read_block(self._blk, offset, nbytes)
                    self._target.seek(offset)
                    self._target.write(self._blk.payload[:nbytes])
        self._target.flush()
        self.after_round()


@pytest.mark.parametrize(("kind", "options"), storage_daemon.WAYS_TO_READ)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_disk_that_is_written_is_copied_by_extents(folder: Path, kind: str, options: str, seed: int) -> None:
    image, target = make_image(folder, kind, seed=seed), folder / "target.raw"
    with StorageDaemon(folder, *image_options(image)) as daemon:
        uris = [(daemon.uri("disk0"), SIZE)]
        with storage_daemon.writing(uris, seed=seed) as [writer], opened(daemon, options) as [disk]:
            copy = CopyOfExtents(disk, target)
            copy.after_round = lambda: writer.wait_for_more(3)
            copy.run(rounds=3)
        daemon.quit()
    storage_daemon.compare(image, target)


@pytest.mark.parametrize(("kind", "options"), storage_daemon.WAYS_TO_READ)
def test_marks_are_the_pieces_that_were_written(folder: Path, kind: str, options: str) -> None:
    """Also in a qcow2, whose clusters are larger: a bitmap of QEMU's knows nothing of them."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    with StorageDaemon(folder, *image_options(make_image(folder, kind))) as daemon:
        client = storage_daemon.QemuIo(daemon.uri("disk0"))
        with opened(daemon, options) as [disk]:
            bitmap = disk.create_dirty_bitmap(4096)
            for _ in range(4):
                pieces = set()
                for _ in range(rng.randrange(1, 30)):
                    offset, nbytes = rng.randrange(4 * MiB // 512) * 512, rng.choice((512, 4096, 20_480))
                    assert client.run(f"write -P {rng.randrange(1, 255)} {offset} {nbytes}")
                    pieces |= set(range(offset // 4096, (offset + nbytes - 1) // 4096 + 1))
                disk.sync_dirty()
                taken = [extent for block in range(5) for extent in bitmap.take_extents(block)]
                found = {piece for at, n in taken for piece in range(at // 4096, (at + n) // 4096)}
                assert found == pieces, f"seed {seed}"
                bitmap.take_block(5)
                assert bitmap.count_bytes() == 0
        client.close()
        daemon.quit()


@pytest.mark.parametrize("first", [4096, 1 << 16, MiB])
def test_a_tracker_that_is_finer_than_what_qemu_records(folder: Path, first: int) -> None:
    """QEMU records as the first tracker needs it, and a later one gets whole chunks of that."""
    with StorageDaemon(folder, *image_options(make_image(folder, "raw"))) as daemon:
        client = storage_daemon.QemuIo(daemon.uri("disk0"))
        with opened(daemon) as [disk]:
            coarse = disk.create_dirty_bitmap(first)
            fine = disk.create_dirty_bitmap(4096)
            assert client.run(f"write -P 1 {MiB + 5 * 4096} 512")
            disk.sync_dirty()
            assert coarse.count_blocks() == fine.count_blocks() == 1
            recorded = min(first, 1 << 16)
            start = (MiB + 5 * 4096) // recorded * recorded
            assert fine.take_extents(1) == [(start, recorded)]
            disk.release_dirty_bitmap(coarse)
            assert client.run(f"write -P 1 {3 * MiB} 512")
            disk.sync_dirty()
            assert fine.take_extents(3) == [(3 * MiB, recorded)]
            disk.release_dirty_bitmap(fine)
            again = disk.create_dirty_bitmap(4096)
            assert client.run(f"write -P 1 {3 * MiB} 512")
            disk.sync_dirty()
            assert again.take_extents(3) == [(3 * MiB, 4096)]
        client.close()
        daemon.quit()


@pytest.mark.parametrize(("kind", "options"), storage_daemon.WAYS_TO_READ)
def test_a_migration_sends_the_pieces_that_were_written(folder: Path, kind: str, options: str) -> None:
    image, target = make_image(folder, kind), folder / "target.raw"
    rng, pieces, before = random.Random(kind), 60, 0
    with StorageDaemon(folder, *image_options(image)) as daemon:
        client = storage_daemon.QemuIo(daemon.uri("disk0"))
        with opened(daemon, options) as [disk]:

            def drive(outgoing: blkmig.OutgoingMigration) -> None:
                nonlocal before
                while not outgoing.stats.rounds[1:]:
                    outgoing.iterate()
                before = outgoing.stats.pack_bytes  # of blocks with holes
                for number in rng.sample(range(4 * 256), pieces):  # before the last block, which overlaps its neighbour
                    assert client.run(f"write -P 7 {number * 4096} 512")
                outgoing.complete()

            sent, _ = lab.migrate(folder, "unix", [disk], {"disk0": target}, drive=drive, writers_after="refuse")
        client.close()
        daemon.quit()
    storage_daemon.compare(image, target)
    assert sent.format == "blkmig"
    assert sent.pack_bytes - before == pieces * 4096
    assert sent.packs >= 1
