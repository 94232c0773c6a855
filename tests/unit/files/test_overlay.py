# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw overlays: holes show the base, nothing else does."""

import random
import threading

import disks
import pytest

from blkmig import _core, disk, errors, files

MiB = 1 << 20
SIZE = 4 * MiB + 1000


@pytest.fixture
def base():
    return random.Random(5).randbytes(SIZE)


@pytest.fixture
def overlay(tmp_path, base):
    disks.write_sparse(tmp_path / "base.raw", base)
    disks.write_sparse(tmp_path / "top.raw", bytes(SIZE))
    with files.FileBackend(tmp_path / "top.raw", base=tmp_path / "base.raw") as backend:
        yield backend


def extents(backend: disk.BlockBackend) -> list[tuple[int, int]]:
    """Return what the top layer holds."""
    found, offset = [], 0
    while (extent := backend.next_allocated(offset, backend.size - offset)) is not None:
        found.append(extent)
        offset = extent[1]
    return found


def test_an_empty_top_shows_the_base_and_holds_nothing(overlay, base):
    assert overlay.pread(0, SIZE) == base
    assert extents(overlay) == []
    assert overlay.next_data(0) == (0, SIZE)


@pytest.mark.parametrize("offset", [0, 1, 65536, MiB - 1, MiB + 513, SIZE - 1])
def test_a_small_write_leaves_its_neighbours_to_the_base(overlay, base, offset):
    overlay.pwrite(b"!", offset)
    assert overlay.pread(0, SIZE) == base[:offset] + b"!" + base[offset + 1 :]
    cluster = offset // 65536 * 65536
    assert extents(overlay) == [(cluster, min(cluster + 65536, SIZE))]


@pytest.mark.parametrize(("offset", "nbytes"), [(0, SIZE), (5, 10), (MiB, MiB), (MiB + 7, 2 * MiB), (SIZE - 3, 3)])
@pytest.mark.parametrize("verb", ["pwrite_zeroes", "write_zeroes"])
def test_zeros_are_zeros_and_not_the_base(overlay, base, offset, nbytes, verb):
    getattr(overlay, verb)(offset, nbytes)
    assert overlay.pread(0, SIZE) == base[:offset] + bytes(nbytes) + base[offset + nbytes :]


def test_a_block_of_zeros_is_not_the_base(overlay, base):
    blk = _core.BlockBuffer()
    blk.filled(0)
    overlay.write_block(blk, MiB, MiB)
    assert overlay.read_block(blk, MiB, MiB)
    assert extents(overlay) == [(MiB, 2 * MiB)]
    assert overlay.pread(0, SIZE) == base[:MiB] + bytes(MiB) + base[2 * MiB :]


def test_zeros_where_nothing_shows_take_no_space(tmp_path):
    disks.write_sparse(tmp_path / "base.raw", b"x" * 4096)
    files.FileBackend.create(tmp_path / "top.raw", 1 << 40).close()
    with files.FileBackend(tmp_path / "top.raw", base=tmp_path / "base.raw") as backend:
        backend.write_zeroes(100, (1 << 40) - 100)
        assert extents(backend) == [(0, 65536)]
        assert backend.next_data(65536) is None


@pytest.mark.parametrize("base_size", [1, 512, MiB + 300, 3 * MiB, SIZE + MiB])
def test_a_base_of_another_size(tmp_path, base_size):
    base = random.Random(6).randbytes(base_size)
    (tmp_path / "base.raw").write_bytes(base)
    disks.write_sparse(tmp_path / "top.raw", bytes(SIZE))
    shown = base[:SIZE].ljust(SIZE, b"\0")
    blk = _core.BlockBuffer()
    with files.FileBackend(tmp_path / "top.raw", base=tmp_path / "base.raw") as backend:
        assert backend.size == SIZE
        shape = disk.BlockGeometry(SIZE)
        for block in range(shape.nblocks):
            offset, nbytes = shape.block_range(block)
            want = shown[offset : offset + nbytes].ljust(MiB, b"\0")
            assert backend.read_block(blk, offset, nbytes) == (not any(want))
            assert blk.payload == want
        backend.pwrite(b"!", 2 * MiB)
        assert backend.pread(0, SIZE) == shown[: 2 * MiB] + b"!" + shown[2 * MiB + 1 :]
        assert (tmp_path / "base.raw").read_bytes() == base


