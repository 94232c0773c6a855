# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors of raw files, O_DIRECT and early writeback."""

import errno
import os
import resource
import signal
import subprocess

import disks
import peers
import pytest
from raw_files import blk as blk
from raw_files import filled

from blkmig import _core, disk, errors, files
from blkmig.files import writeback

MiB = 1 << 20


class TestErrors:
    def test_a_file_that_is_cut_while_it_is_read(self, tmp_path, blk):
        path = tmp_path / "vda.raw"
        path.write_bytes(b"x" * 3 * MiB)
        with files.FileBackend(path) as backend:
            backend.sync_dirty()
            os.truncate(path, 2 * MiB + 5)
            with pytest.raises(errors.DeviceError, match="was cut from 3145728 to 2097157 bytes") as caught:
                backend.read_block(blk, 2 * MiB, MiB)
            assert (caught.value.offset, caught.value.errno) == (2 * MiB, errno.EIO)
            assert backend.pread(2 * MiB, 5) == b"x" * 5
            with pytest.raises(errors.DeviceError, match="cannot read at offset 2097152, 6 bytes: the file was cut"):
                backend.pread(2 * MiB, 6)
            with pytest.raises(errors.DeviceError, match="was cut"):
                backend.sync_dirty()

    def test_a_base_that_is_cut(self, tmp_path, blk):
        disks.write_sparse(tmp_path / "top.raw", bytes(2 * MiB))
        (tmp_path / "base.raw").write_bytes(b"x" * 2 * MiB)
        with files.FileBackend(tmp_path / "top.raw", base=tmp_path / "base.raw") as backend:
            os.truncate(tmp_path / "base.raw", MiB)
            with pytest.raises(errors.DeviceError, match="was cut"):
                backend.read_block(blk, 0, MiB)
            with pytest.raises(errors.DeviceError, match="was cut"):
                backend.sync_dirty()

    @pytest.mark.parametrize("how", ["pwrite", "write_block", "pwrite_zeroes"])
    def test_no_space(self, tmp_path, blk, how, monkeypatch):
        """A limit on the size of files stands in for a full disk: the write fails in the middle."""
        path = tmp_path / "vda.raw"
        with files.FileBackend.create(path, 4 * MiB) as backend:
            bitmap = backend.create_dirty_bitmap(MiB)
            backend.pwrite(b"x", 4 * MiB - 1)
            if how == "pwrite_zeroes":
                monkeypatch.setattr(_core, "punch_hole", full)
            old = resource.getrlimit(resource.RLIMIT_FSIZE)
            handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MiB + 5, old[1]))
            try:
                with pytest.raises(errors.DeviceError) as caught:
                    {
                        "pwrite": lambda: backend.pwrite(b"y" * 2 * MiB, MiB),
                        "write_block": lambda: backend.write_block(filled(blk, b"y" * MiB), 2 * MiB, MiB),
                        "pwrite_zeroes": lambda: backend.pwrite_zeroes(3 * MiB, MiB),
                    }[how]()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, old)
                signal.signal(signal.SIGXFSZ, handler)
            assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
            assert ("ulimit -f" in str(caught.value)) == (caught.value.errno == errno.EFBIG)
            if how == "pwrite":
                assert backend.pread(2 * MiB, 6) == b"yyyyy\0"  # a part of it was written, and all of it is marked
                assert bitmap.count_blocks() == 3
            backend.flush()

    def test_a_full_file_system(self, tmp_path, blk):
        peers.require("mount", "umount")
        if os.geteuid() != 0:
            pytest.skip("only root may mount a small file system")
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], check=False)
        if mounted.returncode:
            peers.lacking("nothing can be mounted here")
        try:
            with files.FileBackend.create(tmp_path / "vda.raw", 8 * MiB) as backend:
                backend.write_block(filled(blk, b"x" * MiB), 0, MiB)
                with pytest.raises(errors.DeviceError, match="No space left on device") as caught:
                    backend.pwrite(b"y" * 2 * MiB, 4 * MiB)
                assert (caught.value.errno, caught.value.offset) == (errno.ENOSPC, 4 * MiB)
                with pytest.raises(errors.DeviceError, match="cannot write at offset 6291456, 1048576 bytes: No space"):
                    backend.write_block(filled(blk, b"z" * MiB), 6 * MiB, MiB)
                backend.write_zeroes(4 * MiB, 2 * MiB)  # gives space back
                backend.write_block(filled(blk, b"z" * 65536), 6 * MiB, MiB)
                backend.flush()
                assert backend.pread(6 * MiB, 65537) == b"z" * 65536 + b"\0"
        finally:
            subprocess.run(["umount", tmp_path], check=True)

    def test_writes_outside_the_exact_size(self, tmp_path, blk):
        path = tmp_path / "vda.raw"
        with files.FileBackend.create(path, 1000) as backend:
            for write in (
                lambda: backend.write_block(filled(blk, b"x" * 1024), 0, 1024),
                lambda: backend.write_zeroes(0, 1001),
                lambda: backend.pwrite(b"xy", 999),
            ):
                with pytest.raises(errors.DeviceError, match="outside the disk of 1000 bytes"):
                    write()
            backend.write_block(filled(blk, b"x" * 1024), 0, 1000)
        assert path.read_bytes() == b"x" * 1000

    def test_calls_on_a_closed_disk(self, tmp_path, blk):
        backend = files.FileBackend.create(tmp_path / "vda.raw", 2 * MiB)
        backend.close()
        backend.close()
        for call in (
            lambda: backend.read_block(blk, 0, MiB),
            lambda: backend.write_block(blk, 0, MiB),
            lambda: backend.write_zeroes(0, MiB),
            lambda: backend.pread(0, 1),
            lambda: backend.pwrite(b"a", 0),
            lambda: backend.next_data(0),
            lambda: backend.flush(),
            lambda: backend.sync_dirty(),
            lambda: backend.resize(0),
        ):
            with pytest.raises(errors.DeviceError, match="device without a medium \\(closed\\)"):
                call()


