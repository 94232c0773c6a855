# SPDX-License-Identifier: GPL-2.0-or-later
"""Image locks against this process and against the real QEMU tools."""

import contextlib
import errno
import fcntl
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import forks
import peers
import pytest

from blkmig import errors, files
from blkmig.files import locks

MiB = 1 << 20


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "vda.raw"
    with path.open("wb") as file:
        file.truncate(8 * MiB)
    return path


@contextlib.contextmanager
def descriptor(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """Open a file for the length of a ``with``."""
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def open_locks(path: Path) -> set[int]:
    """Return the bytes of the file that somebody has locked, as the kernel lists them."""
    inode = f":{path.stat().st_ino}"
    found: set[int] = set()
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "OFDLCK" in fields and fields[-3].endswith(inode):
            found |= set(range(int(fields[-2]), int(fields[-1]) + 1))
    return found


class TestInProcess:
    def test_who_looks_sees_what_who_locks_meets(self, image):
        """`is_taken` and `acquire`, beside locks of all kinds on one or two bytes."""
        rng = random.Random(7)
        for step in range(200):
            with descriptor(image) as fd, descriptor(image, os.O_RDONLY) as looking, descriptor(image) as ours:
                held = [(rng.choice((fcntl.F_RDLCK, fcntl.F_WRLCK)), rng.choice((100, 200)) + rng.randrange(4))
                        for _ in range(rng.randrange(3))]  # fmt: skip
                for kind, byte in held:
                    fcntl.fcntl(fd, 37, locks.FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
                is_taken, is_refused = locks.is_taken(looking), False
                try:
                    locks.acquire(ours, locks.WRITER, device="vda")
                except errors.DeviceBusy:
                    is_refused = True
                assert is_taken == is_refused, f"seed 7, step {step}: {held}"

    def test_an_empty_file_is_taken_only_by_who_makes_it(self, image):
        os.truncate(image, 0)
        with descriptor(image) as fd, descriptor(image, os.O_RDONLY) as looking:
            locks.acquire(fd, locks.WRITER, device="vda")
            assert not locks.is_taken(looking)
            assert locks.hold_being_made(fd)
            assert locks.is_taken(looking)

    def test_the_bytes_are_qemus(self, image):
        with descriptor(image) as fd:
            locks.acquire(fd, locks.WRITER, device="vda")
            assert open_locks(image) == {100, 101, 103, 201, 202, 203}
        assert open_locks(image) == set()
        with descriptor(image, os.O_RDONLY) as fd:
            locks.acquire(fd, locks.READER, device="vda")
            assert open_locks(image) == {100, 201, 203}

    @pytest.mark.parametrize(
        ("first", "second", "conflict"),
        [
            (locks.READER, locks.READER, None),
            (locks.READER, locks.WRITER, 'does not share the "write" permission'),
            (locks.WRITER, locks.READER, 'holds the "write" permission'),
            (locks.WRITER, locks.WRITER, 'holds the "write" permission'),
        ],
    )
    def test_who_may_follow_whom(self, image, first, second, conflict):
        with descriptor(image, os.O_RDONLY) as one, descriptor(image, os.O_RDONLY) as two:
            locks.acquire(one, first, device="vda")
            if conflict is None:
                locks.acquire(two, second, device="vda")
                return
            with pytest.raises(errors.DeviceBusy, match=conflict) as caught:
                locks.acquire(two, second, device="vda")
            assert caught.value.exit_code == 6
            assert caught.value.device == "vda"
            assert f"opened for {second.doing}" in str(caught.value)

    def test_the_same_disk_as_source_and_target(self, image):
        with files.FileBackend(image, writable=False) as source, pytest.raises(errors.DeviceBusy):
            files.FileBackend(image, name="target")
        assert source.size == 8 * MiB
        with files.FileBackend(image):  # the refused ones have left nothing behind
            pass

    def test_the_base_of_a_disk_is_not_written(self, image, tmp_path):
        (tmp_path / "top.raw").write_bytes(bytes(4096))
        (tmp_path / "other.raw").write_bytes(bytes(4096))
        with (
            files.FileBackend(tmp_path / "top.raw", base=image),
            files.FileBackend(tmp_path / "other.raw", base=image),
            pytest.raises(errors.DeviceBusy, match="does not share"),
        ):
            files.FileBackend(image)
        files.FileBackend(image).close()

    def test_without_locking(self, image):
        with files.FileBackend(image), files.FileBackend(image, locking=False):
            assert open_locks(image) == {100, 101, 103, 201, 202, 203}

    def test_an_unrelated_close_keeps_the_locks(self, image):
        with files.FileBackend(image):
            with image.open("r+b"):
                pass
            assert 101 in open_locks(image)

    def test_an_exclusive_lock_of_another_program(self, image):
        with descriptor(image) as other, descriptor(image) as fd:
            fcntl.fcntl(other, 37, locks.FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
            with pytest.raises(errors.DeviceBusy, match="another program locks it exclusively"):
                locks.acquire(fd, locks.READER, device="vda")

    @pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
    def test_where_there_are_no_locks_it_says_so(self, image, monkeypatch, caplog, error):
        def unsupported(fd, command, argument):
            raise OSError(error, "not here")

        monkeypatch.setattr(fcntl, "fcntl", unsupported)
        with files.FileBackend(image):
            assert "no image locks" in caplog.text

    def test_other_errors_are_errors(self, image, monkeypatch):
        def broken(fd, command, argument):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(fcntl, "fcntl", broken)
        with pytest.raises(errors.DeviceError, match="cannot be locked: Input/output error"):
            files.FileBackend(image)


def qemu_io(image: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open an image with qemu-io, read from it and be gone."""
    peers.require("qemu-io")
    command = ["qemu-io", "-f", "raw", *options, "-c", "read 0 512", image]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@contextlib.contextmanager
def running(listening: Path, *command: str | Path) -> Iterator[None]:
    """Run a server until the end of a ``with``; it is up when it greets those who connect to `listening`."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as server:
        try:
            deadline = time.monotonic() + 30
            while not greets(listening):
                assert server.poll() is None, f"{command[0]} ended"
                assert time.monotonic() < deadline, f"{command[0]} does not answer at {listening}"
                time.sleep(0.01)
            yield
        finally:
            server.kill()


def greets(path: Path) -> bool:
    """Return whether a server answers; one that has made its socket may not have opened its image yet."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        try:
            client.connect(str(path))
            greeting = client.recv(4096)
            if not greeting.startswith(b'{"QMP"'):
                return bool(greeting)
            client.sendall(b'{"execute": "qmp_capabilities"}\n')  # the machine answers this one when it is complete
            return b"return" in client.recv(4096)
        except OSError:
            return False


@pytest.fixture(params=["qemu-nbd", "qemu-storage-daemon", "qemu-system-x86_64"])
def serve(request, image, tmp_path):
    """Return a function that opens the image in a QEMU program, "rw", "ro" or "share-rw"."""
    peers.require(request.param)
    sock = tmp_path / "qemu.sock"

    def start(mode: str) -> contextlib.AbstractContextManager[object]:
        read_only = "on" if mode == "ro" else "off"
        if request.param == "qemu-nbd":
            command = ["qemu-nbd", "-f", "raw", "-t", "-k", str(sock), *(["-r"] if mode == "ro" else []), str(image)]
        elif request.param == "qemu-storage-daemon":
            writable = "off" if mode == "ro" else "on"
            command = [
                "qemu-storage-daemon",
                *("--blockdev", f"file,node-name=n,filename={image},read-only={read_only}"),
                *("--nbd-server", f"addr.type=unix,addr.path={sock}"),
                *("--export", f"nbd,id=e,node-name=n,writable={writable}"),
            ]
        else:
            share = "on" if mode == "share-rw" else "off"
            command = [
                "qemu-system-x86_64",
                *("-machine", "pc,accel=tcg", "-S", "-nodefaults", "-display", "none"),
                *("-blockdev", f"file,node-name=n,filename={image},read-only={read_only}"),
                *("-device", f"virtio-blk-pci,drive=n,share-rw={share}"),
                *("-qmp", f"unix:{sock},server=on,wait=off"),
            ]
        return running(sock, *command)

    start.program = request.param
    return start


class TestAgainstQemu:
    @pytest.mark.parametrize("mode", ["rw", "share-rw"])
    def test_a_disk_that_qemu_writes_is_refused(self, serve, image, mode):
        with serve(mode):
            for options in ({}, {"writable": False}, {"read_only": True}):
                with pytest.raises(errors.DeviceBusy, match='the "write" permission') as caught:
                    files.FileBackend(image, **options)
                assert caught.value.exit_code == 6
            files.FileBackend(image, locking=False).close()
        with files.FileBackend(image):
            pass

    def test_a_disk_that_qemu_reads_can_be_read_only(self, serve, image):
        with serve("ro"):
            files.FileBackend(image, writable=False).close()
            with pytest.raises(errors.DeviceBusy, match="another program does not share") as caught:
                files.FileBackend(image)
            permission = "write" if serve.program.startswith("qemu-system") else "resize"
            assert f'the "{permission}" permission' in str(caught.value)

    def test_qemu_does_not_start_on_a_disk_that_is_written(self, image):
        with files.FileBackend(image):
            refused = qemu_io(image)
            assert refused.returncode != 0
            assert 'Failed to get "write" lock' in refused.stderr
        assert qemu_io(image).returncode == 0

    def test_qemu_img_does_not_copy_a_disk_that_is_written(self, image, tmp_path):
        peers.require("qemu-img")
        command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", image, tmp_path / "copy.raw"]
        with files.FileBackend(image):
            refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert refused.returncode != 0
            assert 'Failed to get shared "write" lock' in refused.stderr
        subprocess.run(command, check=True, timeout=60)

    def test_qemu_may_read_a_disk_that_is_only_read(self, image):
        with files.FileBackend(image, writable=False):
            assert qemu_io(image, "-r").returncode == 0
            refused = qemu_io(image)
            assert refused.returncode != 0
            assert 'Failed to get "write" lock' in refused.stderr

    def test_a_virtual_machine_does_not_start_on_a_disk_that_is_written(self, image):
        peers.require("qemu-system-x86_64")
        command = ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-S", "-nodefaults", "-display", "none"]
        command += ["-blockdev", f"file,node-name=n,filename={image}", "-device", "virtio-blk-pci,drive=n"]
        with files.FileBackend(image):
            refused = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert refused.returncode != 0
        assert 'Failed to get "write" lock' in refused.stderr

    @pytest.mark.parametrize("direct", [False, True])
    def test_a_killed_qemu_leaves_nothing(self, serve, image, direct):
        with serve("rw"):
            assert open_locks(image)
        assert not open_locks(image)
        files.FileBackend(image, direct=direct).close()


class TestOtherProcesses:
    def test_a_forked_child_does_not_keep_the_locks(self, image):
        """B6: closing is not enough, for the child has a duplicate."""
        backend = files.FileBackend(image)
        with forks.living_child():
            backend.close()
            with files.FileBackend(image):
                pass

    def test_a_childs_close_leaves_the_parents_locks(self, image):
        """They are locks of one open file description."""
        with files.FileBackend(image) as backend:
            child = os.fork()
            if not child:
                backend.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert {101, 201} <= open_locks(image)
