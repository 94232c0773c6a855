# SPDX-License-Identifier: GPL-2.0-or-later
"""Block devices, by way of loop devices."""

import errno
import os
import subprocess

import disks
import pytest

from blkmig import _core, disk, errors, files
from blkmig.files import blockdevice

MiB = 1 << 20
SIZE = 3 * MiB + 512


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "backing.raw"
    path.write_bytes(b"\xaa" * SIZE)
    return path


@pytest.fixture
def device(path):
    with disks.loop_device(path) as name:
        yield name


def test_size_and_kind(device):
    with files.FileBackend(device) as backend:
        assert backend.size == SIZE
        assert f"/dev/{backend.name}" == device
        assert backend.reads_in_parallel
        assert not backend.is_growable
        assert backend.next_data(0) == (0, SIZE)


@pytest.mark.parametrize("kind", ["mapped", "moved"])
@pytest.mark.parametrize("direct", [False, True])
def test_blocks_in_and_out(device, path, direct, kind):
    blk = _core.BlockBuffer(kind)
    contents = bytearray(b"\xaa" * SIZE)
    with files.FileBackend(device, direct=direct) as backend:
        shape = disk.BlockGeometry(SIZE)
        for block in (3, 0, 2, 1):
            offset, nbytes = shape.block_range(block)
            assert not backend.read_block(blk, offset, nbytes)
            assert blk.payload == contents[offset : offset + nbytes]
            contents[offset : offset + nbytes] = os.urandom(65536) + bytes(65536) + os.urandom(nbytes - 131072)
            blk.data[:] = contents[offset : offset + nbytes]
            blk.filled(nbytes)
            backend.write_block(blk, offset, nbytes)
            backend.read_block(blk, offset, nbytes)
            assert blk.payload == contents[offset : offset + nbytes]
        backend.flush()
    assert path.read_bytes() == contents


@pytest.mark.parametrize("way", ["all of them", "no hole", "none"])
def test_zeroes(device, path, way, monkeypatch):
    """A loop device punches holes; others zero by themselves, or must be written."""

    def unsupported(fd, offset, nbytes):
        raise OSError(errno.EOPNOTSUPP, "not here")

    if way != "all of them":
        monkeypatch.setattr(_core, "punch_hole", unsupported)
    if way == "none":
        monkeypatch.setattr(_core, "zero_out", unsupported)
    monkeypatch.setattr(blockdevice, "ZERO_STEP", MiB)
    contents = bytearray(b"\xaa" * SIZE)
    with files.FileBackend(device) as backend:
        for offset, nbytes in ((5, 3), (511, 2), (1000, 2 * MiB + 77), (SIZE - 10, 10), (2 * MiB + 4608, 512), (0, 0)):
            backend.write_zeroes(offset, nbytes)
            contents[offset : offset + nbytes] = bytes(nbytes)
            assert backend.pread(0, SIZE) == contents
        backend.pwrite(b"x" * 5, 3)
        contents[3:8] = b"x" * 5
        backend.write_zeroes(512, SIZE - 512)
        contents[512:] = bytes(SIZE - 512)
        backend.flush()
    assert path.read_bytes() == contents


def test_large_logical_blocks(path, tmp_path):
    path.write_bytes(os.urandom(4 * MiB))
    with disks.loop_device(path, "--sector-size", "4096") as device:
        contents = bytearray(path.read_bytes())
        with files.FileBackend(device, direct=True) as backend:
            backend.write_zeroes(512, 3 * MiB)
            contents[512 : 512 + 3 * MiB] = bytes(3 * MiB)
            backend.pwrite(b"x" * 100, 4095)
            contents[4095:4195] = b"x" * 100
            assert backend.pread(0, 4 * MiB) == contents


def test_a_device_in_use_is_not_written(device):
    with files.FileBackend(device):
        with pytest.raises(errors.DeviceBusy, match="busy") as caught:
            files.FileBackend(device, locking=True)
        assert caught.value.exit_code == 6
    holder = os.open(device, os.O_RDWR | os.O_EXCL)  # as a mount, or a device-mapper table, holds it
    try:
        with pytest.raises(errors.DeviceBusy) as caught:
            files.FileBackend(device)
        assert caught.value.errno == errno.EBUSY
        files.FileBackend(device, writable=False).close()
    finally:
        os.close(holder)


def test_a_device_is_refused_for_its_contents(path):
    path.write_bytes(b"QFI\xfb".ljust(MiB, b"\0"))
    with disks.loop_device(path) as device:
        with pytest.raises(errors.FormatError):
            files.FileBackend(device)
        files.FileBackend(device, format="raw").close()


def test_a_read_error_names_the_offset(device, path):
    """The file behind the device is cut: reads there fail as those of a broken disk do."""
    blk = _core.BlockBuffer()
    with files.FileBackend(device, direct=True) as backend:
        os.truncate(path, MiB)
        backend.read_block(blk, 0, MiB)
        with pytest.raises(errors.DeviceError, match="cannot read at offset 1048576, 1048576 bytes") as caught:
            backend.read_block(blk, MiB, MiB)
        assert (caught.value.errno, caught.value.offset) == (errno.EIO, MiB)
        with pytest.raises(errors.DeviceError, match="Input/output error"):
            backend.pread(2 * MiB, 512)


def test_a_read_only_device(path):
    with disks.loop_device(path, "--read-only") as device:
        assert subprocess.run(["blockdev", "--getro", device], capture_output=True, check=False).stdout == b"1\n"
        with pytest.raises(errors.DeviceError, match=r"cannot open .*Read-only"):
            files.FileBackend(device)
        with files.FileBackend(device, writable=False) as backend:
            assert backend.pread(0, 3) == b"\xaa" * 3
