#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Move a running VM to another host: the disks by blkmig, RAM and devices by QEMU, with one short pause for both.

On the destination, with an image of the right size for each disk:

    blkmig receive tcp::4444 vda=/srv/vda.qcow2,format=qcow2
    qemu-system-x86_64 (the same machine, -device virtio-blk-pci,id=vda,...) -incoming tcp::4445

On the source, whose QEMU has ``-qmp unix:/run/vm.qmp,server=on,wait=off``:

    python3 move_vm.py /run/vm.qmp tcp:dest:4444 tcp:dest:4445

    disks   bulk ──► rounds ──────────────► rounds ──► last pass ─┐
    RAM                         migrate ──► ... ──► pre-switchover └► migrate-continue ──► the guest goes on, there

QEMU waits with the guest stopped until the disks are there. If anything fails before that, its migration is cancelled
and the guest goes on here.
"""

import contextlib
import sys

import blkmig
from blkmig import qemu


def move(qmp_socket: str, disks_uri: str, ram_uri: str) -> blkmig.OutgoingStatistics:
    """Move the VM behind `qmp_socket` and return the figures of its disks."""
    parameters = blkmig.MigrationParameters(switchover="manual", writers_after="refuse")
    with contextlib.ExitStack() as stack:
        disks = qemu.open_qemu(f"qemu:{qmp_socket}", switchover="pause-before")
        for backend in disks:
            stack.enter_context(backend)
        vm = disks[0].session
        migration = stack.enter_context(blkmig.outgoing(disks, disks_uri, parameters))
        while migration.pending() > migration.threshold_size():  # bulk, and rounds until few blocks are left
            migration.iterate()
        vm.migrate(ram_uri)
        vm.when_pre_switchover(migration.switchover)
        migration.run()  # more rounds, and the last pass when QEMU says so
        return migration.stats


if __name__ == "__main__":
    print(move(*sys.argv[1:]))
