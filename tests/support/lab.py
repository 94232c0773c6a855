# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of whole migrations share: random disks, channels, both ends of a migration in one process."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import blkmig
from blkmig import block, channel, savevm, stats

MIB = 1 << 20
SIZES = (512, 1000, MIB - 512, MIB, MIB + 512, 2 * MIB + 1000, 3 * MIB, 5 * MIB + 1536)
PARAMETERS = (
    *("sizes", "incremental", "verify", "direct", "state_dir", "delta", "in_place", "allow", "insecure", "tls"),
    "idle_timeout",
)
CHANNELS = ("tcp", "tcp6", "unix", "socket", "pipe", "file", "exec")


def random_disk(rng: random.Random, size: int) -> bytes:
    """Return a disk of holes, zero pages, full blocks and lonely bytes."""
    image = bytearray(size)
    for start in range(0, size, MIB):
        end = min(start + MIB, size)
        kind = rng.randrange(5)
        if kind == 0:
            image[start:end] = rng.randbytes(end - start)
        elif kind == 1:
            image[rng.randrange(start, end)] = rng.randrange(1, 256)
        elif kind == 2:
            first = rng.randrange(start, end)
            image[first:end] = rng.randbytes(end - first)
        elif kind == 3:
            image[start : start + 4096] = rng.randbytes(len(image[start : start + 4096]))
    return bytes(image)


def sparse_file(path: Path, content: bytes) -> Path:
    """Write `content` with holes where it is zero for a whole 64 KiB."""
    with path.open("wb") as file:
        for offset in range(0, len(content), 1 << 16):
            piece = content[offset : offset + (1 << 16)]
            if piece.count(0) != len(piece):
                file.seek(offset)
                file.write(piece)
        file.truncate(len(content))
    return path




class Receiver:
    """The incoming end, in a thread; `result` waits for it and returns the statistics or raises its error."""

    def __init__(self, uri: str, targets: Mapping[str, Any], **options: Any) -> None:
        parameters = blkmig.IncomingParameters(
            **{key: options.pop(key) for key in PARAMETERS if key in options},
            accept_timeout=20,
        )
        self.migration = blkmig.IncomingMigration(uri, targets, parameters, **options)
        self.migration.__enter__()
        self.uri = self.migration.uri
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.migration.run()
        except BaseException as error:
            self._error = error
        finally:
            self.migration.__exit__(None, None, None)

    @property
    def is_over(self) -> bool:
        """Return whether the receiver has ended, well or not."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait until the receiver has ended, well or not."""
        self._thread.join(30)
        assert not self._thread.is_alive(), "the receiver hangs"

    def result(self) -> stats.IncomingStatistics:
        """Wait for the receiver and return what it says, or raise what it raised."""
        self.join()
        if self._error is not None:
            raise self._error
        return self.migration.stats


@contextlib.contextmanager
def connection(kind: str, tmp_path: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield (URI to listen on, URI to send to or "" if the listener says it, whether sending comes first)."""
    if kind == "tcp":
        yield "tcp:127.0.0.1:0", "", False
    elif kind == "tcp6":
        yield "tcp:[::1]:0", "", False
    elif kind == "unix":
        yield f"unix:{tmp_path}/socket", "", False
    elif kind == "socket":
        one, other = socket.socketpair()
        with one, other:
            yield f"fd:{one.detach()}", f"fd:{other.detach()}", False
    elif kind == "pipe":
        readable, writable = os.pipe()
        yield f"fd:{readable}", f"fd:{writable}", False
    elif kind == "file":
        yield f"file:{tmp_path}/stream,offset=4096", f"file:{tmp_path}/stream,offset=4096", True
    else:
        yield f"exec:cat {tmp_path}/stream", f"exec:cat > {tmp_path}/stream", True


def sent(migration: blkmig.OutgoingMigration) -> Any:
    """Return the state of a migration's blocks, between its setup and its end."""
    handlers: Any = next(entry.handlers for entry in migration.savevm if entry.idstr in ("block", "blkmig"))
    return handlers.blk_mig


Drive = Callable[[blkmig.OutgoingMigration], None]


def migrate(
    tmp_path: Path,
    kind: str,
    disks: list[blkmig.BlockBackend],
    targets: Mapping[str, Any],
    *,
    drive: Drive = blkmig.OutgoingMigration.run,
    receive: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> tuple[stats.OutgoingStatistics, stats.IncomingStatistics]:
    """Migrate `disks` to `targets` over a channel of this kind and return what both ends say."""
    receive = dict(receive or {})
    with connection(kind, tmp_path) as (listen_uri, send_uri, sends_first):
        receiver = None if sends_first else Receiver(listen_uri, targets, **receive)
        uri = send_uri or (receiver.uri if receiver else "")
        outgoing = blkmig.outgoing(disks, uri, blkmig.MigrationParameters(**parameters))
        try:
            with outgoing:
                drive(outgoing)
        except BaseException:
            if receiver is not None:
                receiver.join()
            raise
        receiver = receiver or Receiver(listen_uri, targets, **receive)
        return outgoing.stats, receiver.result()


def left_out() -> blkmig.BlockBackend:
    """Return a disk that may be sent, and that no stream holds: as a CD."""
    found = blkmig.MemoryBackend(bytearray(b"cd"), name="cd")
    found.is_read_only = True
    return found


def record_without_disks(tmp_path: Path, **parameters: Any) -> bytes:
    """Return a stream whose ``block`` section holds no disk: no migration of ours sends such a one."""
    handlers = block.BlockSaveHandlers([left_out()], blkmig.MigrationParameters(**parameters))
    handlers.disks.is_described = True
    state, path = savevm.SaveState(), tmp_path / "recorded"
    state.register_savevm_live("block", 0, 1, handlers)
    with channel.connect(f"file:{path}", timeout=1) as f:
        state.state_header(f)
        state.state_setup(f)
        state.state_complete_precopy(f)
        state.state_end(f, {"page_size": 4096, "devices": [], "blkmig": handlers.description()})
    state.state_cleanup()
    return path.read_bytes()


def record(
    tmp_path: Path,
    disks: list[blkmig.BlockBackend],
    drive: Drive = blkmig.OutgoingMigration.run,
    **parameters: Any,
) -> bytes:
    """Return the stream that a migration of `disks` writes."""
    path = tmp_path / "recorded"
    with blkmig.outgoing(disks, f"file:{path}", blkmig.MigrationParameters(**parameters)) as outgoing:
        drive(outgoing)
    return path.read_bytes()


def input_file(tmp_path: Path, data: bytes) -> channel.InputQEMUFile:
    """Return a stream that holds `data`."""
    path = tmp_path / "input"
    path.write_bytes(data)
    with channel.listen(f"file:{path}") as listener:
        return listener.accept(timeout=None)
