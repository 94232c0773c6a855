# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands, packages and the return path."""

from __future__ import annotations

import socket
import struct

import pytest
import savevm_streams as streams
from savevm_streams import EOF, HEADER, CountingHandlers, Recorder, load, word

from blkmig import errors, savevm
from blkmig.savevm import drain, return_path

BEGIN = HEADER + streams.configuration("pc")
OPEN = streams.command(1)
BLOCK = streams.start(1, "block") + streams.end(1)
SHUT_OK = b"\0\1\0\4\0\0\0\0"


def ping(value: int) -> bytes:
    return streams.command(2, struct.pack(">I", value))


def package(*records: bytes) -> bytes:
    content = b"".join(records)
    return streams.command(7, struct.pack(">I", len(content))) + content


def device(section_id: int, payload: bytes) -> bytes:
    return streams.start(section_id, "dev", payload, kind=streams.FULL)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for seconds until silence is believed."""
    monkeypatch.setattr(drain, "IDLE_TIME", 0.01)
    monkeypatch.setattr(drain, "PATIENT_IDLE_TIME", 0.01)
    monkeypatch.setattr(drain, "SETTLE_TIME", 0.01)


def block_state() -> savevm.SaveState:
    state = savevm.SaveState()
    state.register_savevm_live("block", 0, 1, CountingHandlers())
    return state


def receive(far: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        piece = far.recv(nbytes - len(data))
        assert piece, f"closed after {data.hex()}"
        data += piece
    return data


def nothing_more(far: socket.socket) -> bool:
    far.setblocking(False)
    try:
        far.recv(1)
    except BlockingIOError:
        return True
    return False


# -- return path -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 0xFFFFFFFF])
def test_pong_and_shut(status: int) -> None:
    with streams.conversation() as (f, far):
        far.sendall(BEGIN + OPEN + ping(0xCAFE) + BLOCK + ping(2) + EOF + streams.EMPTY_DESCRIPTION)
        loader = savevm.LoadVM(block_state(), f)
        loaded = loader.loadvm()  # the source keeps the link open
        assert loaded.return_path_open
        assert loaded.commands == {"OPEN_RETURN_PATH": 1, "PING": 2}
        assert receive(far, 16) == struct.pack(">HHIHHI", 2, 4, 0xCAFE, 2, 4, 2)
        assert nothing_more(far)
        loader.finish(status)
        loader.finish(0)
        far.setblocking(True)
        assert receive(far, 8) == struct.pack(">HHI", 1, 4, status)
        assert far.recv(1) == b"" if status else nothing_more(far), "after a failure nothing more will be said"
        assert not loader.summary().return_path_open


def test_nothing_is_answered_unasked() -> None:
    with streams.conversation() as (f, far):
        far.sendall(BEGIN + ping(1) + BLOCK + EOF)
        far.shutdown(socket.SHUT_WR)
        loader = savevm.LoadVM(block_state(), f)
        assert not loader.loadvm().return_path_open
        loader.finish(0)
        assert nothing_more(far)


def test_a_one_way_channel_has_no_return_path() -> None:
    data = BEGIN + OPEN + ping(1) + streams.command(3, bytes(16)) + BLOCK + EOF
    state = block_state()
    with streams.reading(data) as f:
        loader = savevm.LoadVM(state, f)
        loaded = loader.loadvm()
        loader.finish(0)
    assert not loaded.return_path_open
    assert loaded.commands == {"OPEN_RETURN_PATH": 1, "PING": 1, "POSTCOPY_ADVISE": 1}


@pytest.mark.usefixtures("impatient")
def test_a_source_that_sends_no_description_and_waits() -> None:
    with streams.conversation() as (f, far):
        far.sendall(BEGIN + OPEN + BLOCK + EOF)
        loader = savevm.LoadVM(block_state(), f)
        loaded = loader.loadvm()
        assert loaded.reached_eof
        assert loaded.vmdescription is None
        loader.finish(0)
        assert receive(far, 8) == SHUT_OK


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("described", [True, False])
def test_the_end_of_device_state_on_a_link_that_stays_open(described: bool) -> None:
    tail = device(3, bytes(5000)) + device(4, b"\0\6\0\0\0\2{}") + EOF
    text = streams.description(b'{"page_size":4096,"devices":[{"name":"dev"}]}') if described else b""
    with streams.conversation() as (f, far):
        far.sendall(BEGIN + OPEN + BLOCK + tail + text)
        loader = savevm.LoadVM(block_state(), f)
        loaded = loader.loadvm()
        assert loaded.drained_bytes == len(tail) - 1
        assert (loaded.vmdescription is not None) == described
        loader.finish(0)
        assert receive(far, 8) == SHUT_OK


def test_device_state_that_comes_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces end where the stream could, and the next one comes while the loader asks whether that was all."""
    monkeypatch.setattr(drain, "PATIENT_IDLE_TIME", 10)
    monkeypatch.setattr(drain, "SETTLE_TIME", 10)
    state = [device(number, bytes(number)) + b"\0" for number in range(2, 60)]
    pieces = [BEGIN + OPEN + BLOCK, *state, streams.EMPTY_DESCRIPTION]
    with streams.conversation() as (f, far):
        sender = streams.send_in_background(far, *pieces, close=True)
        loaded = savevm.LoadVM(block_state(), f).loadvm()
        sender.join()
    assert loaded.drained_bytes == sum(map(len, state)) - 1
    assert loaded.vmdescription == {}


