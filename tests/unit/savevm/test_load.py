# SPDX-License-Identifier: GPL-2.0-or-later
"""The loading side of the container: detection, sections, footers, and what is wrong with a stream."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
import uuid

import pytest
import savevm_streams as streams
from savevm_streams import EOF, EOS, HEADER, CountingHandlers, Recorder, load, word

from blkmig import channel, errors, savevm

CONFIG = streams.configuration("pc-i440fx-7.2")
BEGIN = HEADER + CONFIG
DESCRIPTION = streams.description(b'{"page_size":4096,"devices":[]}')


def block_stream(*, configured: bool = True, footers: bool = True, tail: bytes = EOF) -> bytes:
    sections = [
        streams.start(1, "block", word(100) + EOS, footers=footers),
        streams.part(1, word(20) + EOS, footers=footers),
        streams.part(1, footers=footers),
        streams.end(1, word(3) + EOS, footers=footers),
    ]
    return HEADER + (CONFIG if configured else b"") + b"".join(sections) + tail


@pytest.mark.parametrize(("configured", "footers", "described"), list(itertools.product([True, False], repeat=3)))
def test_every_container_is_detected(configured: bool, footers: bool, described: bool) -> None:
    handlers = CountingHandlers()
    data = block_stream(configured=configured, footers=footers, tail=EOF + (DESCRIPTION if described else b""))
    loaded = load(data, handlers)
    assert handlers.total == 123
    assert handlers.calls == ["load_setup", "load_cleanup"]
    assert (loaded.version, loaded.machine) == (3, "pc-i440fx-7.2" if configured else None)
    assert (loaded.has_configuration, loaded.has_footers) == (configured, footers)
    assert loaded.vmdescription == ({"page_size": 4096, "devices": []} if described else None)
    assert loaded.reached_eof
    assert loaded.nbytes == len(data)
    assert (loaded.drained_bytes, loaded.commands, loaded.return_path_open) == (0, {}, False)
    block = loaded.section("block")
    assert block is not None
    assert loaded.sections == (block,)
    assert (block.section_id, block.version_id, block.parts, block.ended) == (1, 1, 2, True)
    assert block.nbytes == len(block_stream(configured=configured, footers=footers, tail=b"")) - (
        len(BEGIN) if configured else len(HEADER)
    )
    assert loaded.section("block", 1) is None


def test_what_one_side_saves_the_other_loads() -> None:
    class Words(CountingHandlers):
        def save_setup(self, f: channel.OutputQEMUFile) -> None:
            f.put_be64(1000)
            f.put_be64(2)

        save_live_complete_precopy = save_setup

        def save_live_iterate(self, f: channel.OutputQEMUFile) -> int:
            self.save_setup(f)
            return 1

    handlers = Words()
    state = savevm.SaveState(savevm.ContainerFormat(machine="microvm"))
    state.register_savevm_live("block", 0, 1, handlers)
    with streams.conversation() as (f, far):
        out = channel.connect(f"fd:{far.fileno()}", timeout=5)
        state.state_header(out)
        state.state_setup(out)
        state.state_iterate(out)
        state.state_complete_precopy(out)
        state.state_end(out, {"disks": 1})
        loaded = savevm.LoadVM(state, f).loadvm()
        out.close()
    assert (handlers.total, loaded.machine, loaded.vmdescription) == (3000, "microvm", {"disks": 1})


# -- header and configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"QEVM\0\0\0\2", errors.UnsupportedStream, "version 2, obsolete"),
        (b"QEVM\0\0\0\4", errors.UnsupportedStream, "version 4, not 3"),
        (b"QFI\xfb\0\0\0\3", errors.StreamError, "qcow2"),
        (b"\xfd7zXZ\0\0\0", errors.StreamError, "decompress"),
        (b"\x11\x22\x33\x44" + bytes(8), errors.StreamError, "multifd"),
        (b"LibvirtQemudSave", errors.StreamError, "libvirt"),
        (bytes(512), errors.StreamError, "not a migration stream, it starts with 00 00 00 00"),
        (b"QEV", errors.TruncatedStream, "byte 3"),
        (b"", errors.TruncatedStream, "byte 0"),
    ],
)
def test_what_is_no_stream(data: bytes, kind: type[errors.StreamError], message: str) -> None:
    handlers = CountingHandlers()
    with pytest.raises(kind, match=message):
        load(data, handlers)
    assert handlers.calls == ["load_cleanup"]


def test_configuration_with_everything() -> None:
    who = uuid.uuid4()
    section = streams.configuration(
        "virt-7.2",
        streams.page_bits(16),
        streams.capabilities("x-ignore-shared"),
        streams.subsection("configuration/uuid", who.bytes),
    )
    loaded = load(HEADER + section + EOF)
    assert loaded.configuration == savevm.Configuration(
        machine="virt-7.2", target_page_bits=16, capabilities=("x-ignore-shared",), vm_uuid=who
    )
    assert (loaded.page_size, loaded.capabilities, loaded.has_footers) == (65536, ("x-ignore-shared",), None)


@pytest.mark.parametrize(
    ("machine", "page_size"), [("", 4096), ("pc", 4096), ("sun4u", 8192), ("clipper", 8192), ("s390-ccw-virtio", 4096)]
)
def test_page_size_where_the_stream_does_not_say(machine: str, page_size: int) -> None:
    assert load(HEADER + streams.configuration(machine) + EOF).page_size == page_size


def test_page_size_without_configuration() -> None:
    assert load(HEADER + EOF).page_size == 4096


@pytest.mark.parametrize(
    ("section", "kind", "message"),
    [
        (b"\7\0\1\0\1" + bytes(70000), errors.StreamError, "machine name claims 65537 bytes"),
        (b"\7\xff\xff\xff\xff", errors.StreamError, "machine name claims 4294967295 bytes"),
        (streams.configuration("pc", streams.page_bits(0)), errors.StreamError, "2\\^0"),
        (streams.configuration("pc", streams.page_bits(0xFFFFFFFF)), errors.StreamError, "impossible"),
        (streams.configuration("pc", streams.page_bits(12), streams.page_bits(12)), errors.StreamError, "twice"),
        (
            streams.configuration("pc", streams.subsection("configuration/capabilities", b"\xff\xff\xff\xff")),
            errors.StreamError,
            "claims 4294967295 capabilities",
        ),
        (
            streams.configuration("pc", streams.subsection("configuration/new", b"")),
            errors.UnsupportedStream,
            "unknown subsection 'configuration/new', version 1",
        ),
        (
            streams.configuration("pc", streams.subsection("configuration/uuid", bytes(16), version=2)),
            errors.UnsupportedStream,
            "version 2",
        ),
        (CONFIG + CONFIG, errors.StreamError, "unknown record type 0x07"),
    ],
)
def test_configurations_that_are_refused(section: bytes, kind: type[errors.StreamError], message: str) -> None:
    with pytest.raises(kind, match=message):
        load(HEADER + section + EOF)


def test_machine_names_need_not_be_utf8() -> None:
    assert load(HEADER + b"\7\0\0\0\2\xff\xfe" + EOF).machine == "\\xff\\xfe"


# -- sections --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "kind", "message"),
    [
        (streams.part(1), errors.StreamError, "section id 1 was never started"),
        (streams.start(1, "block") + streams.part(0), errors.StreamError, "section id 0 was never started"),
        (streams.start(1, "block") + streams.end(2), errors.StreamError, "section id 2 was never started"),
        (streams.start(1, "block", version=2), errors.UnsupportedStream, "'block' has version 2, known .* up to 1"),
        (streams.start(1, "block", instance=1), errors.UnsupportedStream, "'block', instance 1, version 1: unknown"),
        (streams.start(1, "slirp"), errors.UnsupportedStream, "'slirp', instance 0, version 1: unknown"),
        (
            streams.start(1, "block") + streams.start(1, "ram", word(0x10), version=4),
            errors.StreamError,
            "id 1 of 'ram' belongs to 'block'",
        ),
        (
            streams.start(1, "block") + streams.part(1, EOS + streams.footer(2), footers=False),
            errors.StreamError,
            "footer of section 'block' has id 2, not 1",
        ),
        (
            streams.start(1, "block") + streams.part(1, footers=False) + EOF,
            errors.StreamError,
            "'block' is not followed by its footer, but by 0x00",
        ),
        (
            streams.start(1, "block", footers=False) + streams.part(1),
            errors.StreamError,
            "unknown record type 0x7e",
        ),
        (streams.start(1, "block") + b"\x05", errors.StreamError, "unknown record type 0x05"),
        (b"\x06", errors.StreamError, "unknown record type 0x06"),
        (b"\xff", errors.StreamError, "unknown record type 0xff"),
    ],
)
def test_sections_that_are_refused(records: bytes, kind: type[errors.StreamError], message: str) -> None:
    handlers = CountingHandlers()
    with pytest.raises(kind, match=message) as caught:
        load(BEGIN + records, handlers)
    assert type(caught.value) is kind
    assert len(BEGIN) <= caught.value.position <= len(BEGIN + records)
    assert handlers.calls == ["load_setup", "load_cleanup"]


@pytest.mark.parametrize("section_id", [0, 1, 0xDEADBEEF, 0xFFFFFFFF])
@pytest.mark.parametrize("version", [0, 1])
def test_any_id_and_every_known_version(section_id: int, version: int) -> None:
    seen: list[int] = []

    class Versioned(CountingHandlers):
        def load_state(self, f: channel.InputQEMUFile, version_id: int) -> None:
            seen.append(version_id)
            super().load_state(f, version_id)

    records = streams.start(section_id, "block", version=version) + streams.end(section_id)
    loaded = load(BEGIN + records + EOF, Versioned())
    assert loaded.sections[0].section_id == section_id
    assert seen == [version, version]


@pytest.mark.parametrize("second", [1, 9])
def test_a_section_may_start_again(second: int) -> None:
    handlers = CountingHandlers()
    records = [streams.start(1, "block"), streams.start(second, "block"), streams.part(second), streams.end(second)]
    loaded = load(BEGIN + b"".join(records) + EOF, handlers)
    assert handlers.loads == 4
    assert [(s.section_id, s.parts, s.ended) for s in loaded.sections] == [(second, 1, True)]


def test_the_first_id_of_a_restarted_section_is_forgotten() -> None:
    records = streams.start(1, "block") + streams.start(9, "block") + streams.part(1)
    with pytest.raises(errors.StreamError, match="section id 1 was never started"):
        load(BEGIN + records + EOF)


def test_a_full_section_that_somebody_registered_is_theirs() -> None:
    handlers = CountingHandlers()
    loaded = load(BEGIN + streams.start(5, "block", word(7) + EOS, kind=streams.FULL) + EOF, handlers)
    assert handlers.total == 7
    assert loaded.sections[0].ended
    assert loaded.drained_bytes == 0


def test_only_start_leaves_the_section_open() -> None:
    loaded = load(BEGIN + streams.start(1, "block") + EOF)
    assert not loaded.sections[0].ended
    assert loaded.reached_eof


def test_other_packages_register_sections_of_their_own() -> None:
    class Text(savevm.SaveVMHandlers):
        text = b""

        def load_state(self, f: channel.InputQEMUFile, version_id: int) -> None:
            self.text += f.get_buffer(f.get_byte())

    text = Text()
    state = savevm.SaveState()
    state.register_savevm_live("block", 0, 1, CountingHandlers())
    state.register_savevm_live("example.org/notes", 3, 5, text)
    records = [
        streams.start(1, "block"),
        streams.start(2, "example.org/notes", b"\3abc", instance=3, version=4),
        streams.part(2, b"\2de"),
        streams.end(1),
        streams.end(2, b"\0"),
    ]
    with streams.reading(BEGIN + b"".join(records) + EOF) as f:
        loaded = savevm.LoadVM(state, f).loadvm()
    assert text.text == b"abcde"
    assert [info.idstr for info in loaded.sections] == ["block", "example.org/notes"]


def test_own_handlers_win_over_skipping() -> None:
    ram = CountingHandlers()
    state = savevm.SaveState()
    state.register_savevm_live("ram", 0, 4, ram)
    with streams.reading(BEGIN + streams.start(2, "ram", word(40) + EOS, version=4) + EOF) as f:
        savevm.LoadVM(state, f).loadvm()
    assert ram.total == 40


def test_the_number_of_live_sections_is_bounded() -> None:
    end_of_state = word(0xFFFFFFFFEF100001)
    records = b"".join(streams.start(n, f"{n}/vfio", end_of_state) for n in range(2000))
    with pytest.raises(errors.StreamError, match="more than 1024 live sections"):
        load(BEGIN + records + EOF)


def test_thousands_of_empty_sections_allocate_nothing() -> None:
    records = streams.start(1, "block") + streams.start(2, "ram", word(0x10), version=4)
    pair = streams.part(1) + streams.part(2, word(0x10))
    observer = PeakObserver()
    loaded = load(BEGIN + records + pair * 20000 + streams.end(1) + EOF, observer=observer)
    assert [(info.idstr, info.parts) for info in loaded.sections] == [("block", 20000), ("ram", 20000)]
    assert observer.grown < 4096


class PeakObserver(savevm.StreamObserver):
    """Measures by how much Python's memory grows from the first PART to the last."""

    first = 0
    grown = 0

    def section_start(
        self, kind: str, idstr: str, instance_id: int, version_id: int, section_id: int, position: int
    ) -> None:
        if kind == "PART" and not self.first:
            tracemalloc.start()
            self.first = position
        if kind == "END":
            self.grown = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()


# -- ends of streams -------------------------------------------------------------------------------------------------


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


def test_garbage_behind_the_end_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    loaded = load(block_stream(tail=EOF + b"garbage"))
    assert loaded.reached_eof
    assert "0x67" in caplog.text


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


# -- handlers and observer -------------------------------------------------------------------------------------------


def test_the_error_of_a_handler_comes_through_and_is_not_hidden_by_cleanups() -> None:
    class Broken(CountingHandlers):
        def load_state(self, f: channel.InputQEMUFile, version_id: int) -> None:
            raise errors.DeviceError("write", device="vda", cause=OSError(28, "No space left on device"))

        def load_cleanup(self) -> None:
            super().load_cleanup()
            raise RuntimeError("cleanup")

    handlers = Broken()
    with pytest.raises(errors.DeviceError, match="No space left"):
        load(block_stream(), handlers)
    assert handlers.calls == ["load_setup", "load_cleanup"]


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
    with streams.reading(HEADER + EOF) as f, pytest.raises(RuntimeError, match="cleanup 0"):
        savevm.LoadVM(state, f).loadvm()
    assert calls == [0, 1, 2]


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
