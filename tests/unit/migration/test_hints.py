# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said of a link that broke, and of a migration that did not converge, is true of the one that it was (E13)."""

from __future__ import annotations

import itertools
import re
import socket
from pathlib import Path

import pytest
import return_paths

import blkmig
from blkmig import errors, params, savevm
from blkmig.migration import connection, questions

MIB = 1 << 20


def hint(link: connection.Connection) -> str:
    """Return what is said of a link that breaks, behind where that was."""
    with pytest.raises(errors.ChannelError) as caught, link.explaining_errors():
        raise errors.ChannelError("sending", uri="tcp:a:1", cause="Broken pipe")
    return str(caught.value).removeprefix("sending: Broken pipe [tcp:a:1]; ")


def hint_of(**options: bool | None) -> str:
    return hint(connection.Connection("tcp:a:1", return_paths.no_blocks("block"), **options))


def test_what_a_qemu_may_lack_is_told_of_what_may_be_a_qemu() -> None:
    """E13: with --qemu as a fact, else as a possibility, and not at all of a blkmig."""
    assert "a QEMU that goes away has no drive of that id" in hint_of(is_qemu=True)
    assert "if it is a QEMU, it has no drive of that id" in hint_of()
    assert hint_of(is_qemu=False) == "look at the target's messages"


def test_who_says_pong_unasked_is_no_qemu() -> None:
    """E13: a blkmig that flushes gives signs of life; a QEMU answers PINGs alone."""
    for value, may_be_qemu in ((questions.BARRIER_PING + 1, True), (savevm.ASK_TREES, True), (7, False)):
        with return_paths.linked() as (link, target):
            asked = questions.Questions(link, return_paths.no_blocks("block"))
            asked.begin_barrier(savevm.SaveState())
            target.sendall(return_paths.message(return_paths.PONG, value))
            asked.check_target()
            target.shutdown(socket.SHUT_RDWR)
            assert ("QEMU" in hint(link)) is may_be_qemu


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