@pytest.mark.parametrize(("footers", "seconds"), [(True, drain.PATIENT_IDLE_TIME), (False, drain.IDLE_TIME)])
def test_old_machine_types_are_known_to_send_no_description(footers: bool, seconds: float) -> None:
    assert drain.idle_time(has_footers=footers) == seconds


def test_a_cut_in_device_state_is_found() -> None:
    with streams.conversation() as (f, far):
        far.sendall(BEGIN + OPEN + BLOCK + device(3, b"x" * 100))
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(errors.TruncatedStream, match="inside the state of the devices"):
            savevm.LoadVM(block_state(), f).loadvm()


def test_await_shut_passes_over_other_messages() -> None:
    messages = struct.pack(">HHI", 2, 4, 99) + b"\0\5\0\5hello" + struct.pack(">HHI", 1, 4, 7)
    with streams.reading(messages) as f:
        assert savevm.await_shut(f) == 7


def test_await_shut_on_a_link_that_closes() -> None:
    with streams.reading(struct.pack(">HHI", 2, 4, 99)) as f, pytest.raises(errors.TruncatedStream):
        savevm.await_shut(f)


def test_shut_without_status_is_an_error() -> None:
    with streams.reading(b"\0\1\0\0") as f, pytest.raises(errors.StreamError, match="no status"):
        savevm.await_shut(f)


@pytest.mark.parametrize(
    ("said", "position"),
    [(b"GET / HTTP/1.1\r\n", 0), (b"\0\2\0\4\0\0\0\1" + b"\0\0\0\0", 8), (b"\0\2\0\5hello", 0), (b"\x80\1\0\0", 0)],
)
def test_garbage_on_the_return_path_is_an_error_with_a_position(said: bytes, position: int) -> None:
    """A9, B3: what is no message of a loader is not passed over."""
    with streams.reading(said) as f, pytest.raises(errors.StreamError, match="is no message") as caught:
        savevm.await_shut(f)
    assert caught.value.position == position


def test_chatter_on_the_return_path_is_an_error() -> None:
    """B3: a flood of messages is no sign of life."""
    chatter = b"".join(struct.pack(">HHI", 2, 4, value) for value in range(5000))
    with streams.reading(chatter) as f, pytest.raises(errors.StreamError, match="message after message") as caught:
        savevm.await_shut(f, clock=lambda: 0.0)
    assert caught.value.position == 8 * 1001


def test_a_target_that_lives_without_getting_further_is_given_up() -> None:
    """B3: ten idle time-outs without a new value, and no more."""
    seconds = iter(range(0, 1000, 5))
    alive = struct.pack(">HHI", 2, 4, 1) * 3 + struct.pack(">HHI", 2, 4, 2) * 100
    with streams.reading(alive) as f:
        f.set_idle_timeout(2.0)
        with pytest.raises(errors.ChannelTimeout, match="no further for 20 s"):
            savevm.await_shut(f, clock=lambda: float(next(seconds)))
        assert f.position == 8 * (3 + 1 + 5), "the new value began another time"


