# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the writers of a QEMU stand still for its disks, by the number of disks: none is written, or all are.

The pause is what the migration itself reports, from when it begins to hold the writers until they go on. Only what one
more disk costs is of interest here, so the disks are small, and the stream goes to a file.
"""

import functools
import tempfile
from pathlib import Path

import pytest
from harness import images, many

from blkmig import gates

COUNTS = (1, 10, 40, 100)


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="disks-") as path:  # short enough for sockets
        yield Path(path)


def test_pause(ratio, quick, folder):
    """The pause of one idle disk against that of 10, 40 and 100."""
    if reason := many.missing():
        raise images.CannotRunHere(reason)
    with many.scenes(folder, COUNTS[:3] if quick else COUNTS) as running:
        sides = {f"{count} disks": gates.Side(scene.pause) for count, scene in running.items()}
        ratio(sides, group="pause, by idle disks of one VM", min_rounds=9, max_rounds=9)


def test_pause_of_written_disks(ratio, quick, folder):
    """The pause of one disk of a storage daemon that is written all the time against that of 10 and 40."""
    if reason := many.missing(many.DAEMON):
        raise images.CannotRunHere(reason)
    counts = COUNTS[:2] if quick else COUNTS[:3]
    sides = {f"{count} disks": gates.Side(functools.partial(many.pause_of_written, folder, count)) for count in counts}
    ratio(sides, group="pause, by written disks of one daemon", min_rounds=5, max_rounds=5)
