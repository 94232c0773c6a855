# SPDX-License-Identifier: GPL-2.0-or-later
"""What belongs to one thread and one process says so to others, and never crashes (C13, C14)."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from forks import in_a_child
from pauses import inside

import blkmig
from blkmig import _core, _input, _output, _storing, errors, files
from blkmig.files import storing

MiB = 1 << 20
LONG = 30
BLOCK = _core.BLOCK_SIZE


@contextlib.contextmanager
def busy(call: Callable[[], object]) -> Iterator[None]:
    """Have another thread inside a call, without the GIL, for the length of the body."""
    entered = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        entered.set()
        try:
            call()
        except (OSError, EOFError) as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert entered.wait(LONG)
    try:
        yield
    finally:
        thread.join(LONG)
        assert not thread.is_alive()


def until_busy(call: Callable[[], object]) -> str:
    """Call until it is refused, as the other thread may not be inside yet, and return why."""
    while True:
        try:
            call()
        except (RuntimeError, BufferError) as error:
            return str(error)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


INPUTS: dict[str, Callable[[_input.InputBuffer], object]] = {
    "get_byte": lambda s: s.get_byte(),
    "get_be16": lambda s: s.get_be16(),
    "get_be32": lambda s: s.get_be32(),
    "get_be64": lambda s: s.get_be64(),
    "get_buffer": lambda s: s.get_buffer(10),
    "get_some": lambda s: s.get_some(10),
    "peek_byte": lambda s: s.peek_byte(),
    "skip": lambda s: s.skip(10),
    "skip_words": lambda s: s.skip_words(0, 0, 0, 0, 0),
    "next_run": lambda s: s.next_run(),
    "get_block": lambda s: s.get_block(_core.BlockBuffer()),
}


@pytest.mark.parametrize("waits", INPUTS)
def test_one_input_in_two_threads(pair, waits):
    """C14: a segmentation fault."""
    ours, theirs = pair
    stream = _input.InputBuffer(ours.fileno())
    with busy(lambda: INPUTS[waits](stream)):
        try:
            while not is_busy(stream):
                pass
            for name, call in INPUTS.items():
                with pytest.raises(RuntimeError, match="another thread"):
                    call(stream)
                assert stream.position == 0, name
        finally:
            theirs.shutdown(socket.SHUT_WR)


def is_busy(stream: _input.InputBuffer) -> bool:
    """Return whether the other thread is inside: `get_buffer(0)` is refused then, and does nothing else."""
    try:
        stream.get_buffer(0)
    except RuntimeError:
        return True
    return False


OUTPUTS: dict[str, Callable[[_output.OutputBuffer], object]] = {
    "put_byte": lambda s: s.put_byte(1),
    "put_be64": lambda s: s.put_be64(1),
    "put_buffer": lambda s: s.put_buffer(bytes(8 * MiB)),
    "a few bytes": lambda s: s.put_buffer(b"few"),
    "put_block_header": lambda s: s.put_block_header(0, 1, b"vda"),
    "put_zero_records": lambda s: s.put_zero_records(0, 5, b"vda"),
    "put_block": lambda s: s.put_block(0, 1, b"vda", _core.BlockBuffer()),
    "put_payload": lambda s: s.put_payload(_core.BlockBuffer(), 0, 100),
    "flush": lambda s: s.flush(),
}


def test_one_output_in_two_threads(pair):
    """C14."""
    ours, theirs = pair
    stream, blk = _output.OutputBuffer(ours.fileno()), _core.BlockBuffer()

    def send() -> None:
        for sector in range(0, 64 * 2048, 2048):
            stream.put_block(sector, 1, b"vda", blk)

    with busy(send):
        try:
            until_busy(stream.flush)
            position = stream.position
            for name, call in OUTPUTS.items():
                with pytest.raises(RuntimeError, match="another thread"):
                    call(stream)
                assert stream.position == position, name
            assert bytes(blk.data[:10]) == bytes(blk.payload[:10]) == bytes(10)  # others may look
            for use in BLOCKS.values():
                with pytest.raises((RuntimeError, BufferError), match="another thread"):
                    use(blk)
        finally:
            theirs.close()


#: What a block that is being sent must not do meanwhile.
BLOCKS: dict[str, Callable[[_core.BlockBuffer], object]] = {
    "fill": lambda blk: blk.fill(0, 0, 0),
    "filled": lambda blk: blk.filled(0),
    "fill_mapped": lambda blk: blk.fill_mapped(_core.Mapping(0, 0), 0, 0, 0),
    "store": lambda blk: blk.store(1, 0, 0),
    "store_sparse": lambda blk: blk.store_sparse(1, 0, 0, 65536, True),
    "put behind": lambda blk: _storing.StoringQueue(0, 4, 2, 4).put(blk, 1, 0, False),
}


def test_one_block_in_two_threads_that_read_and_store(tmp_path):
    """C14: whatever two threads do to one block at once, it is done, or refused."""
    (tmp_path / "f").write_bytes(os.urandom(4 * MiB))
    fd = os.open(tmp_path / "f", os.O_RDWR)
    blk, mapping = _core.BlockBuffer(), _core.Mapping(fd, 4 * MiB)
    stores = storing.StoringThread(65536)
    calls: list[Callable[[], object]] = [
        lambda: blk.fill(fd, 0, BLOCK),
        lambda: blk.fill_mapped(mapping, fd, MiB, BLOCK),
        lambda: blk.store(fd, 0, BLOCK),
        lambda: blk.store_sparse(fd, 0, BLOCK, 65536, True),
        lambda: stores.put(blk, fd, 0, allocate=False),
        lambda: bytes(blk.data[:100]),
    ]

    def run(start: int) -> None:
        for i in range(120):
            with contextlib.suppress(RuntimeError, BufferError):
                calls[(start + i * (start + 1)) % len(calls)]()

    threads = [threading.Thread(target=run, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    stores.close()
    os.close(fd)


def test_a_queue_is_run_by_one_thread(tmp_path):
    queue, blk = _storing.StoringQueue(0, 4, 2, 4), _core.BlockBuffer()
    with (tmp_path / "f").open("wb") as file:
        thread = threading.Thread(target=queue.run)
        thread.start()
        queue.put(blk, file.fileno(), 0, False)
        queue.drain()  # so the thread runs it
        with pytest.raises(RuntimeError, match="another thread"):
            queue.run()
        queue.close()
        thread.join(LONG)


# ---- another process ----


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_childs_writes_are_refused(tmp_path: pathlib.Path, kind: str) -> None:
    """C13: they were done, nobody knew of them, and the copy differed."""
    made = {
        "memory": lambda: files.MemoryBackend(bytearray(4 * MiB), name="vda"),
        "file": lambda: files.FileBackend.create(tmp_path / "vda", 4 * MiB),
    }
    with made[kind]() as backend:
        bitmap = backend.create_dirty_bitmap(65536)
        backend.pwrite(b"parent", 0)

        def own() -> None:
            with backend.writing(0, 5):
                pass

        for call in (
            lambda: backend.pwrite(b"child", 0),
            lambda: backend.pwrite_zeroes(0, 5),
            lambda: backend.mark_dirty(0, 5),
            own,
            backend.hold_writers,
            lambda: backend.throttle_writers(0.5),
            lambda: backend.create_dirty_bitmap(65536),
        ):
            said = in_a_child(call)
            assert said.startswith("DeviceError: disk 'vda': cannot be "), said
            assert f"process {os.getpid()} opened it" in said
        assert in_a_child(lambda: backend.pread(0, 6) == b"parent" or 1 / 0) == ""
        assert in_a_child(backend.close) == ""
        assert backend.pread(0, 6) == b"parent"
        assert bitmap.take_areas() == [(0, 65536)]
        backend.pwrite(b"parent", 0)  # a child's close is its own


def test_a_child_opens_what_it_writes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "vda").write_bytes(bytes(MiB))

    def write() -> None:
        with files.FileBackend(tmp_path / "vda") as backend:
            backend.pwrite(b"child", 0)

    assert in_a_child(write) == ""
    assert (tmp_path / "vda").read_bytes()[:5] == b"child"


def test_a_child_whose_parent_is_in_the_gate(tmp_path: pathlib.Path) -> None:
    """The lock of the gate may be held when the fork comes: nobody in the child will give it back."""
    backend = files.MemoryBackend(bytearray(MiB), name="vda")
    with inside(backend, "check_open", lambda: backend.create_dirty_bitmap(MiB)):
        assert "DeviceError" in in_a_child(lambda: backend.pwrite(b"x", 0))
        assert in_a_child(backend.close) == ""


def test_what_waits_to_be_stored_is_the_parents(tmp_path: pathlib.Path) -> None:
    """A child has no thread that stores: it says so instead of waiting for it, and leaves the file to the parent."""
    with files.FileBackend.create(tmp_path / "vda", 8 * MiB) as target:
        blk = _core.BlockBuffer("moved")
        blk.data[:] = b"x" * BLOCK
        blk.filled(BLOCK)
        target.write_block(blk, 0, BLOCK)

        def write() -> None:
            for offset in range(0, 8 * MiB, MiB):
                target.write_block(blk, offset, BLOCK)

        assert "DeviceError: disk 'vda': cannot write" in in_a_child(write)
        assert in_a_child(target.close) == ""
        target.flush()
    assert (tmp_path / "vda").read_bytes()[:BLOCK] == b"x" * BLOCK


def test_a_stream_belongs_to_one_process(pair) -> None:
    ours, theirs = pair
    output, source = _output.OutputBuffer(ours.fileno()), _input.InputBuffer(ours.fileno())
    theirs.sendall(b"0123456789")
    for call in (lambda: output.put_be64(1), output.flush, source.get_byte, source.next_run):
        assert "RuntimeError: the stream is the parent process's" in in_a_child(call)
    assert source.get_buffer(10) == b"0123456789"


def test_a_migration_is_not_continued_in_a_child(tmp_path: pathlib.Path) -> None:
    """C13: the state is what is wrong, and nothing is done to the parent's link."""
    source = files.MemoryBackend(bytearray(b"x" * 4 * MiB), name="vda")
    with blkmig.outgoing([source], f"file:{tmp_path / 'out'}") as migration:
        for call in (migration.iterate, migration.complete, migration.run):
            assert in_a_child(call).startswith("StateError"), call
        migration.run()
    target = bytearray(4 * MiB)
    blkmig.receive(f"file:{tmp_path / 'out'}", {"vda": files.MemoryBackend(target, name="vda")})
    assert target == b"x" * 4 * MiB
    assert issubclass(errors.StateError, errors.MigrationError)