def test_the_reason_of_a_target_is_found_behind_other_messages() -> None:
    """C11."""
    said = struct.pack(">HHI", 2, 4, 99) + struct.pack(">HHI", 1, 4, 28)
    with streams.reading(said) as f:
        assert savevm.find_reason(f, 1.0) == 28
    for nothing in (b"", b"\0", struct.pack(">HHI", 2, 4, 99), b"garbage!"):
        with streams.reading(nothing) as f:
            assert savevm.find_reason(f, 1.0) is None
    assert "No space left on device" in savevm.describe_status(28)
    assert "does not say why" in savevm.describe_status(1)
    assert "does not say why" in savevm.describe_status(0x7FFFFFFF)


def test_read_message() -> None:
    with streams.reading(b"\0\2\0\4\0\0\0\5" b"\0\1\0\0") as f:
        assert return_path.read_message(f) == (2, 5)
        assert return_path.read_message(f) == (1, None)


# -- commands --------------------------------------------------------------------------------------------------------


def test_other_commands_are_skipped_by_their_length() -> None:
    data = BEGIN + streams.command(99, b"x" * 65535) + streams.command(8) + streams.command(99) + BLOCK + EOF
    loaded = load(data)
    assert loaded.commands == {"99": 2, "ENABLE_COLO": 1}
    assert loaded.sections[0].ended


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (streams.command(1, b"x"), "OPEN_RETURN_PATH has 1 bytes of data, not 0"),
        (streams.command(2, b""), "PING has 0 bytes of data, not 4"),
        (streams.command(7, b"12345678"), "PACKAGED has 8 bytes of data, not 4"),
    ],
)
def test_commands_of_the_wrong_length(record: bytes, message: str) -> None:
    with pytest.raises(errors.StreamError, match=message) as caught:
        load(BEGIN + record + EOF)
    assert caught.value.position == len(BEGIN)


# -- packages --------------------------------------------------------------------------------------------------------


def test_a_package_holds_records() -> None:
    handlers = CountingHandlers()
    recorder = Recorder()
    parts = package(streams.command(4), streams.part(1, word(5) + streams.EOS), streams.command(5))
    loaded = load(BEGIN + streams.start(1, "block") + parts + streams.end(1) + EOF, handlers, observer=recorder)
    assert handlers.total == 5
    assert loaded.commands == {"PACKAGED": 1, "POSTCOPY_LISTEN": 1, "POSTCOPY_RUN": 1}
    assert [event[0] for event in recorder.events if event[0] == "PART"] == ["PART"]


def test_device_state_in_a_package_ends_with_it() -> None:
    content = device(3, b"\7" * 300) + streams.command(5)
    data = BEGIN + streams.start(1, "block") + package(streams.command(4), content) + streams.end(1) + EOF
    loaded = load(data)
    assert loaded.drained_bytes == len(content)
    assert loaded.sections[0].ended
    assert loaded.reached_eof


@pytest.mark.parametrize("content", [b"", EOF, EOF + b"garbage"])
def test_packages_that_hold_nothing(content: bytes) -> None:
    loaded = load(BEGIN + package(content) + BLOCK + EOF)
    assert loaded.sections[0].ended


def test_a_package_in_a_package_is_refused() -> None:
    with pytest.raises(errors.StreamError, match="package inside a package"):
        load(BEGIN + package(package(EOF)) + EOF)


def test_a_record_longer_than_its_package_is_refused() -> None:
    record = streams.part(1, word(5) + streams.EOS)
    cut = streams.command(7, struct.pack(">I", len(record) - 1)) + record
    with pytest.raises(errors.StreamError, match="longer than the package"):
        load(BEGIN + streams.start(1, "block") + cut + EOF)


def test_a_package_that_claims_four_gigabytes() -> None:
    claim = streams.command(7, b"\xff\xff\xff\xff")
    with pytest.raises(errors.TruncatedStream):
        load(BEGIN + claim + device(3, bytes(10)))
