# SPDX-License-Identifier: GPL-2.0-or-later
"""What a sender of an NBD export leaves for who comes after a kill: in the folder of state_dir, by the export's URI."""

from __future__ import annotations

from pathlib import Path

import lab
import nbd_servers
import pytest

import blkmig
from blkmig import errors, savevm
from blkmig.migration import keyfile, note
from blkmig.nbd.backend import NbdBackend

KNOWN = keyfile.Known(bytes(range(16)), savevm.FIRST_INCARNATION)


@pytest.fixture(autouse=True)
def library() -> None:
    nbd_servers.require_libnbd()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def test_the_key_of_a_session(state: Path) -> None:
    """It is found by the same export, and by none of another server."""
    with nbd_servers.nbdkit("memory", "1M") as one, nbd_servers.nbdkit("memory", "1M") as other:
        with NbdBackend(one.uri, writable=False) as disk:
            file = keyfile.KeyFile(str(state))
            file.begin([disk], KNOWN)
            file.close()
            assert [path.name.endswith(".source.blkmig") for path in state.iterdir()] == [True]
        with NbdBackend(other.uri, writable=False) as disk:
            assert keyfile.KeyFile(str(state)).find([disk]) is None
        with NbdBackend(one.uri, writable=False) as disk:
            assert keyfile.KeyFile(None).find([disk]) is None
            file = keyfile.KeyFile(str(state))
            assert file.find([disk]) == keyfile.Known(KNOWN.key, 2)
            file.remove()
    assert not list(state.iterdir())


def test_a_move_is_noted(state: Path, tmp_path: Path) -> None:
    with nbd_servers.nbdkit("memory", "1M") as server:
        seen: set[str] = set()
        receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "d.raw"})
        with NbdBackend(server.uri, name="d") as disk:
            blkmig.send(
                [disk],
                receiver.uri,
                writers_after="refuse",
                state_dir=state,
                on_progress=lambda _: seen.update(path.name for path in state.iterdir()),
            )
        receiver.result()
        assert {name.endswith(".source.blkmig") for name in seen} == {True, False}
        assert not list(state.iterdir())


def test_a_move_that_may_have_happened_is_refused(state: Path) -> None:
    with nbd_servers.nbdkit("memory", "1M") as server, NbdBackend(server.uri, name="d") as disk:
        left = note.Note(str(state))
        left.begin([disk])
        with left.standing(1, lambda: True):
            pass
        left.close()
        with pytest.raises(errors.InDoubt, match="may have moved"):
            note.Note(str(state)).look([disk])
        note.Note(None).look([disk])
