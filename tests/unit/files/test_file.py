# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw files: opening, creating, resizing, sparseness, errors of the disk, O_DIRECT."""

import errno
import os
import resource

import descriptors
import pytest
from raw_files import blk as blk
from raw_files import filled

from blkmig import _core, errors, files

MiB = 1 << 20


def allocated(path) -> int:
    """Return the bytes that a file takes on its disk."""
    return path.stat().st_blocks * 512


class TestOpen:
    def test_name_and_size(self, tmp_path):
        path = tmp_path / "vda.raw"
        path.write_bytes(bytes(1234))
        with files.FileBackend(path) as backend:
            assert (backend.name, backend.size, backend.is_read_only) == ("vda", 1234, False)
            assert not backend.reads_in_parallel
            assert not backend.is_growable
        with files.FileBackend(str(path), name="drive0", read_only=True) as backend:
            assert (backend.name, backend.is_read_only) == ("drive0", True)

    @pytest.mark.parametrize(
        ("name", "why"),
        [("missing.raw", "No such file"), ("folder", "it is a folder"), ("fifo", "neither a regular file")],
    )
    def test_what_is_no_disk(self, tmp_path, name, why):
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(errors.DeviceError, match=why) as caught:
            files.FileBackend(tmp_path / name, name="vda")
        assert str(tmp_path / name) in str(caught.value)
        assert caught.value.device == "vda"
        assert isinstance(caught.value.__cause__, OSError)

    def test_a_file_that_may_not_be_written(self, tmp_path):
        path = tmp_path / "vda.raw"
        path.write_bytes(bytes(512))
        path.chmod(0o400)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may do anything
        try:
            with pytest.raises(errors.DeviceError, match="Permission denied") as caught:
                files.FileBackend(path)
            assert caught.value.errno == errno.EACCES
        finally:
            os.seteuid(user)

    def test_a_disk_that_nobody_writes_is_opened_for_reading_and_yet_migrated(self, tmp_path, blk):
        path = tmp_path / "vda.raw"
        path.write_bytes(b"contents".ljust(4096, b"\0"))
        with files.FileBackend(path, writable=False) as backend, files.FileBackend(path, writable=False) as other:
            assert not backend.is_read_only
            assert backend.pread(0, 8) == other.pread(0, 8) == b"contents"
            for write in (
                lambda: backend.pwrite(b"a", 0),
                lambda: backend.pwrite_zeroes(0, 1),
                lambda: backend.write_zeroes(0, 1),
                lambda: backend.write_block(filled(blk, b"a"), 0, 1),
            ):
                with pytest.raises(errors.DeviceError, match="opened for reading only"):
                    write()
            backend.mark_dirty(0, 1)  # somebody else may write it, and say so

    def test_opening_does_not_depend_on_the_size(self, tmp_path, blk):
        path = tmp_path / "huge.raw"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with files.FileBackend.create(path, 1 << 43) as backend:
            assert backend.next_data(0) is None
            backend.pwrite(b"x", (1 << 42) + 7)
            start, end = backend.next_data(0)
            assert start <= (1 << 42) + 7 < end <= start + MiB
            assert not backend.read_block(blk, 1 << 42, MiB)
            backend.write_zeroes(0, 1 << 43)
            assert backend.next_data(0) is None
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB

    def test_no_descriptor_is_left_open_or_given_to_children(self, tmp_path):
        path = tmp_path / "vda.raw"
        path.write_bytes(b"QFI\xfb".ljust(512))
        with descriptors.given_back() as before:
            for options in ({}, {"format": "raw", "base": tmp_path / "missing"}, {"base": path, "format": "raw"}):
                with pytest.raises(errors.DeviceError):
                    files.FileBackend(path, **options)
            with files.FileBackend(path, format="raw", direct=True):
                opened = descriptors.open_descriptors() - before
                assert len(opened) == 3  # the file, the one for O_DIRECT, and that of the mapping
                assert not any(os.get_inheritable(fd) for fd in opened)


    def test_a_forgotten_disk_gives_its_locks_back(self, tmp_path):
        path = tmp_path / "vda.raw"
        path.write_bytes(bytes(512))
        backend = files.FileBackend(path)
        with pytest.raises(errors.DeviceBusy, match="open in this program already"):
            files.FileBackend(path)
        del backend
        files.FileBackend(path).close()

    def test_a_file_that_cannot_be_mapped_is_read_all_the_same(self, tmp_path, monkeypatch, blk):
        path = tmp_path / "vda.raw"
        path.write_bytes(b"x" * 2 * MiB)

        def no_room(fd, size):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

        monkeypatch.setattr(_core, "Mapping", no_room)
        with files.FileBackend(path) as backend:
            assert not backend.read_block(blk, MiB, MiB)
            assert blk.payload == b"x" * MiB


