# SPDX-License-Identifier: GPL-2.0-or-later
"""A forked child and the disks of a running QEMU: the parent's connection, tracking and held writers are not its."""

from __future__ import annotations

import os

import forks
import peers
import storage_daemon
from pauses import inside

from blkmig import _core, disk, qemu
from blkmig.qemu import holding

peers.require("qemu-storage-daemon", "qemu-io")

MiB = 1 << 20


def test_a_forked_child_is_refused_at_once_and_leaves_everything_alone() -> None:
    with storage_daemon.private_folder() as folder:
        image = folder / "d.raw"
        image.write_bytes(bytes(MiB))
        with storage_daemon.StorageDaemon(folder, *storage_daemon.image_options(image)) as daemon:
            with qemu.open_qemu(f"{daemon.address},read=nbd")[0] as source:
                bitmap = source.create_dirty_bitmap(MiB)
                with inside(holding.Holding, "sync", source.sync_dirty):
                    for call in (
                        lambda: source.create_dirty_bitmap(MiB),
                        source.sync_dirty,
                        source.hold_writers,
                        source.about_to_move,
                        source.written_bytes,
                        source.check_source,
                        lambda: source.throttle_writers(0.5),
                        lambda: source.read_block(_core.BlockBuffer(), 0, MiB),
                        lambda: source.next_data(0),
                    ):
                        said = forks.in_a_child(call)
                        assert "the connection is the parent process's" in said, said
                source.hold_writers()
                for leave in (
                    source.cancel,
                    source.leave_in_doubt,
                    source.release_writers,
                    lambda: source.release_dirty_bitmap(bitmap),
                    source.close,
                ):
                    assert forks.in_a_child(leave) == ""
                disk.sync_disks([source])
                source.release_writers()
                source.release_dirty_bitmap(bitmap)
            assert daemon.leftovers() == []


def test_a_forked_child_does_not_keep_a_dead_run_alive() -> None:
    """Whether a run is alive, a clean-up sees from its connection: a child that lives on must not have it."""
    with storage_daemon.private_folder() as folder:
        image = folder / "d.raw"
        image.write_bytes(bytes(MiB))
        with storage_daemon.StorageDaemon(folder, *storage_daemon.image_options(image)) as daemon:
            to_child, from_parent = os.pipe()
            ready, say_ready = os.pipe()
            run = os.fork()
            if not run:
                os.close(from_parent)
                qemu.open_qemu(daemon.address)[0].create_dirty_bitmap(MiB)
                if os.fork():
                    os.write(say_ready, b"1")
                    os._exit(0)  # as one that is killed
                os.close(say_ready)
                os.read(to_child, 1)
                os._exit(0)
            os.close(to_child)
            assert os.read(ready, 1)
            os.waitpid(run, 0)
            assert any(what.startswith("export blkmig-") for what in qemu.cleanup(str(daemon.qmp_path)))
            os.close(from_parent)
            os.close(say_ready)
            os.close(ready)
