# SPDX-License-Identifier: GPL-2.0-or-later
"""The loading side of the container: detection, sections, footers, and what is wrong with a stream."""

from __future__ import annotations

import itertools
import tracemalloc
import uuid

import pytest
import savevm_streams as streams
from block_sections import CONFIG, block_stream
from savevm_streams import EOF, EOS, HEADER, CountingHandlers, load, word

from blkmig import channel, errors, savevm

BEGIN = HEADER + CONFIG
DESCRIPTION = streams.description(b'{"page_size":4096,"devices":[]}')


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


@pytest.mark.usefixtures("no_garbage")
def test_thousands_of_empty_sections_allocate_nothing() -> None:
    records = streams.start(1, "block") + streams.start(2, "ram", word(0x10), version=4)
    pair = streams.part(1) + streams.part(2, word(0x10))
    grown = []
    while not grown or (min(grown) >= 4096 and len(grown) < 5):  # threads of other tests may allocate, in one of them
        observer = PeakObserver()
        loaded = load(BEGIN + records + pair * 20000 + streams.end(1) + EOF, observer=observer)
        assert [(info.idstr, info.parts) for info in loaded.sections] == [("block", 20000), ("ram", 20000)]
        grown.append(observer.grown)
    assert min(grown) < 4096, grown


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