class TestCreate:
    def test_a_new_file_is_a_hole_and_durable(self, tmp_path):
        path = tmp_path / "new.raw"
        with files.FileBackend.create(path, 5 * MiB + 7) as backend:
            assert backend.is_growable
            assert (backend.name, backend.size) == ("new", 5 * MiB + 7)
            backend.flush()
        assert path.stat().st_size == 5 * MiB + 7
        assert allocated(path) == 0

    def test_an_existing_file_is_not_touched(self, tmp_path):
        path = tmp_path / "old.raw"
        path.write_bytes(b"precious")
        with pytest.raises(errors.DeviceError, match="File exists") as caught:
            files.FileBackend.create(path, MiB)
        assert caught.value.errno == errno.EEXIST
        assert path.read_bytes() == b"precious"

    def test_a_creation_that_fails_leaves_nothing(self, tmp_path):
        with pytest.raises(errors.ParameterError):
            files.FileBackend.create(tmp_path / "new.raw", -1)
        with pytest.raises(errors.DeviceError):
            files.FileBackend(tmp_path / "new.raw", create_size=512, base=tmp_path / "missing")
        assert list(tmp_path.iterdir()) == []

    def test_resize(self, tmp_path, blk):
        path = tmp_path / "new.raw"
        with files.FileBackend.create(path) as backend:
            assert backend.size == 0
            assert backend.next_data(0) is None
            backend.resize(3 * MiB)
            backend.write_block(filled(blk, b"x" * MiB), MiB, MiB)
            assert not backend.read_block(blk, MiB, MiB)
            assert backend.read_block(blk, 2 * MiB, MiB)
            backend.resize(MiB + 1000)
            assert backend.pread(MiB, 1000) == b"x" * 1000
            with pytest.raises(errors.DeviceError, match="outside the disk of 1049576 bytes"):
                backend.pwrite(b"abc", MiB + 998)
            bitmap = backend.create_dirty_bitmap(MiB)
            with pytest.raises(errors.DeviceError, match="its size is fixed"):
                backend.resize(MiB)
            backend.release_dirty_bitmap(bitmap)
            backend.flush()
        assert path.read_bytes() == bytes(MiB) + b"x" * 1000

    def test_an_empty_file_is_as_good_as_a_new_one(self, tmp_path):
        path = tmp_path / "empty.raw"
        path.touch()
        with files.FileBackend(path) as backend:
            assert backend.is_growable
            backend.resize(1000)
        assert path.stat().st_size == 1000
        path.write_bytes(b"")
        with files.FileBackend(path, writable=False) as backend:
            assert not backend.is_growable

    def test_only_a_new_file_can_be_resized(self, tmp_path):
        path = tmp_path / "old.raw"
        path.write_bytes(bytes(512))
        with files.FileBackend(path) as backend, pytest.raises(errors.DeviceError, match="its size is fixed"):
            backend.resize(1024)


class TestSparse:
    def test_zeros_inside_a_block_stay_holes(self, tmp_path, blk):
        path = tmp_path / "new.raw"
        with files.FileBackend.create(path, 8 * MiB) as backend:
            backend.write_block(filled(blk, bytes(65536 * 3) + b"x" * 10), MiB, MiB)
            backend.flush()
            assert allocated(path) <= 65536
            assert backend.next_data(0)[0] >= MiB + 65536 * 3

    def test_zeros_over_data_give_the_space_back(self, tmp_path, blk):
        path = tmp_path / "old.raw"
        path.write_bytes(b"x" * 4 * MiB)
        with files.FileBackend(path) as backend:
            backend.write_block(filled(blk, b"y" * 65536), MiB, MiB)
            backend.flush()
            assert allocated(path) <= 3 * MiB + 65536 * 2
            backend.write_zeroes(2 * MiB, MiB)
            backend.pwrite_zeroes(3 * MiB + 5, MiB - 5)
            backend.flush()
            assert allocated(path) <= MiB + 65536 * 3
        assert path.read_bytes() == b"x" * MiB + b"y" * 65536 + bytes(2 * MiB - 65536) + b"x" * 5 + bytes(MiB - 5)
        assert path.stat().st_size == 4 * MiB

    def test_zeros_over_a_hole_ask_for_nothing(self, tmp_path, monkeypatch):
        with files.FileBackend.create(tmp_path / "new.raw", 1 << 40) as backend:
            backend.pwrite(b"x", 0)
            monkeypatch.setattr(_core, "punch_hole", None)
            backend.write_zeroes(MiB, (1 << 40) - MiB)

    def test_where_the_file_system_has_no_holes_zeros_are_written(self, tmp_path, monkeypatch):
        path = tmp_path / "old.raw"
        path.write_bytes(b"x" * 3 * MiB)

        def unsupported(fd, offset, nbytes):
            raise OSError(errno.EOPNOTSUPP, "not here")

        with files.FileBackend(path) as backend:
            monkeypatch.setattr(_core, "punch_hole", unsupported)
            backend.write_zeroes(1, MiB)
            monkeypatch.setattr(_core, "zero_range", unsupported)
            backend.write_zeroes(MiB + 2, 2 * MiB - 3)
        assert path.read_bytes() == b"x" + bytes(MiB) + b"x" + bytes(2 * MiB - 3) + b"x"

    def test_an_error_of_the_disk_while_punching_is_no_reason_to_write(self, tmp_path, monkeypatch):
        (tmp_path / "old.raw").write_bytes(b"x" * MiB)

        def broken(fd, offset, nbytes):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(_core, "punch_hole", broken)
        with (
            files.FileBackend(tmp_path / "old.raw") as backend,
            pytest.raises(errors.DeviceError, match="cannot write zeros at offset 512, 1024 bytes: Input/output error"),
        ):
            backend.write_zeroes(512, 1024)
