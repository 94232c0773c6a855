# SPDX-License-Identifier: GPL-2.0-or-later
"""The saving side of the container, byte for byte."""

from __future__ import annotations

import errno
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import savevm_streams as streams

from blkmig import channel, errors, savevm
from blkmig.savevm import container

EOS = streams.EOS


class Handlers(savevm.SaveVMHandlers):
    """Writes EOS only, says what it is told to say, and keeps the calls."""

    def __init__(self, calls: list[str], name: str, *, ret: int = 1, pending: int = 0, active: bool = True) -> None:
        self.calls, self.name, self.ret, self.pending, self.active = calls, name, ret, pending, active
        self.failure: Exception | None = None

    def is_active(self) -> bool:
        return self.active

    def save_setup(self, f: channel.OutputQEMUFile) -> None:
        self.calls.append(f"{self.name} setup")
        f.put_be64(2)

    def save_live_iterate(self, f: channel.OutputQEMUFile) -> int:
        self.calls.append(f"{self.name} iterate")
        if self.failure is not None:
            raise self.failure
        f.put_be64(2)
        return self.ret

    def save_live_pending(self) -> int:
        return self.pending

    def save_live_complete_precopy(self, f: channel.OutputQEMUFile) -> None:
        self.calls.append(f"{self.name} complete")
        f.put_be64(2)

    def save_cleanup(self) -> None:
        self.calls.append(f"{self.name} cleanup")
        if self.failure is not None:
            raise self.failure


def written(tmp_path: pathlib.Path, write: Callable[[channel.OutputQEMUFile], object]) -> bytes:
    """Return what `write` puts into a channel."""
    path = tmp_path / "stream"
    f = channel.connect(f"file:{path}", timeout=5)
    write(f)
    f.close()
    return path.read_bytes()


def save_all(state: savevm.SaveState, f: channel.OutputQEMUFile) -> None:
    state.state_header(f)
    state.state_setup(f)
    state.state_iterate(f)
    state.state_complete_precopy(f)
    state.state_end(f)
    state.state_cleanup()


@pytest.mark.parametrize("compat", [None, "2.3", "2.2"])
def test_smallest_stream_of_each_container(tmp_path: pathlib.Path, compat: str | None) -> None:
    state = savevm.SaveState(savevm.ContainerFormat.for_machine_compat(compat, machine="pc"))
    state.register_savevm_live("block", 0, 1, Handlers([], "block"))
    footers = compat is None
    assert written(tmp_path, lambda f: save_all(state, f)) == b"".join(
        [
            streams.HEADER,
            streams.configuration("pc") if compat is None else b"",
            streams.start(1, "block", footers=footers),
            streams.part(1, footers=footers),
            streams.end(1, footers=footers),
            streams.EOF,
            streams.EMPTY_DESCRIPTION if compat != "2.2" else b"",
        ]
    )


def test_start_of_block_has_27_bytes_as_from_qemu(tmp_path: pathlib.Path) -> None:
    state = savevm.SaveState(savevm.ContainerFormat.for_machine_compat("2.3"))
    state.register_savevm_live("block", 0, 1, Handlers([], "block"))
    assert written(tmp_path, state.state_setup).hex() == "010000000105626c6f636b00000000000000010000000000000002"


def test_default_format_suits_every_qemu_since_2_4() -> None:
    modern = savevm.ContainerFormat.for_machine_compat(None)
    assert savevm.SaveState().format == savevm.ContainerFormat() == modern
    assert (modern.machine, modern.configuration, modern.footers, modern.vmdescription) == ("", True, True, True)


def test_sections_come_in_order_of_registration_with_ids_from_1(tmp_path: pathlib.Path) -> None:
    calls: list[str] = []
    state = savevm.SaveState()
    state.register_savevm_live("block", 0, 1, Handlers(calls, "block"))
    state.register_savevm_live("other", 7, 3, Handlers(calls, "other"))
    assert written(tmp_path, state.state_setup) == streams.start(1, "block") + streams.start(
        2, "other", instance=7, version=3
    )
    assert written(tmp_path, state.state_iterate) == streams.part(1) + streams.part(2)
    assert written(tmp_path, state.state_complete_precopy) == streams.end(1) + streams.end(2)
    assert calls == [f"{name} {call}" for call in ("setup", "iterate", "complete") for name in ("block", "other")]


