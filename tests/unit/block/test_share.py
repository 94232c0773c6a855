# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose pages may go into the channel, and when the receiver is told: the first EOS, in bits that QEMU ignores."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

import blkmig
from blkmig import _core, block, channel
from blkmig.block import wire
from blkmig.channel import link

MIB = 1 << 20


@dataclasses.dataclass
class Channel:
    """What `save_setup` uses of a channel."""

    takes_pages: bool = True
    keeps_pages: bool = False
    is_answered: bool = True
    is_sealed: bool = False
    is_local: bool = True
    is_shared: bool = False
    words: list[int] = dataclasses.field(default_factory=list)

    def share_pages(self) -> bool:
        self.is_shared = self.takes_pages
        return self.is_shared

    def put_be64(self, word: int) -> None:
        self.words.append(word)


def set_up(disks: list[blkmig.BlockBackend], f: Channel, **parameters: Any) -> tuple[bool, int]:
    """Return whether pages are shared, and the hint in the EOS."""
    handlers = block.BlockSaveHandlers(disks, blkmig.MigrationParameters(**parameters))
    handlers.save_setup(f)  # type: ignore[arg-type]
    handlers.save_cleanup()
    (word,) = f.words
    assert word % _core.SECTOR_SIZE == _core.FLAG_EOS
    return f.is_shared, word >> _core.SECTOR_BITS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "d.raw"
    path.write_bytes(b"x" * MIB)
    return path


@pytest.mark.parametrize(
    ("writable", "parameters", "expected"),
    [
        (False, {}, (True, 1)),
        (True, {}, (False, 0)),  # its writers go on while pages stand in the channel
        (True, {"writers_after": "refuse"}, (True, 1)),
        (False, {"digests": True}, (False, 0)),
        (False, {"qemu": True}, (True, 0)),  # sharing is the sender's gain alone
    ],
)
def test_a_file(path: Path, writable: bool, parameters: dict[str, Any], expected: tuple[bool, int]) -> None:
    with blkmig.FileBackend(path, writable=writable) as disk:
        assert set_up([disk], Channel(), **parameters) == expected
        assert set_up([disk], Channel(is_local=False), **parameters) == (expected[0], 0)
        assert set_up([disk], Channel(takes_pages=False), **parameters) == (False, 0)


def test_one_disk_that_is_no_file_is_enough(path: Path) -> None:
    memory = blkmig.MemoryBackend(bytearray(MIB), name="m")
    with blkmig.FileBackend(path, writable=False) as disk:
        assert set_up([disk, memory], Channel(), writers_after="refuse") == (False, 0)


def test_an_overlay_is_no_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "top.raw").write_bytes(bytes(MIB))
    with blkmig.FileBackend(tmp_path / "top.raw", base=path, writable=False) as disk:
        assert set_up([disk], Channel()) == (False, 0)


def test_the_receiver_expects_pages_when_told() -> None:
    class Source:
        position, expects = 0, False

        def next_run(self) -> tuple[int, bytes, int, int]:
            return _core.FLAG_EOS, b"", wire.SHARES_PAGES, 1

        def expect_pages(self) -> None:
            self.expects = True

    source = Source()
    block.BlockLoadHandlers(lambda *_: pytest.fail("no disk")).load_state(source, 1)  # type: ignore[arg-type]
    assert source.expects


def test_who_is_local() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert link.is_local(one)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not link.is_local(listener)  # nobody is at the other end
        with socket.create_connection(listener.getsockname()) as sock:
            assert link.is_local(sock)


def test_a_command_may_lead_anywhere(tmp_path: Path) -> None:
    with channel.Connector("exec:cat >/dev/null").connect(timeout=10) as f:
        assert not f.is_local
