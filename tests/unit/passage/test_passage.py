# SPDX-License-Identifier: GPL-2.0-or-later
"""How payloads travel: every combination of what is asked, against the tables in the documentation of the room."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

import blkmig
from blkmig import _core, params, passage
from blkmig.passage import receiving, sending

FLAGS = (False, True)


@dataclasses.dataclass
class Disk:
    """What a disk says of itself."""

    mapping: _core.Mapping | None = None
    is_written: bool = True
    reads_in_parallel: bool = False
    takes_pages: bool = False


@dataclasses.dataclass
class Channel:
    """What a channel says of itself."""

    takes_pages: bool = True
    keeps_pages: bool = False
    is_answered: bool = True
    is_local: bool = True
    is_sealed: bool = False


def tables(module: Any) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """Return the tables of a module's documentation: of each, the lines as (outcome, conditions)."""
    found: dict[str, list[tuple[str, dict[str, str]]]] = {}
    paragraphs = (inspect.getdoc(module) or "").split("::\n\n", 1)[1].split("\n\n")
    for paragraph in paragraphs:
        rows = [line.split() for line in paragraph.splitlines()]
        if len(rows) > 1 and len({len(row) for row in rows}) == 1:
            name, *columns = rows[0]
            found[name] = [(row[0], dict(zip(columns, row[1:], strict=True))) for row in rows[1:]]
    return found


def look_up(table: list[tuple[str, dict[str, str]]], facts: dict[str, str]) -> str:
    """Return the outcome of the first line that fits."""
    for outcome, conditions in table:
        if all(wanted in ("-", facts[column]) for column, wanted in conditions.items()):
            return outcome
    raise AssertionError(f"no line fits {facts}")


def word(fact: bool) -> str:
    return "yes" if fact else "no"


def every_disk(mapping: _core.Mapping) -> Iterator[Disk]:
    for is_file, is_written, in_parallel in itertools.product(FLAGS, repeat=3):
        yield Disk(mapping if is_file else None, is_written, in_parallel)


def every_choice() -> Iterator[tuple[params.MigrationParameters, bool]]:
    """Yield parameters, and whether only top layers are sent."""
    for reading in ("auto", "inline", "parallel"):
        for writers_after in ("release", "refuse"):
            for digests, qemu, layers in itertools.product(FLAGS, repeat=3):
                chosen: dict[str, Any] = {"reading": reading, "writers_after": writers_after}
                yield params.MigrationParameters(digests=digests, qemu=qemu, **chosen), layers


@pytest.fixture
def mapping() -> _core.Mapping:
    return _core.Mapping(-1, 0)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_every_departure(mapping: _core.Mapping, count: int) -> None:
    known, seen = tables(sending), set()
    assert known.keys() == {"checked", "compressed", "payload", "reading", "runs", "told"}
    channels = [Channel(*facts) for facts in itertools.product(FLAGS, repeat=5)]
    for (parameters, layers), f, offered in itertools.product(every_choice(), channels, FLAGS):
        for disks in itertools.product(every_disk(mapping), repeat=count):
            facts = {
                "offered": word(offered),
                "files": word(all(disk.mapping is not None for disk in disks)),
                "steady": word(parameters.writers_after == "refuse" or not any(disk.is_written for disk in disks)),
                "pages": word(f.takes_pages),
                "kept": word(f.keeps_pages),
                "word": word(f.is_answered),
                "asked": parameters.reading,
                "latency": word(any(disk.reads_in_parallel for disk in disks)),
                "layers": word(layers),
                "local": word(f.is_local),
                "sealed": word(f.is_sealed),
                "qemu": word(parameters.qemu),
            }
            checked = look_up(known["checked"], facts)
            facts["hashed"] = word(parameters.digests or checked == "yes")
            facts["payload"] = look_up(known["payload"], facts)
            facts["reading"] = look_up(known["reading"], facts)
            runs, told = look_up(known["runs"], facts), look_up(known["told"], facts)
            decided = passage.departure(disks, f, parameters, shared_base=layers, can_check=offered)  # type: ignore[arg-type]
            assert decided == passage.Departure(
                payload=facts["payload"],  # type: ignore[arg-type]
                reading=facts["reading"],  # type: ignore[arg-type]
                runs=runs == "yes",
                told=told == "yes",
                checked=checked == "yes",
                compressed="no",
            ), facts
            check_borrowed_bytes(decided, disks, f, parameters)
            seen.add((decided.payload, decided.reading, decided.runs, decided.told))
    assert len(seen) == 15, "some decision is never made"


