# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that one stream cannot carry are refused before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

import blkmig
from blkmig import block, errors
from blkmig.block import wire


def disks(count: int, size: int = 512) -> list[blkmig.MemoryBackend]:
    return [blkmig.MemoryBackend(bytearray(size), name=f"d{number}") for number in range(count)]


@pytest.mark.parametrize("format", ["block", "blkmig"])
def test_as_many_disks_as_a_receiver_takes(tmp_path: Path, format: str) -> None:
    sources, targets = disks(wire.MAX_DISKS), disks(wire.MAX_DISKS)
    blkmig.send(sources, f"file:{tmp_path}/stream", format=format)
    assert len(blkmig.receive(f"file:{tmp_path}/stream", {disk.name: disk for disk in targets}).disks) == wire.MAX_DISKS


def test_one_more_is_refused(tmp_path: Path) -> None:
    """A7: up to 1023 were sent into a file, with success, and nothing could read it."""
    with pytest.raises(errors.ParameterError, match=r"at most 256 disks, .* not 257: send them in several migrations"):
        blkmig.send(disks(wire.MAX_DISKS + 1), f"file:{tmp_path}/stream")
    assert not list(tmp_path.iterdir())


def test_what_has_no_block_does_not_count() -> None:
    for more, parameters in ((disks(1, 0), {}), (disks(1), {"qemu": True})):  # a QEMU takes any number
        chosen = [*disks(wire.MAX_DISKS), *(blkmig.MemoryBackend(bytearray(each.size), name="more") for each in more)]
        block.DiskChoice(chosen, blkmig.MigrationParameters(**parameters)).check()


def test_a_machine_s_name_is_no_longer_than_a_receiver_takes(tmp_path: Path) -> None:
    blkmig.send(disks(1), f"file:{tmp_path}/stream", machine="ü" * 2048)
    blkmig.receive(f"file:{tmp_path}/stream", {"d0": disks(1)[0]})
    with pytest.raises(errors.ParameterError, match="machine must have 4096 bytes at most"):
        blkmig.MigrationParameters(machine="ü" * 2049)
