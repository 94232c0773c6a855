# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the writers of a VM stand still for its disks, by the number of disks, none of which is written.

The pause is what the migration itself reports, from when it begins to hold the writers until they go on. Only what one
more disk costs is of interest here, so the disks are small, and the stream goes to a file.
"""

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
