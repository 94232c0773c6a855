# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of a program that keeps a dirty map: the map itself, and the nbdkit plugin of the examples."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import lab
import peers
import pytest
import storage_daemon
from storage_daemon import MiB

import blkmig
from blkmig import errors
from blkmig.block import granules
from blkmig.files import dirtymap, sharedmap
from blkmig.nbd import uri as nbd_uri
from blkmig.sources import open_disks

SIZE = 3 * MiB + 70_000
CHUNK = dirtymap.GRANULARITY
PLUGIN = Path(__file__).parents[2] / "examples" / "nbdkit_dirty_map.py"


class Program:
    """Another program, here: it writes a file and marks its writes in a map."""

    def __init__(self, folder: Path, size: int = SIZE, granularity: int = CHUNK) -> None:
        self.disk, self.map = folder / "disk.raw", folder / "disk.map"
        self.disk.open("wb").truncate(size)
        self._file = self.disk.open("r+b", buffering=0)
        dirtymap.create_map(self.map, size, granularity=granularity)
        self.granularity = granularity
        with self.map.open("r+b") as file:
            self.bytes = mmap.mmap(file.fileno(), 0)
        self.lock = threading.Lock()
        self.calls: list[str] = []

    def write(self, offset: int, data: bytes) -> None:
        """Write, then mark."""
        with self.lock:
            self._file.seek(offset)
            self._file.write(data)
            for chunk in range(offset // self.granularity, (offset + len(data) - 1) // self.granularity + 1):
                self.bytes[dirtymap.MAP_OFFSET + chunk] = 1

    def hold(self) -> None:
        self.calls.append("hold")
        assert self.lock.acquire(timeout=30)

    def release(self) -> None:
        self.calls.append("release")
        self.lock.release()

    def refuse(self) -> None:
        self.calls.append("refuse")

    def open(self, **options: object) -> sharedmap.SharedMapBackend:
        source = blkmig.FileBackend(self.disk, name="disk", writable=False)
        actions: dict[str, Callable[[], object]] = {"hold": self.hold, "release": self.release, "refuse": self.refuse}
        return sharedmap.SharedMapBackend(source, self.map, **actions | options)  # type: ignore[arg-type]

    def marks(self) -> set[int]:
        return {chunk for chunk, byte in enumerate(self.bytes[dirtymap.MAP_OFFSET :]) if byte}


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def dirty_blocks(bitmap: blkmig.DirtyBitmap) -> list[int]:
    return [block for block in range(bitmap.nblocks) if bitmap.is_dirty(block)]


# -- the map ---------------------------------------------------------------------------------------------------------


def test_marks_are_taken_with_sync(program: Program) -> None:
    with program.open() as disk:
        program.write(0, b"before")
        bitmap = disk.create_dirty_bitmap(MiB)
        assert program.marks() == set()
        program.write(MiB, b"1")
        assert dirty_blocks(bitmap) == []
        disk.sync_dirty()
        assert dirty_blocks(bitmap) == [1]
        assert program.marks() == set()
        bitmap.take_block(1)
        disk.sync_dirty()
        assert dirty_blocks(bitmap) == []
        program.write(3 * MiB - 1, b"2")
        disk.sync_dirty()
        assert dirty_blocks(bitmap) == [2, 3]


def test_every_tracker_gets_the_marks_that_came_since_it_began(program: Program) -> None:
    with program.open() as disk:
        first = disk.create_dirty_bitmap(MiB)
        program.write(0, b"1")
        second = disk.create_dirty_bitmap(CHUNK)
        assert dirty_blocks(first) == [0]
        assert dirty_blocks(second) == []
        program.write(MiB, b"2")
        disk.release_dirty_bitmap(first)
        disk.sync_dirty()
        assert dirty_blocks(first) == [0]
        assert dirty_blocks(second) == [1]


@pytest.mark.parametrize("chunk", [4096, CHUNK, MiB])
def test_a_tracker_that_is_finer_than_the_map_marks_whole_chunks(tmp_path: Path, chunk: int) -> None:
    program = Program(tmp_path, granularity=chunk)
    with program.open() as disk:
        assert disk.min_granularity == chunk
        bitmap = disk.create_dirty_bitmap(4096)
        program.write(MiB + 70_000, b"x")
        disk.sync_dirty()
        assert bitmap.take_areas() == [((MiB + 70_000) // chunk * chunk, chunk)]
        program.write(SIZE - 1, b"x")
        disk.sync_dirty()
        assert bitmap.next_dirty(0) == (2 if SIZE // chunk * chunk < 3 * MiB else 3)
        last = bitmap.take_extents(3)
        assert (last[0][0] + last[0][1], len(last)) == (SIZE, 1)
        disk.release_dirty_bitmap(bitmap)
        parameters = blkmig.MigrationParameters()
        assert granules.of_disks([disk], parameters, "blkmig") == [chunk]
        assert granules.of_disks([disk], parameters, "block") == [MiB]


@pytest.mark.parametrize("seed", range(20))
def test_random_marks_are_taken_as_runs(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    window = rng.choice([1, 7, 64, dirtymap.WINDOW])
    monkeypatch.setattr(dirtymap, "WINDOW", window)
    size = rng.randrange(1, 5 * MiB)
    program = Program(tmp_path, size, granularity=rng.choice([4096, 65536, MiB]))
    count = -(-size // program.granularity)
    marked = {chunk for chunk in range(count) if rng.random() < rng.choice([0, 0.1, 0.5, 0.9, 1])}
    for chunk in marked:
        program.bytes[dirtymap.MAP_OFFSET + chunk] = 1 + rng.randrange(255)
    taken = list(dirtymap.DirtyMap(program.map, size=size, device="disk").take())
    covered = [chunk for first, nbytes in taken for chunk in range(first, first + nbytes, program.granularity)]
    assert covered == [chunk * program.granularity for chunk in sorted(marked)], f"seed {seed}"
    whole = window * program.granularity
    for (start, nbytes), (after, _) in itertools.pairwise(taken):
        assert start + nbytes < after or after % whole == 0, f"seed {seed}"
    assert program.marks() == set()


def anew(program: Program) -> None:
    dirtymap.create_map(program.map, SIZE)


def cut(program: Program) -> None:
    os.truncate(program.map, 100)


@pytest.mark.parametrize(("change", "why"), [(anew, "is another file by now"), (cut, "was cut from 4146 to 100 bytes")])
def test_a_map_that_is_not_marked_any_more_ends_the_migration(
    program: Program, tmp_path: Path, change: Callable[[Program], None], why: str
) -> None:
    """A11: a program that was started anew marks its writes in a new map: what it wrote was lost, with success. A map
    that was cut was SIGBUS, with the writers held."""

    def hold() -> None:
        program.hold()
        change(program)

    with program.open(hold=hold) as disk, pytest.raises(errors.DeviceError, match=why):
        blkmig.send([disk], f"file:{tmp_path}/stream")
    assert program.calls == ["hold", "release"]
    assert not (tmp_path / "stream").exists()


def test_a_map_is_made_beside_one_that_is_in_use(program: Program) -> None:
    """It was cut to nothing first, which is SIGBUS for whoever looks at it then."""
    program.map.chmod(0o620)
    dirtymap.create_map(program.map, SIZE)
    program.bytes[dirtymap.MAP_OFFSET] = 1
    assert program.map.read_bytes()[dirtymap.MAP_OFFSET] == 0
    assert program.map.stat().st_mode & 0o777 == 0o620
    assert list(program.map.parent.glob(".*")) == []


def test_one_migration_at_a_time_takes_the_marks(program: Program) -> None:
    with program.open() as one, program.open() as other:
        bitmap = one.create_dirty_bitmap(MiB)
        with pytest.raises(errors.DeviceBusy, match="another migration"):
            other.create_dirty_bitmap(MiB)
        one.release_dirty_bitmap(bitmap)
        one.release_dirty_bitmap(bitmap)
        other.create_dirty_bitmap(MiB)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda data: b"", "not a dirty map"),
        (lambda data: b"x" + data[1:], "not a dirty map"),
        (lambda data: data[:8] + b"\2" + data[9:], "version 2"),
        (lambda data: data[:12] + b"\0\0\0\0" + data[16:], "granularity is 0"),
        (lambda data: data[:12] + b"\0\0\3\0" + data[16:], "power of two"),
        (lambda data: data[:16] + b"\1" + data[17:], "map of a disk of"),
        (lambda data: data[:-1], "too short"),
    ],
)
def test_a_file_that_is_no_map_of_this_disk(program: Program, change: Callable[[bytes], bytes], complaint: str) -> None:
    program.map.write_bytes(change(program.map.read_bytes()))
    with pytest.raises(errors.FormatError, match=complaint):
        program.open()


def test_a_map_that_is_missing(program: Program) -> None:
    program.map.unlink()
    with pytest.raises(errors.DeviceError, match="No such file"):
        program.open()


# -- writers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refuse", [False, True])
def test_writers_are_held_once(program: Program, refuse: bool) -> None:
    with program.open() as disk:
        disk.release_writers()
        disk.hold_writers()
        disk.hold_writers()
        disk.release_writers(refuse=refuse)
        disk.release_writers(refuse=refuse)
    assert program.calls == ["hold", "refuse" if refuse else "release"]


def test_closing_releases(program: Program) -> None:
    with program.open() as disk:
        disk.hold_writers()
    disk.close()
    assert program.calls == ["hold", "release"]
    with pytest.raises(errors.DeviceError, match="closed"):
        disk.sync_dirty()


def test_commands_hold_and_release(program: Program, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with program.open(hold=f"echo held >> {journal}", release="exit 3") as disk:
        disk.hold_writers()
        assert journal.read_text() == "held\n"
        with pytest.raises(errors.DeviceError, match="exit status 3"):
            disk.release_writers()
    with program.open(hold="exit 4") as disk, pytest.raises(errors.DeviceError, match="cannot hold its writer"):
        disk.hold_writers()


@pytest.mark.parametrize("seed", range(5))
def test_a_disk_moves_while_its_program_writes(program: Program, tmp_path: Path, seed: int) -> None:
    stop = threading.Event()
    wrote = threading.Event()

    def write() -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            nbytes = rng.choice([1, 4096, 100_000])
            program.write(rng.randrange(SIZE - nbytes + 1), rng.randbytes(nbytes))
            wrote.set()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    assert wrote.wait(30)
    try:
        held: list[bytes] = []
        with program.open(refuse=lambda: held.append(program.disk.read_bytes())) as disk:
            target = tmp_path / "target.raw"
            # Three rounds, whatever is pending: a writer this quick never falls below the downtime limit.
            lab.migrate(tmp_path, "socket", [disk], {"disk": target}, drive=three_rounds, writers_after="refuse")
            assert target.read_bytes() == held[0], f"seed {seed}"
    finally:
        stop.set()
        with contextlib.suppress(RuntimeError):
            program.lock.release()
        thread.join(30)


def three_rounds(outgoing: blkmig.OutgoingMigration) -> None:
    """Iterate a little, then do the last pass."""
    for _ in range(3):
        outgoing.iterate()
    outgoing.complete()


# -- as text ---------------------------------------------------------------------------------------------------------


def test_a_disk_with_a_map_is_opened_by_its_text(program: Program, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    text = f"dirtymap:{program.map},disk={program.disk},hold=echo 1,,2 > {journal},release=true"
    [disk] = open_disks(text, writable=False)
    with disk:
        assert disk.name == "disk"
        assert disk.size == SIZE
        disk.hold_writers()
        assert journal.read_text() == "1,2\n"
    with open_disks(text, name="vda")[0] as disk:
        assert disk.name == "vda"


@pytest.mark.parametrize("text", ["", "m", "m,disk=d", "m,disk=d,hold=h", "m,disk=d,hold=h,release=", ",disk=d"])
def test_texts_that_lack_something(text: str) -> None:
    with pytest.raises(errors.ParameterError, match="must be dirtymap:"):
        sharedmap.parse(f"dirtymap:{text}")


def test_a_text_with_something_unknown() -> None:
    with pytest.raises(errors.ParameterError, match="color"):
        sharedmap.parse("dirtymap:m,disk=d,hold=h,release=r,color=red")


# -- the plugin ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    with storage_daemon.private_folder() as path:
        yield path


@contextlib.contextmanager
def nbdkit(folder: Path) -> Iterator[str]:
    """Run nbdkit with the plugin of the examples; its URI."""
    peers.require("nbdkit", "qemu-io")
    if subprocess.run(["nbdkit", "python", "--version"], capture_output=True, check=False).returncode:
        peers.lacking("nbdkit has no Python plugin (Debian: nbdkit-plugin-python)")
    disk, log = folder / "disk.raw", folder / "log"
    disk.write_bytes(random.Random(1).randbytes(SIZE // 512 * 512))
    plugin = ["python", PLUGIN, f"file={disk}", f"map={folder}/disk.map", f"pause-control={folder}/pause"]
    command = ["nbdkit", "--pidfile", f"{folder}/pid", "--unix", f"{folder}/nbd", "--filter=pause", *plugin]
    with log.open("wb") as file:
        started = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False)
    assert started.returncode == 0, log.read_text()
    try:
        yield nbd_uri.unix_uri(f"{folder}/nbd")
    finally:
        # Not SIGTERM: an nbdkit that is paused would wait for its clients for ever.
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)


def pause_command(letter: str, folder: Path) -> str:
    return f"{sys.executable} {PLUGIN} {letter} {folder}/pause"


@pytest.mark.parametrize("seed", range(3))
def test_an_nbdkit_disk_moves_while_its_clients_write(folder: Path, seed: int) -> None:
    with nbdkit(folder) as uri:
        hold, release = pause_command("p", folder), pause_command("r", folder)
        text = f"dirtymap:{folder}/disk.map,disk={folder}/disk.raw,hold={hold},release={release}"
        with (
            storage_daemon.writing([(uri, SIZE // 512 * 512)], seed=seed) as [writer],
            open_disks(text, writable=False)[0] as disk,
        ):
            writer.wait_for_more(3)
            target = folder / "target.raw"
            lab.migrate(folder, "unix", [disk], {"disk": target}, drive=three_rounds, writers_after="refuse")
            assert target.read_bytes() == (folder / "disk.raw").read_bytes(), f"seed {seed}"


def test_nbdkit_clients_go_on_after_a_copy(folder: Path) -> None:
    with nbdkit(folder) as uri:
        hold, release = pause_command("p", folder), pause_command("r", folder)
        text = f"dirtymap:{folder}/disk.map,disk={folder}/disk.raw,hold={hold},release={release}"
        with storage_daemon.writing([(uri, MiB)], seed=1) as [writer], open_disks(text, writable=False)[0] as disk:
            lab.migrate(folder, "unix", [disk], {"disk": folder / "target.raw"}, drive=three_rounds)
            writer.wait_for_more(3)


def test_a_map_that_cannot_be_made_is_an_error_of_the_tree(tmp_path: Path) -> None:
    with pytest.raises(errors.DeviceError, match="cannot write the dirty map"):
        dirtymap.create_map(tmp_path / "missing" / "map", MiB)
