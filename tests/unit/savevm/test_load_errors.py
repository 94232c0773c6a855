# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams that stop, lie or fail, and the errors of handlers and observers."""

from __future__ import annotations

import itertools
import struct

import pytest
import savevm_streams as streams
from block_sections import CONFIG, block_stream
from savevm_streams import EOF, EOS, HEADER, CountingHandlers, Recorder, load, word

from blkmig import channel, errors, savevm

BEGIN = HEADER + CONFIG
DESCRIPTION = streams.description(b'{"page_size":4096,"devices":[]}')


@pytest.mark.parametrize("record", range(1, 4))
def test_a_stream_that_stops_between_records(record: int) -> None:
    records = [streams.start(1, "block"), streams.part(1), streams.end(1)]
    data = BEGIN + b"".join(records[:record])
    state = savevm.SaveState()
    state.register_savevm_live("block", 0, 1, CountingHandlers())
    with streams.reading(data) as f:
        loader = savevm.LoadVM(state, f)
        with pytest.raises(errors.TruncatedStream, match="between two records: the source cancelled") as caught:
            loader.loadvm()
        assert caught.value.position == len(data)
        summary = loader.summary()
    assert summary.is_between_records
    assert not summary.reached_eof
    assert summary.sections[0].ended == (record == 3)


def test_a_stream_that_stops_inside_a_record() -> None:
    state = savevm.SaveState()
    state.register_savevm_live("block", 0, 1, CountingHandlers())
    with streams.reading(BEGIN + streams.start(1, "block")[:-9]) as f:
        loader = savevm.LoadVM(state, f)
        with pytest.raises(errors.TruncatedStream):
            loader.loadvm()
        assert not loader.summary().is_between_records


def test_footer_where_a_word_should_be() -> None:
    data = BEGIN + streams.start(1, "block") + streams.part(1, b"")
    with pytest.raises(errors.SourceReadError):
        load(data)


@pytest.mark.parametrize("text", [b"", b"no JSON", b"[1]", b'{"a":', b"\xff\xfe", b"[" * 100000, b"1" * 5000])
def test_descriptions_that_are_no_object_are_ignored(text: bytes) -> None:
    recorder = Recorder()
    loaded = load(block_stream(tail=EOF + streams.description(text)), observer=recorder)
    assert loaded.vmdescription is None
    assert recorder.events[-1][0::2] == ("vmdescription", len(text))


def test_a_description_that_is_too_long_is_not_held() -> None:
    text = b" " * ((8 << 20) + 1)
    loaded = load(block_stream(tail=EOF + streams.description(text)))
    assert loaded.vmdescription is None
    assert loaded.nbytes == len(block_stream()) + 5 + len(text)


@pytest.mark.parametrize("length", [100, 0xFFFFFFFF])
def test_a_description_that_is_cut_is_an_error(length: int) -> None:
    with pytest.raises(errors.TruncatedStream):
        load(block_stream(tail=EOF + b"\6" + struct.pack(">I", length) + b"{"))


@pytest.mark.parametrize(("more", "is_stream"), [(b"garbage", False), (b"\0\0QEV", False), (b"\0QEVM\0", True)])
def test_what_stands_behind_the_end_is_told(more: bytes, is_stream: bool) -> None:
    data = block_stream(tail=EOF)
    loaded = load(data + more)
    assert loaded.reached_eof
    assert loaded.nbytes == len(data)
    assert loaded.behind == savevm.Behind(len(data) + more.count(b"\0", 0, 2), is_stream)


@pytest.mark.parametrize(("config", "footers"), [(CONFIG, True), (b"", False)])
def test_nothing_but_device_state(config: bytes, footers: bool) -> None:
    device = streams.start(9, "timer", bytes(24), kind=streams.FULL, footers=footers)
    text = b'{"devices":[{"name":"timer","size":24}]}'
    loaded = load(HEADER + config + device + EOF + streams.description(text) + b"junk")
    assert loaded.drained_bytes == len(device)
    assert loaded.vmdescription is not None


def test_the_reason_of_the_channel_is_kept() -> None:
    with pytest.raises(errors.TruncatedStream) as caught:
        load(BEGIN + streams.start(1, "block"))
    assert isinstance(caught.value.__cause__, errors.TruncatedStream)


def test_the_error_of_a_handler_comes_through_and_is_not_hidden_by_cleanups() -> None:
    class Broken(CountingHandlers):
        def load_state(self, f: channel.InputQEMUFile, version_id: int) -> None:
            raise errors.DeviceError("write", device="vda", cause=OSError(28, "No space left on device"))

        def load_cleanup(self) -> None:
            super().load_cleanup()
            raise RuntimeError("cleanup")

    handlers = Broken()
    with pytest.raises(errors.DeviceError, match="No space left") as caught:
        load(block_stream(), handlers)
    assert handlers.calls == ["load_setup", "load_cleanup"]
    assert caught.value.__notes__ == ["and then: cleanup"]


def test_all_cleanups_run_and_the_first_error_wins() -> None:
    calls: list[int] = []

    class Broken(savevm.SaveVMHandlers):
        def __init__(self, number: int) -> None:
            self.number = number

        def load_cleanup(self) -> None:
            calls.append(self.number)
            raise RuntimeError(f"cleanup {self.number}")

    state = savevm.SaveState()
    for number in range(3):
        state.register_savevm_live("x", number, 1, Broken(number))
    with streams.reading(HEADER + EOF) as f, pytest.raises(RuntimeError, match="cleanup 0") as caught:
        savevm.LoadVM(state, f).loadvm()
    assert calls == [0, 1, 2]
    assert caught.value.__notes__ == ["and then: cleanup 1", "and then: cleanup 2"]


def test_setup_that_fails() -> None:
    class Broken(CountingHandlers):
        def load_setup(self) -> None:
            raise RuntimeError("setup")

    handlers = Broken()
    with pytest.raises(RuntimeError, match="setup"):
        load(block_stream(), handlers)
    assert handlers.calls == ["load_cleanup"]


def test_the_observer_is_told_of_every_byte() -> None:
    recorder = Recorder()
    records = [
        streams.command(3, b"x"),
        streams.start(1, "block", word(100) + EOS),
        streams.start(2, "ram", word(0x10), version=4),
        streams.part(1),
        streams.part(2, word(0x10)),
        streams.end(1),
        streams.end(2, word(0x10)),
    ]
    load(BEGIN + b"".join(records) + EOF + DESCRIPTION, observer=recorder)
    edges = list(itertools.accumulate(map(len, [BEGIN, *records, EOF, DESCRIPTION])))
    kinds = ["START", "START", "PART", "PART", "END", "END"]
    names = [("block", 1), ("ram", 2)] * 3
    expected: list[tuple[object, ...]] = [("configuration", 8), ("command", edges[0], 3, 1)]
    for kind, name, begin, finish in zip(kinds, names, edges[1:], edges[2:], strict=False):
        expected += [(kind, begin, *name), ("section_end", finish, name[1])]
    expected += [("eof", edges[7]), ("vmdescription", edges[8], len(DESCRIPTION) - 5)]
    assert recorder.events == expected


def test_what_an_observer_raises_ends_the_loading() -> None:
    class Impatient(savevm.StreamObserver):
        def section_end(self, section_id: int, position: int) -> None:
            raise errors.Cancelled("seen enough")

    handlers = CountingHandlers()
    with pytest.raises(errors.Cancelled):
        load(block_stream(), handlers, observer=Impatient())
    assert handlers.loads == 1
    assert handlers.calls == ["load_setup", "load_cleanup"]
