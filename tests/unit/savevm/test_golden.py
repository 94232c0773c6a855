# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams of the real QEMU 7.2: the container is read to its last byte, and everything but the disks is skipped."""

from __future__ import annotations

import json
import lzma
import pathlib
from typing import Any

import pytest
import savevm_streams as streams

from blkmig import channel, errors, savevm
from blkmig.savevm import drain

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
RECORDINGS: list[dict[str, Any]] = json.loads((GOLDEN / "manifest.json").read_text())
BY_NAME = {recording["name"]: recording for recording in RECORDINGS}
ENDED = [r for r in RECORDINGS if r["status"] == "completed"]
BROKEN = [r for r in RECORDINGS if r["status"] != "completed"]
BLOCK_SIZE = 1 << 20


def names(recordings: list[dict[str, Any]]) -> list[str]:
    return [recording["name"] for recording in recordings]


def golden(name: str) -> bytes:
    with lzma.open(GOLDEN / f"{name}.stream.xz") as file:
        return file.read()


class BlockCounter(savevm.SaveVMHandlers):
    """Reads the `block` section word by word, counts the blocks of each disk and keeps none."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, int] = {}

    def load_state(self, f: channel.InputQEMUFile, version_id: int) -> None:
        while True:
            if savevm.looks_like_footer(f):
                raise errors.SourceReadError("a footer instead of a record", position=f.position)
            flags = f.get_be64() & 511
            if flags & 1:
                name = f.get_buffer(f.get_byte())
                f.skip(0 if flags & 8 else BLOCK_SIZE)
                self.blocks[name] = self.blocks.get(name, 0) + 1
            elif flags & 2:
                return
            elif flags != 4:
                raise errors.StreamError(f"flags {flags}", position=f.position)


class TileObserver(savevm.StreamObserver):
    """Checks that the records follow each other without a gap, and keeps where the last one ended."""

    def __init__(self) -> None:
        self.position: int | None = None
        self.counts: dict[str, int] = {}
        self.device_nbytes = 0
        self.eof_position = -1

    def begin(self, position: int) -> None:
        if self.position is not None:
            assert position == self.position
        self.position = None

    def configuration(self, configuration: savevm.Configuration, position: int) -> None:
        assert position == 8

    def command(self, command: int, nbytes: int, position: int) -> None:
        self.begin(position)
        self.position = position + 5 + nbytes

    def section_start(
        self, kind: str, idstr: str, instance_id: int, version_id: int, section_id: int, position: int
    ) -> None:
        self.begin(position)
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def section_end(self, section_id: int, position: int) -> None:
        self.position = position

    def device_state(self, nbytes: int, position: int) -> None:
        self.device_nbytes = nbytes
        self.position = position + nbytes

    def eof(self, position: int) -> None:
        self.begin(position)
        self.eof_position = position
        self.position = position + 1

    def vmdescription(self, description: dict[str, Any] | None, nbytes: int, position: int) -> None:
        self.begin(position)
        self.position = position + 5 + nbytes


def load(data: bytes) -> tuple[savevm.LoadedStream, BlockCounter, TileObserver]:
    counter, tiles = BlockCounter(), TileObserver()
    return streams.load(data, counter, observer=tiles), counter, tiles


@pytest.mark.parametrize("name", names(ENDED))
def test_the_container_is_read_to_its_last_byte(name: str) -> None:
    recording = BY_NAME[name]
    data = golden(name)
    loaded, counter, tiles = load(data)
    assert loaded.reached_eof
    assert loaded.nbytes == tiles.position == len(data)
    assert [info.idstr for info in loaded.sections][:2] == ["block", "ram"]
    assert all(info.ended for info in loaded.sections)
    assert {disk["name"].encode() for disk in recording["disks"]} == set(counter.blocks)
    assert tiles.counts["FULL"] == 1
    assert loaded.drained_bytes == tiles.device_nbytes > 10000


@pytest.mark.parametrize("name", names(ENDED))
def test_configuration_footers_and_description_are_detected(name: str) -> None:
    machine = BY_NAME[name]["machine"]
    loaded, _, _ = load(golden(name))
    old = machine.endswith(("-2.2", "-2.3"))
    assert loaded.machine == (None if old else machine)
    assert loaded.has_footers is not old
    assert (loaded.vmdescription is None) == machine.endswith("-2.2")
    assert loaded.page_size == 4096


@pytest.mark.parametrize("name", names(ENDED))
def test_device_state_is_as_long_as_the_description_says(name: str) -> None:
    """The sizes in the description add up to exactly what was drained: so the end was found, not guessed."""
    loaded, _, _ = load(golden(name))
    if loaded.vmdescription is None:
        pytest.skip("machine types up to 2.2 send no description")
    devices = loaded.vmdescription["devices"]
    footer = 5 if loaded.has_footers else 0
    expected = sum(1 + 4 + 1 + len(d["name"]) + 4 + 4 + state_size(d) + footer for d in devices)
    assert loaded.drained_bytes == expected


def state_size(described: dict[str, Any]) -> int:
    """Return the bytes of a device, structure or subsection that `described` tells of."""
    if "fields" not in described:
        return int(described.get("size", 0))
    fields = sum(field_size(field) for field in described["fields"])
    return fields + sum(
        1 + 1 + len(sub["vmsd_name"]) + 4 + state_size(sub) for sub in described.get("subsections", [])
    )


def field_size(field: dict[str, Any]) -> int:
    return int(field["size"]) * int(field.get("array_len", 1))


@pytest.mark.parametrize("junk", [b"\0" * 4096, b"garbage", b"\0\6\0\0\0\2{}", b"\x7e\0\0\0\1\0"])
def test_what_lies_behind_the_stream_is_left_alone(junk: bytes) -> None:
    """A stream on a tape or a block device, or in a file that was longer before."""
    data = golden("no-disk")
    loaded, _, tiles = load(data + junk)
    assert loaded.reached_eof
    assert loaded.vmdescription is not None
    assert tiles.position == len(data)


@pytest.mark.parametrize("name", names(BROKEN))
def test_streams_without_an_end(name: str) -> None:
    counter = BlockCounter()
    state = savevm.SaveState()
    state.register_savevm_live("block", 0, 1, counter)
    expected = errors.SourceReadError if name == "read-error" else errors.TruncatedStream
    with streams.reading(golden(name)) as f:
        loader = savevm.LoadVM(state, f)
        with pytest.raises(expected):
            loader.loadvm()
        summary = loader.summary()
    assert not summary.reached_eof
    assert not any(info.ended for info in summary.sections)
    assert counter.blocks


def test_commands_of_postcopy_and_return_path() -> None:
    opening = {"OPEN_RETURN_PATH": 1, "PING": 1}
    assert load(golden("return-path"))[0].commands == opening
    assert load(golden("postcopy-ram"))[0].commands == opening | {"POSTCOPY_ADVISE": 1}


def test_capabilities_and_uuid() -> None:
    assert load(golden("ignore-shared"))[0].capabilities == ("x-ignore-shared",)
    assert load(golden("validate-uuid"))[0].configuration.vm_uuid is not None


def test_return_path_is_answered_as_soon_as_the_stream_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source keeps its link open until it hears SHUT."""
    data = golden("return-path")
    state = savevm.SaveState()
    state.register_savevm_live("block", 0, 1, BlockCounter())
    with streams.conversation() as (f, far):
        sender = streams.send_in_background(far, data)
        monkeypatch.setattr(drain, "SETTLE_TIME", 1000)  # the sizes prove that this is the end: no need to wait
        loader = savevm.LoadVM(state, f)
        loaded = loader.loadvm()
        sender.join()
        assert loaded.vmdescription is not None
        assert loaded.nbytes == len(data)
        assert loaded.return_path_open
        loader.finish(0)
        assert far.recv(100)[-8:] == b"\0\1\0\4\0\0\0\0"