def test_the_search_for_allocated_extents_stays_in_its_window(overlay):
    overlay.pwrite(b"x" * MiB, MiB)
    overlay.pwrite(b"x", 3 * MiB)
    assert overlay.next_allocated(0, MiB) is None
    assert overlay.next_allocated(0, MiB + 5) == (MiB, MiB + 5)
    assert overlay.next_allocated(MiB + 7, 10 * MiB) == (MiB + 7, 2 * MiB)
    assert overlay.next_allocated(2 * MiB, 2 * MiB) == (3 * MiB, 3 * MiB + 65536)
    assert overlay.next_allocated(SIZE, MiB) is None


def test_a_disk_without_base_holds_all_of_it(tmp_path):
    with files.FileBackend.create(tmp_path / "top.raw", SIZE) as backend:
        assert backend.next_data(0) is None
        assert backend.next_allocated(MiB, MiB) == (MiB, 2 * MiB)
        assert backend.next_allocated(4 * MiB, MiB) == (4 * MiB, SIZE)
        assert backend.next_allocated(SIZE, MiB) is None


def test_blocks_of_one_long_extent_are_looked_up_once(overlay, monkeypatch):
    overlay.pwrite(b"x" * 3 * MiB, 0)
    blk = _core.BlockBuffer()
    asked = []
    next_data = _core.next_data
    monkeypatch.setattr(_core, "next_data", lambda *args: asked.append(args) or next_data(*args))
    for block in range(3):
        assert not overlay.read_block(blk, block * MiB, MiB)
        assert blk.payload == b"x" * MiB
    assert len(asked) == 1
    overlay.pwrite(b"y", 3 * MiB + 5)
    assert not overlay.read_block(blk, 3 * MiB, MiB)
    assert blk.payload[5] == ord("y")


def test_data_of_either_layer_is_data(tmp_path):
    base = bytearray(SIZE)
    base[2 * MiB : 2 * MiB + 4096] = b"b" * 4096
    disks.write_sparse(tmp_path / "base.raw", bytes(base))
    disks.write_sparse(tmp_path / "top.raw", bytes(SIZE))
    with files.FileBackend(tmp_path / "top.raw", base=tmp_path / "base.raw") as backend:
        assert backend.next_data(0) == (2 * MiB, 2 * MiB + 4096)
        backend.pwrite(b"t", MiB)
        assert backend.next_data(0) == (MiB, MiB + 65536)
        assert backend.next_data(MiB + 65536) == (2 * MiB, 2 * MiB + 4096)
        assert backend.next_data(2 * MiB + 4096) is None


def test_writers_of_one_cluster_do_not_undo_each_other(overlay, base):
    """Each thread writes sectors of its own, all of them in the same clusters, which are holes at first."""
    nthreads, nsectors = 4, MiB // 512
    barrier = threading.Barrier(nthreads)

    def write(number: int) -> None:
        order = list(range(number, nsectors, nthreads))
        random.Random(number).shuffle(order)
        barrier.wait(timeout=30)
        for sector in order:
            overlay.pwrite(bytes([number]) * 512, MiB + sector * 512)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(nthreads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    want = b"".join(bytes([sector % nthreads]) * 512 for sector in range(nsectors))
    assert overlay.pread(0, SIZE) == base[:MiB] + want + base[2 * MiB :]


def test_errors_of_the_base_name_the_disk(tmp_path):
    (tmp_path / "top.raw").write_bytes(bytes(512))
    with pytest.raises(errors.DeviceError, match=r"disk 'vda': cannot open .*missing.raw'") as caught:
        files.FileBackend(tmp_path / "top.raw", name="vda", base=tmp_path / "missing.raw")
    assert caught.value.errno == 2


def test_an_overlay_does_not_grow(tmp_path):
    (tmp_path / "base.raw").write_bytes(b"x" * 512)
    with files.FileBackend(tmp_path / "top.raw", create_size=1024, base=tmp_path / "base.raw") as backend:
        assert not backend.is_growable
        with pytest.raises(errors.DeviceError, match="its size is fixed"):
            backend.resize(2048)
    assert (tmp_path / "top.raw").stat().st_size == 1024
