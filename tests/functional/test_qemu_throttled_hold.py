# SPDX-License-Identifier: GPL-2.0-or-later
"""Holding writers whose requests wait in the queue of a throttle: they are let go, and the user's limits hold again."""

from __future__ import annotations

import contextlib
import threading

import peers
import storage_daemon
from nbd_requests import await_requests
from nbd_requests import in_flight as in_flight

from blkmig import errors, qemu
from blkmig.nbd import connection as nbd_connection

peers.require("qemu-storage-daemon")

MiB = 1 << 20
GROUP = "/objects/disk0-limit"
BYTE_A_SECOND = {"bps-write": 1}


def test_queued_writes_do_not_hold_the_pause_up(in_flight: threading.Semaphore) -> None:
    """Without that, they would take eleven days each."""
    with storage_daemon.private_folder() as folder:
        image = folder / "d.raw"
        image.write_bytes(bytes(4 * MiB))
        with storage_daemon.StorageDaemon(folder, *storage_daemon.image_options(image, throttled=True)) as daemon:
            daemon.ask("qom-set", path=GROUP, property="limits", value=BYTE_A_SECOND)
            before = daemon.ask("qom-get", path=GROUP, property="limits")
            client = nbd_connection.NbdConnection(daemon.uri("disk0"))

            def write(offset: int) -> None:
                with contextlib.suppress(errors.DeviceError):  # a write that is in flight when its export is closed
                    client.pwrite(b"x" * MiB, offset)

            with qemu.open_qemu(daemon.address, timeout=20)[0] as source:
                bitmap = source.create_dirty_bitmap(MiB)
                write(0)  # fills the bucket
                await_requests(in_flight)
                writers = [threading.Thread(target=write, args=(number * MiB,), daemon=True) for number in (1, 2, 3)]
                for each in writers:
                    each.start()
                await_requests(in_flight, 3)
                client.pread_into(bytearray(512), 0)  # answered after they were read off the socket
                source.hold_writers()
                source.sync_dirty()
                assert bitmap.is_dirty(0)
                assert source.session.qmp.execute("qom-get", {"path": GROUP, "property": "limits"}) == before
                source.release_writers()
                for each in writers:
                    each.join(30)
                source.release_dirty_bitmap(bitmap)
            client.close()
            assert daemon.leftovers() == []
            assert daemon.ask("qom-get", path=GROUP, property="limits") == before