def test_sections_that_are_not_active_are_left_out(tmp_path: pathlib.Path) -> None:
    calls: list[str] = []
    sleeper = Handlers(calls, "sleeper", active=False, pending=10)
    state = savevm.SaveState()
    state.register_savevm_live("sleeper", 0, 1, sleeper)
    state.register_savevm_live("block", 0, 1, Handlers(calls, "block", pending=5))
    assert written(tmp_path, state.state_setup) == streams.start(2, "block")
    assert state.state_pending() == 5
    sleeper.active = True  # too late: its id was never announced
    assert written(tmp_path, state.state_iterate) == streams.part(2)
    assert state.state_pending() == 5
    state.state_cleanup()
    assert calls[-2:] == ["sleeper cleanup", "block cleanup"]


def test_nothing_is_pending_before_setup() -> None:
    state = savevm.SaveState()
    state.register_savevm_live("block", 0, 1, Handlers([], "block", pending=5))
    assert state.state_pending() == 0


@pytest.mark.parametrize(("first", "second", "finished"), [(1, 1, True), (0, 1, False), (1, 0, False), (0, 0, False)])
def test_every_section_has_its_turn_in_a_round(tmp_path: pathlib.Path, first: int, second: int, finished: bool) -> None:
    state = savevm.SaveState()
    state.register_savevm_live("first", 0, 1, Handlers([], "first", ret=first))
    state.register_savevm_live("second", 0, 1, Handlers([], "second", ret=second))
    results: list[bool] = []
    written(tmp_path, state.state_setup)
    assert written(tmp_path, lambda f: results.append(state.state_iterate(f))) == streams.part(1) + streams.part(2)
    assert results == [finished]


def test_negative_return_of_iterate_is_an_error(tmp_path: pathlib.Path) -> None:
    state = savevm.SaveState()
    state.register_savevm_live("block", 0, 1, Handlers([], "block", ret=-errno.EIO))
    written(tmp_path, state.state_setup)
    with pytest.raises(errors.MigrationError, match=f"'block'.*{os.strerror(errno.EIO)}"):
        written(tmp_path, state.state_iterate)


@pytest.mark.parametrize(("compat", "closing"), [(None, streams.footer(1)), ("2.3", b"")])
def test_read_error_closes_the_section_without_eos(
    tmp_path: pathlib.Path, compat: str | None, closing: bytes
) -> None:
    handlers = Handlers([], "block")
    state = savevm.SaveState(savevm.ContainerFormat.for_machine_compat(compat))
    state.register_savevm_live("block", 0, 1, handlers)
    written(tmp_path, state.state_setup)
    handlers.failure = failure = errors.DeviceError("read", device="vda", cause=OSError(errno.EIO, "bad sector"))

    def iterate(f: channel.OutputQEMUFile) -> None:
        with pytest.raises(errors.DeviceError) as caught:
            state.state_iterate(f)
        assert caught.value is failure

    assert written(tmp_path, iterate) == streams.part(1, b"", footers=False) + closing


def test_other_errors_leave_the_section_open(tmp_path: pathlib.Path) -> None:
    handlers = Handlers([], "block")
    state = savevm.SaveState()
    state.register_savevm_live("block", 0, 1, handlers)
    written(tmp_path, state.state_setup)
    handlers.failure = ValueError("a bug")

    def iterate(f: channel.OutputQEMUFile) -> None:
        with pytest.raises(ValueError, match="a bug"):
            state.state_iterate(f)

    assert written(tmp_path, iterate) == streams.part(1, b"", footers=False)