class TestDirect:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "vda.raw"
        path.write_bytes(os.urandom(3 * MiB + 1000))
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
        except OSError:
            peers.lacking("the file system of temporary files has no O_DIRECT")
        return path

    def test_aligned_and_unaligned_blocks(self, path, blk):
        contents = bytearray(path.read_bytes())
        with files.FileBackend(path, direct=True) as backend:
            assert backend.reads_in_parallel
            shape = disk.BlockGeometry(backend.size)
            for block in range(shape.nblocks):
                offset, nbytes = shape.block_range(block)
                backend.read_block(blk, offset, nbytes)
                inside = shape.clip(offset, nbytes)
                assert blk.payload[:inside] == contents[offset : offset + inside]
                assert not any(blk.payload[inside:])
                contents[offset : offset + inside] = os.urandom(inside)
                backend.write_block(filled(blk, contents[offset : offset + inside]), offset, inside)
        assert path.read_bytes() == contents

    def test_a_file_system_without_it(self, path, monkeypatch):
        open_file = os.open

        def refuse(path, flags, *args):
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return open_file(path, flags, *args)

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(errors.DeviceError, match="cannot do direct I/O; open it without"):
            files.FileBackend(path, direct=True)

    def test_a_file_that_ends_within_an_aligned_block(self, tmp_path, path, blk):
        """Its last sector is whole for the geometry, but the file is not: the read meets the end in the middle."""
        path = tmp_path / "short.raw"
        path.write_bytes(b"x" * 12188)
        with files.FileBackend(path, direct=True) as backend:
            assert not backend.read_block(blk, *disk.BlockGeometry(12188).block_range(0))
            assert blk.payload == b"x" * 12188 + bytes(MiB - 12188)

    def test_writes_of_either_way_are_seen_by_the_other(self, path, blk):
        with files.FileBackend(path, direct=True) as backend:
            for fill in (b"1", b"2", b"3"):
                backend.pwrite(fill, 5)
                assert blk.payload[5:6] != fill
                backend.read_block(blk, 0, MiB)
                assert blk.payload[5:6] == fill
                backend.write_block(filled(blk, fill * MiB), 0, MiB)
                assert backend.pread(MiB - 1, 1) == fill


def test_writeback_starts_behind_the_writes(tmp_path, blk, monkeypatch):
    started = []
    start_writeback = _core.start_writeback
    monkeypatch.setattr(_core, "start_writeback", lambda fd: started.append(start_writeback(fd)))
    with files.FileBackend.create(tmp_path / "vda.raw", 40 * MiB) as backend:
        for block in range(40):
            backend.write_block(filled(blk, b"x" * MiB), block * MiB, MiB)
    assert started == [None, None]


@pytest.mark.parametrize("nbytes", [4096, 65536, MiB])
def test_behind_a_flush_little_waits_for_the_next_one(tmp_path, blk, monkeypatch, nbytes):
    """At most an eighth of what was written since, or a start's worth, however much that is."""
    waits = 0

    def start(fd):
        nonlocal waits
        waits = 0

    monkeypatch.setattr(_core, "start_writeback", start)
    with files.FileBackend.create(tmp_path / "vda.raw", MiB) as backend:
        backend.flush()
        for written in range(1, 200):
            waits += nbytes
            backend.write_extents(filled(blk, b"x" * MiB), [(0, nbytes)])
            assert waits < max(nbytes, written * nbytes / writeback.SHARE)
            assert waits < writeback.WRITEBACK_NBYTES


def test_writeback_that_cannot_be_started_is_for_the_flush_to_tell(tmp_path, blk, monkeypatch):
    failed = []

    def fail(fd):
        failed.append(fd)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(_core, "start_writeback", fail)
    with files.FileBackend.create(tmp_path / "vda.raw", 20 * MiB) as backend:
        for block in range(20):
            backend.write_block(filled(blk, b"x" * MiB), block * MiB, MiB)
        backend.flush()
    assert len(failed) == 1
    assert (tmp_path / "vda.raw").read_bytes() == b"x" * 20 * MiB


def full(fd, offset, nbytes):
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, "No space left on device")
