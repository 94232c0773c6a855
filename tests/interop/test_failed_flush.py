# SPDX-License-Identifier: GPL-2.0-or-later
"""The target's storage fails at one flush, and takes everything again afterwards, as a kernel does: no ACK follows."""

from __future__ import annotations

import errno
from pathlib import Path

import lab
import peers
import pytest
import write_log
from lossy import many_barriers

import blkmig
from blkmig import errors, stats

__all__ = ["many_barriers"]

peers.require("qemu-storage-daemon")

SIZE = 8 * lab.MIB


@pytest.mark.usefixtures("many_barriers")
def test_nothing_is_acknowledged_after_a_failed_flush(tmp_path: Path) -> None:
    acknowledged: list[int] = []

    def told(event: stats.Event) -> None:
        if isinstance(event, stats.Acknowledged):
            acknowledged.append(event.number)

    source = blkmig.MemoryBackend(bytearray(b"d" * SIZE), name="d")
    chosen = blkmig.MigrationParameters(switchover="manual", idle_timeout=5, reconnect=5)
    with write_log.logged_file(SIZE, failing_flush=3) as file:
        receiver = lab.Receiver("tcp:127.0.0.1:0", {"d": file.path}, state_dir=tmp_path)
        with pytest.raises(errors.TargetFailed, match="Input/output error"):
            send_while_it_is_written(blkmig.outgoing([source], receiver.uri, chosen, on_progress=told), source)
        with pytest.raises(errors.DeviceError, match="d") as there:
            receiver.result()
    assert acknowledged == [1, 2]
    assert there.value.errno == errno.EIO


def send_while_it_is_written(migration: blkmig.OutgoingMigration, source: blkmig.MemoryBackend) -> None:
    """Go on until something is raised, or nine barriers are acknowledged."""
    with migration:
        while migration.stats.barriers < 9:
            source.pwrite(b"w" * 4096, 4096 * (migration.stats.packs % 1024))
            migration.iterate()
