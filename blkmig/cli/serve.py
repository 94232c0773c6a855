# SPDX-License-Identifier: GPL-2.0-or-later
"""``blkmig serve``, a live disk for people without a VM, and ``blkmig cleanup``, for what a killed blkmig left."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from .. import sources
from ..disk import identity
from ..migration import displays
from . import arguments, output

SERVE_EXAMPLES = (
    "blkmig serve vda=vda.qcow2,format=qcow2 --nbd unix:/run/vda.nbd",
    "blkmig serve vda=vda.raw --nbd tcp:127.0.0.1:10809 --qmp /run/vda.qmp",
)
CLEANUP_EXAMPLES = ("blkmig cleanup qemu:/run/vm.qmp",)


def add_command(commands: Any) -> None:
    """Add both commands to the command line."""
    serve = arguments.add_command(
        commands,
        "serve",
        run_serve,
        summary="offer images over NBD through a qemu-storage-daemon, ready to be sent while they are written",
        description="Runs until Ctrl-C. Clients write the NBD exports; the line that is printed sends the disks.",
        examples=SERVE_EXAMPLES,
    )
    serve.add_argument("images", nargs="+", metavar="NAME=IMAGE", help="an image, as vda=vda.qcow2,format=qcow2")
    serve.add_argument(
        "--nbd",
        required=True,
        type=arguments.word,
        metavar="ADDRESS",
        help="where clients connect: unix:PATH, tcp:HOST:PORT",
    )
    serve.add_argument("--qmp", type=arguments.word, metavar="PATH", help="the socket for blkmig, which must be said "
                       "with tcp: (default: that of --nbd with .qmp)")  # fmt: skip

    cleanup = arguments.add_command(
        commands,
        "cleanup",
        run_cleanup,
        summary="bring a QEMU back to work after a blkmig that was killed",
        description="Removes exports, bitmaps and limits, cancels a migration of QEMU's own that waits for its disks, "
        "and lets held writers go on. What belongs to a blkmig that is running stays.",
        examples=CLEANUP_EXAMPLES,
    )
    cleanup.add_argument("qemu", type=arguments.word, metavar="qemu:PATH", help="the QMP socket of the QEMU")
    cleanup.add_argument("--force", action="store_true", help="let the writers go on even if the target may own the "
                         "disks, after a --move whose end had left; cancel a migration of unknown origin")  # fmt: skip
    cleanup.add_argument("--connect-timeout", type=arguments.seconds, default=5.0, metavar="SECONDS",
                         help="how long QEMU may take to greet us (default: 5)")  # fmt: skip


def run_serve(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from ..sources import serve  # here, so that commands which do not need it start sooner

    served = []
    for text in args.images:
        name, image = arguments.named(text)
        described = sources.describe(image)
        files = [described.path] if described.base is None else [described.path, described.base]
        displays.check(f"image {image!r}", map(identity.KnownFile.of, files))
        served.append(serve.ServedDisk(pathlib.Path(described.path).stem if name is None else name, described))
    with serve.StorageDaemon(served, args.nbd, qmp=args.qmp) as daemon:
        for each in daemon.disks:
            output.put(f"{each.name}: {daemon.export_uri(each)}")
        output.put(f"send with: {daemon.send_line()}", flush=True)
        daemon.wait()
    return 0


def run_cleanup(args: argparse.Namespace) -> int:
    """Remove leftovers."""
    from .. import qemu

    if not qemu.cleanup(args.qemu, force=args.force, connect_timeout=args.connect_timeout, say=output.put):
        output.put("nothing was left")
    return 0
