# SPDX-License-Identifier: GPL-2.0-or-later
"""What a caller hands over is looked at first: a slip is told at once, and not when a disk comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blkmig
from blkmig import errors, migration

FEW: list[dict[str, Any]] = [
    {"targets": [("a", "b")]},
    {"targets": 5},
    {"targets": []},
    {"targets": {5: "p"}},
    {"targets": {"a": 5}},
    {"targets": {"a": b"p"}},
    {"targets": {"a": "p\0"}},
    {"targets": {"a": None}},
    {"targets": {"\ud800": "p"}},
    {"targets": {"a" * 256: "p"}},
    {"by_index": {-1: "p"}},
    {"by_index": {"0": "p"}},
    {"by_index": {True: "p"}},
    {"by_index": {0.0: "p"}},
    {"by_index": {0: "\0"}},
    {"by_index": ["p"]},
    {"into": "\0"},
    {"into": b"d"},
    {"into": 5},
]


@pytest.mark.parametrize("asked", FEW, ids=repr)
def test_targets_that_nobody_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (blkmig.receive, blkmig.incoming):
        with pytest.raises(errors.ParameterError):
            call("file:nowhere", **asked)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("uri", [5, None, b"file:s", Path("s"), ["-"]], ids=repr)
def test_an_address_is_a_text(tmp_path: Path, uri: Any) -> None:
    with pytest.raises(errors.WrongType, match="address of a stream must be a text"):
        blkmig.receive(uri, {"a": tmp_path / "t"})
    with pytest.raises(errors.WrongType, match="address of a stream must be a text"):
        blkmig.send([blkmig.MemoryBackend(bytearray(1), name="d")], uri)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", [5, None, b"d.raw", "d\0.raw", ["d.raw"]], ids=repr)
def test_a_disk_is_a_path_or_a_backend(tmp_path: Path, source: Any) -> None:
    with pytest.raises(errors.ParameterError, match="a disk must be a path"):
        blkmig.send([source], f"file:{tmp_path}/s")
    assert not list(tmp_path.iterdir())


def test_who_is_told_is_a_function(tmp_path: Path) -> None:
    (tmp_path / "d.raw").write_bytes(b"x")
    told: Any = "print"
    with pytest.raises(errors.WrongType, match="on_progress must be a function, not 'print'"):
        blkmig.send([tmp_path / "d.raw"], f"file:{tmp_path}/s", on_progress=told)
    with pytest.raises(errors.WrongType, match="on_progress must be a function, not 'print'"):
        blkmig.receive(f"file:{tmp_path}/d.raw", {"d": tmp_path / "t"}, on_progress=told)
    assert [path.name for path in tmp_path.iterdir()] == ["d.raw"]


@pytest.mark.parametrize("disks", [["d.raw"], [5], [None], [{}]], ids=repr)
def test_a_migration_is_of_open_disks(tmp_path: Path, disks: Any) -> None:
    """It was an AttributeError, and only when it was entered."""
    calls = [
        lambda: blkmig.outgoing(disks, f"file:{tmp_path}/s"),
        lambda: migration.forecast(disks, blkmig.MigrationParameters(), seconds=0),
    ]
    for call in calls:
        with pytest.raises(errors.WrongType, match="is no open disk: open it first"):
            call()


@pytest.mark.parametrize("kind", ["MigrationParameters", "IncomingParameters"])
@pytest.mark.parametrize("given", [{}, [], 0, "", {"max_bandwidth": 5}, "other"], ids=repr)
def test_parameters_of_an_end_are_that_ends(tmp_path: Path, kind: str, given: Any) -> None:
    """An empty dict was taken for none, and a receiver took a sender's."""
    is_sent = kind == "MigrationParameters"
    if given == "other":
        given = blkmig.IncomingParameters() if is_sent else blkmig.MigrationParameters()
    disk = blkmig.MemoryBackend(bytearray(5), name="d")
    call = blkmig.outgoing if is_sent else blkmig.incoming
    words: Any = ([disk], f"file:{tmp_path}/s") if is_sent else ("file:s", {"d": "t"})
    with pytest.raises(errors.WrongType, match=f"the parameters must be {kind}, not"):
        call(*words, given)


class Misshapen(blkmig.MemoryBackend):
    """A disk whose class sets name and size as it likes."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(bytearray(512), name="d")
        vars(self).update(fields)


@pytest.mark.parametrize(
    "fields",
    [{"size": value} for value in (-5, None, "6M", 512.0, True, 1 << 63)]
    + [{"name": value} for value in (None, b"d", 5, "a" * 256, "\ud800")],
    ids=repr,
)
def test_a_disk_has_a_name_and_a_size(tmp_path: Path, fields: dict[str, Any]) -> None:
    """A7: one of fewer than no bytes was left out, and nothing was sent, with success."""
    with pytest.raises(errors.ParameterError):
        blkmig.send([Misshapen(**fields)], f"file:{tmp_path}/s")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "allow",
    [5, 0, False, b"10.0.0.0/8", b"", [5], [0], [None], [b"\n\0\0\0"], [("10.0.0.0", 8)], "10.0.0.0/8"],
    ids=repr,
)
def test_networks_are_texts(allow: Any) -> None:
    """Without any, every address may come: so did everybody for False and 0, and for b"". A number is an address."""
    with pytest.raises(errors.WrongType):
        blkmig.IncomingParameters(allow=allow)


@pytest.mark.parametrize("kind", [tuple, list, iter, np.array], ids=repr)
def test_any_list_of_networks(kind: Any) -> None:
    chosen = blkmig.IncomingParameters(allow=kind(["10.0.0.0/8", "::1"]))
    assert chosen.allow == ("10.0.0.0/8", "::1")


def test_numbers_that_no_poll_takes() -> None:
    with pytest.raises(errors.ParameterError, match="accept_timeout must be from 0 to"):
        blkmig.IncomingParameters(accept_timeout=1e7)
    with pytest.raises(errors.ParameterError, match="connections must be"):
        blkmig.MigrationParameters(connections=np.array([1, 2]))  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [{"seconds": -1}, {"seconds": 1e12}, {"seconds": float("inf")}, {"bandwidth": -1},
                                   {"bandwidth": float("inf")}], ids=repr)  # fmt: skip
def test_numbers_of_a_forecast(words: dict[str, float]) -> None:
    """Some were a ValueError or an OverflowError of the system's sleep."""
    disk = blkmig.MemoryBackend(bytearray(5), name="d")
    with pytest.raises(errors.ParameterError, match=f"{next(iter(words))} must be from 0 to"):
        migration.forecast([disk], blkmig.MigrationParameters(), **({"seconds": 0} | words))
