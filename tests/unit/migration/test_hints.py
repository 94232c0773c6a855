# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said of a link that broke, and of a migration that did not converge, is true of the one that it was (E13)."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

import blkmig
from blkmig import errors, params
from blkmig.migration import connection

MIB = 1 << 20


def hint(**options: bool | None) -> str:
    return connection.Connection("tcp:a:1", None, **options)._hint()  # type: ignore[arg-type]


def test_what_a_qemu_may_lack_is_told_of_what_may_be_a_qemu() -> None:
    """E13: with --qemu as a fact, else as a possibility, and not at all of a blkmig."""
    assert "a QEMU that goes away has no drive of that id" in hint(is_qemu=True)
    assert "if it is a QEMU, it has no drive of that id" in hint()
    assert hint(is_qemu=False) == "look at the target's messages"


def test_who_says_pong_unasked_is_no_qemu() -> None:
    """E13: a blkmig that flushes gives signs of life; a QEMU answers PINGs alone."""
    link = connection.Connection("tcp:a:1", None)  # type: ignore[arg-type]
    link._barriers = 1
    assert link._is_answer(connection.BARRIER_PING + 1)
    assert not link._is_answer(7)
    link._is_no_qemu()
    assert "QEMU" not in link._hint()


@pytest.mark.parametrize("content", [b"\0", b"x"])
def test_a_bulk_phase_that_takes_too_long_is_told_as_one(tmp_path: Path, content: bytes) -> None:
    """E20: where nothing but zeros was read, the link carries nothing, and more bandwidth does not help."""
    ticks = itertools.count()
    disk = blkmig.MemoryBackend(bytearray(content * 64 * MIB), name="d")
    migration = blkmig.OutgoingMigration(
        [disk],
        f"file:{tmp_path}/s",
        params.MigrationParameters(timeout=5.0),
        clock=lambda: next(ticks) * 0.25,
    )
    with pytest.raises(errors.NotConverged, match="the disks were not read once in that time") as caught, migration:
        migration.run()
    assert bool(re.search("bandwidth|the link carries", str(caught.value))) == (content == b"x")
