# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of the golden streams."""

from __future__ import annotations

import actions
from real_qemu import MiB
from session import Disk, Faulty, Image, Inline, Nameless, Recording

SMALL_BIOS = "/usr/share/seabios/bios.bin"
ONE = (Disk("drive0", 3 * MiB, zero_blocks=(1,)),)

RECORDINGS = [
    *(
        Recording(name=name, machine=machine, disks=ONE, note=note)
        for name, machine, note in (
            ("pc-2.2", "pc-i440fx-2.2", "no configuration, no footers, no vmdescription"),
            ("pc-2.3", "pc-i440fx-2.3", "no configuration, no footers"),
            ("pc-2.4", "pc-i440fx-2.4", "the first with configuration and footers"),
            ("pc-7.2", "pc-i440fx-7.2", "the plain case"),
            ("q35", "pc-q35-7.2", "another board"),
        )
    ),
    Recording(
        name="zero-blocks",
        disks=(Disk("drive0", 6 * MiB, zero_blocks=(1, 2, 5)),),
        capabilities=("zero_blocks",),
        note="zero blocks without payload, two in a row and the last one",
    ),
    Recording(
        name="three-disks",
        disks=(
            Disk("drive-virtio-disk0", 3 * MiB),
            Disk("disk-b", 2 * MiB, zero_blocks=(0, 1)),
            Disk("c", 2 * MiB + 128 * 1024),
        ),
        capabilities=("zero_blocks",),
        note="three disks, one of them all zero, one of no whole number of MiB",
    ),
    Recording(
        name="three-disks-2.2",
        machine="pc-i440fx-2.2",
        disks=(Disk("a", MiB), Disk("b", 2 * MiB), Disk("n" * 255, 3 * 512, path="long.raw")),
        note="the oldest container, a name of 255 bytes on a disk of 3 sectors",
    ),
    Recording(
        name="devices",
        disks=(
            Disk("ide0-hd0", 2 * MiB, options="if=ide,index=0"),
            Disk("floppy0", 2880 * 512, options="if=floppy"),
            Disk("cd", 2 * MiB, options="if=ide,index=2,media=cdrom,readonly=on", sent=False),
            Disk("pflash0", 64 * 1024, options="if=pflash,unit=0"),
            Disk("tiny", 3 * 512, options="if=virtio"),
        ),
        note="floppy, pflash and a disk of 3 sectors are one block or two; the read-only CD is not sent",
    ),
    Recording(
        name="unaligned",
        disks=(Disk("drive0", 2 * MiB + 5 * 512),),
        note="5 sectors in the last block, the rest of it is the sender's heap",
    ),
    Recording(
        name="unaligned-zero",
        disks=(Disk("drive0", 2 * MiB + 5 * 512, zero_blocks=(2,)),),
        capabilities=("zero_blocks",),
        note="the last, partial block is zero",
    ),
    Recording(
        name="no-disk",
        disks=(Disk("cd", MiB, options="if=ide,index=2,media=cdrom,readonly=on", sent=False),),
        note="nothing writable: block sections without blocks",
    ),
    Recording(
        name="qcow2",
        disks=(Image("drive0", 4 * MiB, zero_blocks=(1, 2), path="drive0.qcow2"),),
        run=actions.qcow2_without_base,
        note="the guest-visible contents of a sparse qcow2 image",
    ),
    Recording(
        name="incremental",
        disks=(Image("drive0", 5 * MiB, path="drive0.qcow2"),),
        incremental=True,
        run=actions.qcow2_overlay,
        verdict="incremental",
        note="only the blocks that the overlay holds, merged with the base",
    ),
    Recording(
        name="incremental-raw",
        disks=(Disk("drive0", 2 * MiB),),
        incremental=True,
        note="inc on a raw disk leaves nothing out",
    ),
    Recording(
        name="running",
        disks=(Disk("drive0", 3 * MiB, options="if=ide"),),
        memory="16M",
        arguments=("-bios", SMALL_BIOS),
        running=True,
        parameters={"downtime-limit": 0, "max-bandwidth": 16 * MiB},
        run=actions.write_while_migrating,
        note="a boot sector writes all the time, so that blocks come again and again",
    ),
    Recording(
        name="running-2.3",
        machine="pc-i440fx-2.3",
        disks=(
            Disk("virtio0", 2 * MiB + 3 * 512, options="if=none"),
            Disk("ide0-hd0", 2 * MiB, options="if=ide"),
        ),
        memory="16M",
        arguments=("-bios", SMALL_BIOS, "-device", "virtio-blk-pci,drive=virtio0,ioeventfd=off,bootindex=1"),
        running=True,
        capabilities=("zero_blocks",),
        parameters={"downtime-limit": 0, "max-bandwidth": 16 * MiB},
        run=actions.write_while_migrating,
        note="the same with two disks in an old container; the guest writes to the one with a partial last block",
    ),
    Recording(
        name="xbzrle",
        disks=(Disk("drive0", 2 * MiB, options="if=ide"),),
        memory="16M",
        arguments=("-bios", SMALL_BIOS),
        running=True,
        capabilities=("xbzrle",),
        parameters={"downtime-limit": 1, "max-bandwidth": MiB},
        run=actions.dirty_memory,
        note="the guest keeps changing memory: RAM pages come again, as XBZRLE deltas",
    ),
    Recording(
        name="cancelled",
        disks=(Disk("drive0", 12 * MiB),),
        parameters={"downtime-limit": 0, "max-bandwidth": 8 * MiB},
        run=actions.cancel_half_way,
        status="cancelled",
        verdict="cancelled",
        note="migrate_cancel in the middle of bulk",
    ),
    Recording(
        name="read-error",
        disks=(Faulty("drive0", 24 * MiB),),
        status="failed",
        verdict="error",
        note="the source cannot read block 20: footer without EOS, then nothing",
    ),
    Recording(
        name="postcopy-ram",
        disks=ONE,
        capabilities=("postcopy_ram",),
        run=actions.with_return_path,
        note="commands 1, 2 and 3 before the first section",
    ),
    Recording(
        name="return-path",
        disks=ONE,
        capabilities=("return_path",),
        run=actions.with_return_path,
        note="commands 1 and 2; the source waits for SHUT",
    ),
    Recording(
        name="ignore-shared",
        disks=ONE,
        memory="16M",
        arguments=("-object", "memory-backend-file,id=ram,size=16M,mem-path=ram,share=on", "-M", "memory-backend=ram"),
        capabilities=("x_ignore_shared",),
        note="an address behind each RAM block of the list, a capability in the configuration",
    ),
    Recording(
        name="compress",
        disks=ONE,
        capabilities=("compress",),
        note="RAM pages compressed with zlib",
        arguments=("-bios", SMALL_BIOS),
    ),
    Recording(
        name="dirty-bitmaps",
        disks=ONE,
        capabilities=("dirty_bitmaps",),
        run=actions.with_bitmap,
        note="another live section between block and ram",
    ),
    Recording(
        name="validate-uuid",
        disks=ONE,
        capabilities=("validate_uuid",),
        arguments=("-uuid", "01234567-89ab-cdef-0123-456789abcdef"),
        note="a subsection in the configuration",
    ),
    Recording(
        name="blockdev-inline",
        disks=(Inline("", 2 * MiB, path="nameless.raw"),),
        note="one device with an empty name: its file is no node of its own",
    ),
    Recording(
        name="blockdev",
        disks=(Nameless("", 2 * MiB, path="nameless.qcow2"),),
        run=actions.blockdev,
        verdict="error",
        note="two devices with empty names: the guest's disk and the bytes of its qcow2 file",
    ),
    Recording(
        name="lossy",
        disks=(Disk("drive0", 40 * MiB),),
        parameters={},
        verdict="lossy",
        note="the default downtime-limit: QEMU 7.2 says completed, most of the disk was never sent",
    ),
    Recording(
        name="lossy-incremental",
        disks=(Image("drive0", 40 * MiB, path="drive0.qcow2"),),
        parameters={},
        incremental=True,
        run=actions.overwritten_overlay,
        verdict="lossy",
        note="the same with inc: no coverage tells, but the progress does",
    ),
]