def test_every_way_to_compress() -> None:
    """Where payloads are compressed, they are looked at; where the target cannot, nothing is as it was not before."""
    known, seen = tables(sending), set()
    for facts in itertools.product(FLAGS, repeat=5):
        f = Channel(*facts)
        for wanted, taken, offered in itertools.product(("auto", "off", "zstd"), FLAGS, FLAGS):
            parameters = params.MigrationParameters(compress=wanted)  # type: ignore[arg-type]
            said = {"offered": word(offered), "local": word(f.is_local), "sealed": word(f.is_sealed)}
            checked = look_up(known["checked"], said)
            said |= {"checked": checked, "wanted": wanted, "taken": word(taken)}
            compressed = look_up(known["compressed"], said)
            said |= {"hashed": word(checked == "yes" or compressed != "no"), "files": "yes", "steady": "yes"}
            said |= {"pages": word(f.takes_pages), "word": word(f.is_answered), "kept": word(f.keeps_pages)}
            decided = passage.departure([], f, parameters, shared_base=False, can_check=offered, can_compress=taken)
            assert (decided.compressed, decided.payload) == (compressed, look_up(known["payload"], said)), said
            assert not (compressed != "no" and decided.runs)
            seen.add(compressed)
    assert seen == {"no", "bare", "checked"}


def check_borrowed_bytes(
    decided: passage.Departure, disks: tuple[Disk, ...], f: Channel, parameters: params.MigrationParameters
) -> None:
    """A1, A2: pages are lent where a word comes back, and nobody of ours writes before it."""
    if decided.payload == "lent":
        assert f.is_answered
        assert not any(disk.is_written for disk in disks) or parameters.writers_after == "refuse"
        assert not parameters.digests


def test_runs_are_sent_from_what_is_one_file(mapping: _core.Mapping) -> None:
    file, other = Disk(mapping), Disk()
    decided = passage.departure([file, other], Channel(), params.MigrationParameters(), shared_base=False)  # type: ignore[list-item]
    assert decided.runs
    assert decided.runs_from(file) is mapping  # type: ignore[arg-type]
    assert decided.runs_from(other) is None  # type: ignore[arg-type]
    assert passage.Departure("own", "inline", False, False, False).runs_from(file) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("takes_pages", FLAGS)
def test_every_arrival(takes_pages: bool) -> None:
    (table,) = tables(receiving).values()
    expected = look_up(table, {"pages": word(takes_pages)})
    assert passage.arrival(Disk(takes_pages=takes_pages)) == passage.Arrival(expected)  # type: ignore[arg-type]


def test_decisions_are_frozen() -> None:
    for decided in (passage.Arrival("moved"), passage.Departure("own", "inline", False, False, False)):
        with pytest.raises(AttributeError):
            decided.payload = "piped"  # type: ignore[misc,assignment]


def test_a_buffer_is_of_one_kind() -> None:
    for kind in ("own", "mapped", "lent", "given", "moved", "piped"):
        blk = _core.BlockBuffer(kind)
        assert blk.kind == kind
        assert blk.is_movable == (kind in ("moved", "piped"))
        with pytest.raises(AttributeError):
            blk.kind = "own"  # type: ignore[misc]
    assert _core.BlockBuffer().kind == "mapped"
    with pytest.raises(ValueError, match="one of own, mapped"):
        _core.BlockBuffer("borrowed")  # type: ignore[arg-type]


def test_what_a_disk_says_unless_it_knows_better() -> None:
    """Nothing that would have bytes lent, or pages stored."""
    disk = blkmig.MemoryBackend(bytearray(512), name="m")
    assert (disk.mapping, disk.is_written, disk.reads_in_parallel, disk.takes_pages) == (None, True, False, False)
