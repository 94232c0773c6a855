# SPDX-License-Identifier: GPL-2.0-or-later
"""``blkmig serve``, a live disk for people without a VM, and ``blkmig cleanup``, for what a killed blkmig left."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from .. import disk
from . import arguments


def add_command(commands: Any) -> None:
    """Add both commands to the command line."""
    serve = arguments.add_command(
        commands,
        "serve",
        run_serve,
        summary="offer images over NBD through a qemu-storage-daemon, ready to be sent while they are written",
        description="Runs until Ctrl-C. Clients write the NBD exports; the line that is printed sends the disks.",
    )
    serve.add_argument("images", nargs="+", metavar="NAME=IMAGE", help="an image, as vda=vda.qcow2,format=qcow2")
    serve.add_argument(
        "--nbd", required=True, metavar="ADDRESS", help="where clients connect: unix:PATH, tcp:HOST:PORT"
    )
    serve.add_argument("--qmp", metavar="PATH", help="the socket for blkmig (default: that of --nbd with .qmp)")

    cleanup = arguments.add_command(
        commands, "cleanup", run_cleanup, summary="remove what a killed blkmig left in a running QEMU"
    )
    cleanup.add_argument("qemu", metavar="qemu:PATH", help="the QMP socket of the QEMU")


def run_serve(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from ..disk import serve  # what only some commands need is imported by them: the others start sooner

    served = []
    for text in args.images:
        name, image = arguments.named(text)
        described = disk.describe(image)
        served.append(serve.ServedDisk(pathlib.Path(described.path).stem if name is None else name, described))
    with serve.StorageDaemon(served, args.nbd, qmp=args.qmp) as daemon:
        for each in daemon.disks:
            print(f"{each.name}: {daemon.export_uri(each)}")
        print(f"send with: {daemon.send_line()}", flush=True)
        daemon.wait()
    return 0


def run_cleanup(args: argparse.Namespace) -> int:
    """Remove leftovers."""
    from ..disk import qemu

    removed = qemu.cleanup(args.qemu)
    for what in removed:
        print(what)
    if not removed:
        print("nothing was left")
    return 0