def test_commands(tmp_path: pathlib.Path) -> None:
    state = savevm.SaveState()

    def write(f: channel.OutputQEMUFile) -> None:
        state.send_open_return_path(f)
        state.send_ping(f, 0xDEADBEEF)
        state.send_command(f, 3, b"abc")
        assert f.transferred == f.position  # a command waits for nothing

    expected = streams.command(1) + streams.command(2, b"\xde\xad\xbe\xef") + streams.command(3, b"abc")
    assert written(tmp_path, write) == expected


def test_description_is_compact_json(tmp_path: pathlib.Path) -> None:
    state = savevm.SaveState()
    text = b'{"page_size":4096,"devices":[],"name":"\\u00fc","checksum":"%08x"}'
    text %= zlib.crc32(text[: text.index(b',"checksum"')])
    value = {"page_size": 4096, "devices": [], "name": "ü"}
    assert written(tmp_path, lambda f: state.state_end(f, value)) == streams.EOF + streams.description(text)


# -- cleanup ---------------------------------------------------------------------------------------------------------


def test_every_cleanup_runs_once_and_the_first_error_wins() -> None:
    calls: list[str] = []
    state = savevm.SaveState()
    for number in range(4):
        handlers = Handlers(calls, str(number))
        handlers.failure = RuntimeError(f"cleanup {number}") if number in (1, 2) else None
        state.register_savevm_live("section", number, 1, handlers)
    with pytest.raises(RuntimeError, match="cleanup 1"):
        state.state_cleanup()
    assert calls == ["0 cleanup", "1 cleanup", "2 cleanup", "3 cleanup"]
    state.state_cleanup()
    assert len(calls) == 4


# -- registry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("idstr", "instance", "version"),
    [("", 0, 1), ("x" * 256, 0, 1), ("ü" * 128, 0, 1), ("x", -1, 1), ("x", 2**32, 1), ("x", 0, -1), ("x", 0, 2**32)],
)
def test_what_cannot_be_registered(idstr: str, instance: int, version: int) -> None:
    with pytest.raises(errors.ParameterError):
        savevm.SaveState().register_savevm_live(idstr, instance, version, savevm.SaveVMHandlers())


@pytest.mark.parametrize(("idstr", "instance", "version"), [(None, 0, 1), (b"x", 0, 1), ("x", 1.5, 1), ("x", 0, True)])
def test_what_is_no_name_and_no_number_of_a_section(idstr: Any, instance: Any, version: Any) -> None:
    with pytest.raises(TypeError):
        savevm.SaveState().register_savevm_live(idstr, instance, version, savevm.SaveVMHandlers())


def test_names_are_unique_per_instance() -> None:
    state = savevm.SaveState()
    state.register_savevm_live("block", 0, 1, savevm.SaveVMHandlers())
    state.register_savevm_live("block", 1, 1, savevm.SaveVMHandlers())
    with pytest.raises(errors.ParameterError, match="registered already"):
        state.register_savevm_live("block", 0, 1, savevm.SaveVMHandlers())
    state.unregister_savevm("block", 0)
    state.unregister_savevm("block", 0)
    state.register_savevm_live("block", 0, 1, savevm.SaveVMHandlers())
    assert [entry.section_id for entry in state] == [2, 3]


def test_migrations_share_nothing(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        state = savevm.SaveState()
        state.register_savevm_live("block", 0, 1, Handlers([], "block"))
        assert written(tmp_path, state.state_setup) == streams.start(1, "block")


def test_default_handlers_do_nothing(tmp_path: pathlib.Path) -> None:
    state = savevm.SaveState(savevm.ContainerFormat(footers=False))
    state.register_savevm_live("x", 0, 1, savevm.SaveVMHandlers())
    assert written(tmp_path, state.state_setup) == streams.start(1, "x", b"", footers=False)
    assert state.state_pending() == 0
    assert written(tmp_path, state.state_iterate) == streams.part(1, b"", footers=False)
    assert written(tmp_path, state.state_complete_precopy) == streams.end(1, b"", footers=False)
    state.state_cleanup()


def test_command_names_and_lengths_agree() -> None:
    assert set(container.COMMAND_LENGTHS) <= set(container.COMMAND_NAMES)
