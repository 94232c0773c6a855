# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands behind the end of a stream in a file, or comes behind it in a pipe, is told; the disks are complete."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import command
import golden_streams
import lab
import pytest

import blkmig

MIB = lab.MIB
CONTENT = lab.random_disk(random.Random(3), 2 * MIB + 512)


@pytest.fixture(params=["block", "blkmig"])
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    disk = lab.sparse_file(tmp_path / "a.raw", CONTENT)
    blkmig.send([str(disk)], f"file:{tmp_path}/stream", format=request.param)
    return tmp_path / "stream"


def received(uri: str, target: Path) -> list[str]:
    """Receive a stream, whose disk is whole whatever follows it; return what is noted."""
    result = blkmig.receive(uri, {"a": target})
    assert target.read_bytes() == CONTENT
    return result.notes


def inspected(stream: Path) -> tuple[str, int | None]:
    """Return the reason of the verdict, which is good, and where something follows."""
    shown = command.run("inspect", "--json", stream).result
    assert shown["verdict"] == "complete"
    return shown["reason"], shown["container"]["behind"]


def test_nothing_follows(stream: Path, tmp_path: Path) -> None:
    assert received(f"file:{stream}", tmp_path / "copy.raw") == []
    assert inspected(stream)[1] is None


@pytest.mark.parametrize("nbytes", [1, 511, 3 * MIB])
def test_zeros_are_padding(stream: Path, tmp_path: Path, nbytes: int) -> None:
    with stream.open("ab") as file:
        file.write(bytes(nbytes))
    assert received(f"file:{stream}", tmp_path / "copy.raw") == []
    assert inspected(stream)[1] is None


@pytest.mark.parametrize("padding", [0, 1, 4096, 3 * MIB])
@pytest.mark.parametrize("more", [b"x", b"QEV", os.urandom(70_000) + b"x"])
def test_damage_is_told(stream: Path, tmp_path: Path, padding: int, more: bytes) -> None:
    end = stream.stat().st_size
    more = b"y" + more
    with stream.open("ab") as file:
        file.write(bytes(padding) + more)
    (note,) = received(f"file:{stream}", tmp_path / "copy.raw")
    assert f"behind the end of the stream, at byte {end + padding}" in note
    assert "another stream" not in note
    reason, position = inspected(stream)
    assert position == end + padding
    assert note in reason


def test_another_stream_is_named_so_that_it_is_received(stream: Path, tmp_path: Path) -> None:
    second = stream.with_name("with,comma")
    second.write_bytes(b"head" + stream.read_bytes() * 2)
    at = 4 + stream.stat().st_size
    (note,) = received(f"file:{tmp_path}/with,,comma,offset=4", tmp_path / "copy.raw")
    uri = f"file:{tmp_path}/with,,comma,offset={at}"
    assert note.endswith(f"more follows, which was not read: another stream, {uri}")
    assert received(uri, tmp_path / "second.raw") == []


@pytest.mark.parametrize("name", ["devices", "q35"])
def test_behind_the_state_of_devices(tmp_path: Path, name: str) -> None:
    """Of a real QEMU's stream: its description proves where it ends."""
    data = golden_streams.unpack(name)
    for more, expected in ((b"", None), (bytes(700), None), (bytes(700) + b"x" * 300_000, len(data) + 700)):
        (tmp_path / "stream").write_bytes(data + more)
        shown = command.run("inspect", "--json", tmp_path / "stream")
        about = json.loads(shown.stdout)["container"]
        assert (about["behind"], about["nbytes"]) == (expected, len(data))


@pytest.mark.parametrize("line", ["receive - <both", "receive 'exec:cat both'", "receive - < <(cat both)"])
def test_the_command_line_says_it(stream: Path, line: str) -> None:
    stream.with_name("both").write_bytes(stream.read_bytes() * 2)
    verb, rest = line.split(" ", 1)
    words = " ".join(command.command(verb, "--progress=none"))
    uri, _, redirected = rest.partition(" <")
    done = subprocess.run(
        ["bash", "-c", f"{words} {uri} a=copy.raw" + f" <{redirected}" * bool(redirected)],
        cwd=stream.parent,
        env=command.environment(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"more follows, which was not read: another stream" in done.stderr
    assert stream.with_name("copy.raw").read_bytes() == CONTENT
