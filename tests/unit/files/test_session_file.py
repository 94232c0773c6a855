# SPDX-License-Identifier: GPL-2.0-or-later
"""The session file: what was stored last is there, whatever became of the store after it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from blkmig import errors
from blkmig.files import folder, sessionfile

OLD, NEW = {"state": "open", "end": 0}, {"state": "committing", "end": 3}


@contextlib.contextmanager
def opened(where: Path, *, create: bool = True) -> Iterator[sessionfile.SessionFile]:
    with contextlib.closing(folder.Folder(where)) as place:
        found = sessionfile.SessionFile(place, "vda.raw", device="vda", create=create)
        try:
            yield found
        finally:
            found.close()


def path_of(where: Path) -> Path:
    return where / ".vda.raw.blkmig"


def says(where: Path) -> object:
    with opened(where, create=False) as found:
        return found.says


def test_what_was_stored_last_is_what_it_says(tmp_path: Path) -> None:
    with opened(tmp_path) as made:
        assert made.says == {}
        made.begin(OLD)
        size = path_of(tmp_path).stat().st_size
        for number in range(5):
            made.store({"state": "open", "end": number})
    assert says(tmp_path) == {"state": "open", "end": 4}
    about = path_of(tmp_path).stat()
    assert (about.st_size, about.st_mode & 0o777) == (size, 0o600)


def test_later_stores_overwrite_what_was_written(tmp_path: Path) -> None:
    """One that is the first write at its place is flushed with the file system's journal, and what others put there."""
    with opened(tmp_path) as made:
        made.begin({"state": "open"})
        with Path(made.path).open("rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == nbytes > 0


def test_a_store_that_is_cut_short_changes_nothing(tmp_path: Path) -> None:
    """Cut at every byte, with what was there before behind the cut."""
    with opened(tmp_path) as made:
        made.begin(OLD)
        before = path_of(tmp_path).read_bytes()
        made.store(NEW)
    after = path_of(tmp_path).read_bytes()
    changed = [at for at in range(len(after)) if before[at] != after[at]]
    for cut in range(changed[0], changed[-1] + 1):
        path_of(tmp_path).write_bytes(after[:cut] + before[cut:])
        assert says(tmp_path) == OLD, f"cut at {cut}"
    path_of(tmp_path).write_bytes(after)
    assert says(tmp_path) == NEW


def test_any_flipped_bit_of_the_newer_slot_leaves_the_older_one(tmp_path: Path) -> None:
    with opened(tmp_path) as made:
        made.begin(OLD)
        before = path_of(tmp_path).read_bytes()
        made.store(NEW)
    after = path_of(tmp_path).read_bytes()
    changed = [at for at in range(len(after)) if before[at] != after[at]]
    for at in range(changed[0], changed[-1] + 1):
        for bit in range(8):
            damaged = bytearray(after)
            damaged[at] ^= 1 << bit
            path_of(tmp_path).write_bytes(damaged)
            assert says(tmp_path) == OLD, f"bit {bit} of byte {at}"


def test_a_store_after_a_failed_one_keeps_what_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot that counts is never the one that is overwritten."""
    with opened(tmp_path) as made:
        made.begin(OLD)
        good = path_of(tmp_path).read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", failing)
            for _ in range(3):
                with pytest.raises(OSError, match="error"):
                    made.store(NEW)
                now = path_of(tmp_path).read_bytes()
                assert any(now[start:][:100] == good[start:][:100] != bytes(100) for start in (0, len(good) // 2))
        made.store({"state": "noted"})
    assert says(tmp_path) == {"state": "noted"}


def test_no_power_failure_takes_back_what_was_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver stores "committed" without a flush, is killed, and the next one stores over what stands on storage."""
    on_storage: list[set[bytes]] = [set(), set()]  # what each slot may hold there, after a power failure now
    is_decided = False
    write, flush = os.pwrite, os.fdatasync

    def check() -> None:
        for slots in itertools.product(*on_storage):
            path_of(tmp_path / "after").write_bytes(b"".join(slots))
            assert not is_decided or says(tmp_path / "after") != OLD

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        done = write(fd, data, offset)
        half = os.fstat(fd).st_size // 2
        is_slot = len(data) <= half
        for index in [offset // half] if is_slot else [0, 1]:
            torn = os.pread(fd, half, index * half)
            on_storage[index] |= {torn, torn[:20] + bytes(half - 20)}
        check()
        return done

    def fdatasync(fd: int) -> None:
        flush(fd)
        half = os.fstat(fd).st_size // 2
        on_storage[:] = [{os.pread(fd, half, start)} for start in (0, half)]
        check()

    (tmp_path / "after").mkdir()
    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with opened(tmp_path) as made:
        made.begin(OLD)
        made.store(NEW)
        is_decided = True
        made.store({**NEW, "state": "committed"}, is_durable=False)
    with opened(tmp_path, create=False) as found:
        found.store({**found.says, "seconds": 0})
        found.store({**found.says, "seconds": 1})


def failing(fd: int) -> None:
    raise OSError(5, "Input/output error")


def test_one_that_was_never_finished_says_nothing(tmp_path: Path) -> None:
    for contents in (b"", bytes(8192), sessionfile.MAGIC + bytes(8184)):
        path_of(tmp_path).write_bytes(contents)
        assert says(tmp_path) == {}


@pytest.mark.parametrize("contents", [b"a file of somebody else", b"x" * 8192, bytes(12), os.urandom(8 << 20)], ids=len)
def test_what_is_no_session_file_is_refused_and_stays(tmp_path: Path, contents: bytes) -> None:
    path_of(tmp_path).write_bytes(contents)
    with pytest.raises(OSError, match=r"no session file of blkmig"), opened(tmp_path):
        pass
    assert path_of(tmp_path).read_bytes() == contents


def test_mutations_are_what_was_stored_or_refused(tmp_path: Path) -> None:
    rng = random.Random(3)
    with opened(tmp_path) as made:
        made.begin(OLD)
        made.store(NEW)
    data = path_of(tmp_path).read_bytes()
    for _ in range(500):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 5)):
            damaged[rng.choice((0, len(data) // 2)) + rng.randrange(80)] = rng.randrange(256)
        path_of(tmp_path).write_bytes(damaged)
        with contextlib.suppress(OSError):
            assert says(tmp_path) in (OLD, NEW)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as made:
        made.begin(OLD)
        with pytest.raises(errors.DeviceBusy, match="another blkmig has its session file"), opened(tmp_path):
            pass
        made.remove()
    assert not path_of(tmp_path).exists()


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "socket"])
@pytest.mark.parametrize("create", [False, True])
def test_what_is_no_file_is_named(tmp_path: Path, kind: str, create: bool) -> None:
    """C7: it is nobody's who is at work, and whoever reads that learns where it is."""
    path = path_of(tmp_path)
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to("nowhere")
        case _:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))
    before = path.lstat()
    with pytest.raises(OSError, match="is no session file of blkmig") as caught, opened(tmp_path, create=create):
        pass
    assert str(path) in str(caught.value)
    assert os.path.samestat(before, path.lstat())


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"mine")
    path_of(tmp_path).symlink_to("other")
    with pytest.raises(OSError, match="symbolic links"), opened(tmp_path):
        pass
    assert (tmp_path / "other").read_bytes() == b"mine"


def test_one_that_cannot_be_removed_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unlink(*_args: object, **_options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "unlink", unlink)
    with opened(tmp_path) as made:
        made.begin(OLD)
        made.remove()
        made.close()
    assert f"{path_of(tmp_path)} is not needed any more, and cannot be removed: Read-only file system" in caplog.text
    assert says(tmp_path) == OLD
