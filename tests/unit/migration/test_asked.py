# SPDX-License-Identifier: GPL-2.0-or-later
"""What a caller hands over is looked at first: a slip is told at once, and not when a disk comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import blkmig
from blkmig import errors

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
