# SPDX-License-Identifier: GPL-2.0-or-later
"""The description at a stream's end holds anything, well sealed or not: an error of the tree, or the disks it names."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import lab
import pytest
import savevm_streams as streams

import blkmig
from blkmig import errors, migration
from blkmig.channel import listen
from blkmig.savevm import vmdescription

MIB = lab.MIB
SIZES = {"a": 2 * MIB + 700, "b": 512}
STRANGE: list[Any] = [None, True, 0, -1, 1, 1 << 62, 1 << 64, 1e300, "", "a", "\ud800", "x" * 300, [], [1, 2], {}, [[]]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    """A stream up to its end of file, and its description."""
    disks = [blkmig.MemoryBackend(bytearray(size), name=name) for name, size in SIZES.items()]
    data = lab.record(tmp_path_factory.mktemp("stream"), [*disks], digests=True)
    start = data.rindex(b'\0\6\0\0') + 1
    about = json.loads(data[start + 5 :])
    del about["checksum"]
    return data[:start], about


def outcome(folder: Path, data: bytes, note: str) -> dict[str, int] | None:
    """Receive and inspect; return the sizes of what was made, None for an error of the tree."""
    (folder / "stream").write_bytes(data)
    with listen(f"file:{folder}/stream") as listener:
        migration.as_json(migration.inspect(listener.accept(timeout=None)))
    into = folder / "into"
    try:
        blkmig.receive(f"file:{folder}/stream", into=into, overwrite=True, verify=bool(len(data) % 2))
    except errors.MigrationError:
        return None
    except Exception as error:
        error.add_note(note)
        raise
    made = {path.stem: path.stat().st_size for path in into.iterdir()}
    for path in into.iterdir():
        path.unlink()
    return made


def mutate(rng: random.Random, value: Any) -> Any:
    """Return JSON like `value`, with something else somewhere in it."""
    if rng.random() < 0.2 or not isinstance(value, dict | list) or not value:
        return rng.choice(STRANGE)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        kind = rng.randrange(3)
        middle = [mutate(rng, value[place])] if kind == 0 else [value[place]] * (2 * (kind - 1))
        return value[:place] + middle + value[place + 1 :]
    key = rng.choice(list(value))
    if rng.random() < 0.3:
        return {other: item for other, item in value.items() if other != key}
    return {**value, key: mutate(rng, value[key])}


@pytest.mark.parametrize("seed", range(6))
def test_well_sealed_nonsense(tmp_path: Path, recorded: tuple[bytes, dict[str, Any]], seed: int) -> None:
    head, about = recorded
    rng = random.Random(seed)
    for number in range(25):
        value = {**about, "blkmig": mutate(rng, about["blkmig"])} if rng.random() < 0.9 else mutate(rng, about)
        text = json.dumps(value, separators=(",", ":")).encode()
        text = vmdescription.seal(text) if text.endswith(b"}") and len(text) > 2 else text
        made = outcome(tmp_path, head + streams.description(text), f"seed {seed}, description {number}")
        assert made is None or set(made) == set(SIZES), f"seed {seed}, description {number}: {text!r}"


@pytest.mark.parametrize("seed", range(6))
def test_texts_that_are_damaged(tmp_path: Path, recorded: tuple[bytes, dict[str, Any]], seed: int) -> None:
    """A6: bytes changed, taken out and put in; the seal finds all of it, and so the stream is never a success."""
    head, about = recorded
    rng = random.Random(seed)
    text = vmdescription.seal(json.dumps(about, separators=(",", ":")).encode())
    for number in range(25):
        damaged = bytearray(text)
        for _ in range(rng.choice([1, 1, 2, 9])):
            place = rng.randrange(len(damaged))
            damaged[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        note = f"seed {seed}, text {number}"
        data = head + streams.description(bytes(damaged))
        assert bytes(damaged) == text or outcome(tmp_path, data, note) is None, note


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b'{"blkmig":1}', b'{"a":' * 2000, b"\xff{}", b'{"blkmig":{"disks":[]}}']
)
def test_descriptions_of_somebody_else(tmp_path: Path, recorded: tuple[bytes, dict[str, Any]], text: bytes) -> None:
    """The stream began with the mark of a description of ours: another one is none."""
    assert outcome(tmp_path, recorded[0] + streams.description(text), repr(text)) is None


def test_what_parsing_takes_is_never_more_than_was_estimated() -> None:
    """C4: the estimate is an upper bound, for what is made of the smallest pieces there are."""
    import tracemalloc

    count = 20_000
    pieces = (b"{}", b'{"a":1}', b"[]", b"9", b"999", b"1.5", b'"ab"', b'"\\u1234x"', b"null", b'{"name":"x","size":7}')
    for piece in pieces:
        text = b'{"a":[' + b",".join([piece] * count) + b"]}"
        tracemalloc.start()
        state, value = vmdescription.parse_vmdescription(text)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (state, value is not None) == ("read", True)
        assert peak <= vmdescription.parse_cost(text) + 3 * len(text), piece
    keys = b"{" + b",".join(b'"%x":1' % number for number in range(count)) + b"}"
    tracemalloc.start()
    vmdescription.parse_vmdescription(keys)
    assert tracemalloc.get_traced_memory()[1] <= vmdescription.parse_cost(keys) + 3 * len(keys)
    tracemalloc.stop()
