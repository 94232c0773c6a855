# SPDX-License-Identifier: GPL-2.0-or-later
"""Which section two ends speak: two blkmigs, an older one, a QEMU, somebody who only listens, a one-way channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lab
import pytest
import scripted
from pauses import Call, disk_of, until

import blkmig
from blkmig import errors
from blkmig.savevm import words

SHORT = 0.05
"""Seconds for a target that says nothing."""

ONE_WAY = ("pipe", "file", "exec")


@pytest.mark.parametrize("writers_after", ["release", "refuse"])
@pytest.mark.parametrize("kind", lab.CHANNELS)
def test_two_blkmigs_find_each_other(tmp_path: Path, kind: str, writers_after: str) -> None:
    disk = disk_of(3)
    sent, came = lab.migrate(tmp_path, kind, [disk], {"d": tmp_path / "t.raw"}, writers_after=writers_after)
    assert sent.format == came.format == ("block" if kind in ONE_WAY else "blkmig")
    assert (tmp_path / "t.raw").read_bytes() == b"x" * 3 * lab.MIB


@pytest.mark.parametrize("format", ["block", "blkmig"])
@pytest.mark.parametrize("kind", lab.CHANNELS)
def test_a_section_that_was_asked_for(tmp_path: Path, kind: str, format: str) -> None:
    """On a one-way channel it is written without asking, and taken without an answer."""
    disks: list[blkmig.BlockBackend] = [disk_of(2), blkmig.MemoryBackend(bytearray(), name="empty")]
    targets = {"d": tmp_path / "t.raw", "empty": tmp_path / "e.raw"}
    sent, came = lab.migrate(tmp_path, kind, disks, targets, format=format)
    assert sent.format == came.format == format
    assert (tmp_path / "t.raw").read_bytes() == b"x" * 2 * lab.MIB
    assert (tmp_path / "e.raw").read_bytes() == b""


def test_without_a_return_path_nobody_is_asked(tmp_path: Path) -> None:
    sent, came = lab.migrate(tmp_path, "unix", [disk_of(2)], {"d": tmp_path / "t.raw"}, return_path=False)
    assert sent.format == came.format == "block"


@pytest.mark.parametrize("kind", ["tcp", "file"])
def test_digests_and_top_layers(tmp_path: Path, kind: str) -> None:
    (tmp_path / "t.raw").write_bytes(b"x" * 2 * lab.MIB)
    receive = {"verify": True, "incremental": True}
    sent, came = lab.migrate(
        tmp_path,
        kind,
        [disk_of(2)],
        {"d": tmp_path / "t.raw"},
        receive=receive,
        digests=True,
        shared_base=True,
        format="blkmig",
    )
    assert sent.format == came.format == "blkmig"
    assert came.disks["d"].verified


ANSWERS: dict[str, tuple[scripted.Answer, float]] = {
    "an older blkmig or a QEMU": (scripted.pong, 30.0),
    "nothing": (scripted.nothing, SHORT),
    "later versions": (scripted.hello(2, 3), 30.0),
    "no version": (scripted.hello(0, 0), 30.0),
}


@pytest.mark.parametrize(("answer", "seconds"), ANSWERS.values(), ids=ANSWERS.keys())
def test_who_does_not_take_it_gets_block_byte_for_byte(
    tmp_path: Path, answer: scripted.Answer, seconds: float
) -> None:
    streams = []
    for format in ("block", "auto"):
        target = scripted.Target(tmp_path, answer, name=format)
        with blkmig.outgoing(
            [disk_of(2)], target.uri, blkmig.MigrationParameters(connect_timeout=seconds, format=format)  # type: ignore[arg-type]
        ) as migration:
            migration.run()
        target.join()
        assert (target.idstr, migration.stats.format) == ("block", "block")
        assert (scripted.ASK in target.received) == (format == "auto")
        streams.append(target.without_question())
    assert streams[0] == streams[1]


@pytest.mark.parametrize("options", [{"qemu": True}, {"machine": "pc-i440fx-7.2"}, {"machine_compat": "2.3"}])
def test_who_is_said_to_be_a_qemu_is_not_asked(tmp_path: Path, options: dict[str, Any]) -> None:
    target = scripted.Target(tmp_path, scripted.pong, ends_well="machine_compat" not in options)
    migration = blkmig.outgoing([disk_of(2)], target.uri, blkmig.MigrationParameters(**options))
    with migration:
        pass  # left at once: cancelled
    target.join()
    assert scripted.ASK not in target.received
    assert target.idstr == "block"


def test_a_hello_that_comes_late_is_passed_over(tmp_path: Path) -> None:
    target = scripted.Target(tmp_path, scripted.nothing)
    with blkmig.outgoing(
        [disk_of(2)], target.uri, blkmig.MigrationParameters(connect_timeout=SHORT, writers_after="release")
    ) as migration:
        until(lambda: target.idstr == "block")
        target.say(scripted.message(words.MIG_RP_MSG_HELLO, words.Hello().encode()) * 3)
        migration.run()
    assert migration.stats.format == "block"


@pytest.mark.parametrize(("answer", "seconds"), ANSWERS.values(), ids=ANSWERS.keys())
def test_a_section_that_the_target_does_not_take(tmp_path: Path, answer: scripted.Answer, seconds: float) -> None:
    target, disk = scripted.Target(tmp_path, answer), disk_of(2)
    with pytest.raises(errors.ParameterError, match="the section 'blkmig' cannot be sent: the target") as caught:
        blkmig.send([disk], target.uri, connect_timeout=seconds, format="blkmig")
    target.join()
    assert caught.value.exit_code == 2
    assert target.idstr is None
    with disk.block_use("somebody else"):
        pass


@pytest.mark.parametrize("options", [{"qemu": True}, {"machine": "pc"}, {"machine_compat": "2.2"}])
def test_a_section_that_no_qemu_takes(options: dict[str, Any]) -> None:
    with pytest.raises(errors.ParameterError, match="a QEMU does not take"):
        blkmig.MigrationParameters(format="blkmig", **options)


def test_more_disks_than_a_table_takes(tmp_path: Path) -> None:
    """Empty disks stand in it, too; a stream of any kind has 256 others at most (unit/block/test_checks)."""
    disks = [blkmig.MemoryBackend(bytearray(number < 256), name=str(number)) for number in range(257)]
    with pytest.raises(errors.ParameterError, match="1 to 256 disks that are not read-only"):
        blkmig.send(disks, f"file:{tmp_path}/stream", format="blkmig")


# -- ends of the waits -----------------------------------------------------------------------------------------------


def begun(target: scripted.Target, **parameters: Any) -> tuple[blkmig.OutgoingMigration, Call]:
    migration = blkmig.outgoing([disk_of(2)], target.uri, blkmig.MigrationParameters(**parameters))

    def run() -> None:
        with migration:
            migration.run()

    return migration, Call(run)


SILENT: dict[str, tuple[scripted.Answer, bytes]] = {
    "HELLO": (scripted.nothing, scripted.ASK),
    "REPLY": (scripted.hello(), scripted.BLKMIG_START),
}


@pytest.mark.parametrize(("answer", "mark"), SILENT.values(), ids=SILENT.keys())
def test_a_cancel_ends_the_wait(tmp_path: Path, answer: scripted.Answer, mark: bytes) -> None:
    target = scripted.Target(tmp_path, answer)
    migration, running = begun(target)
    until(lambda: mark in target.received)
    migration.cancel()
    with pytest.raises(errors.Cancelled):
        running.result()


@pytest.mark.parametrize(("answer", "mark"), SILENT.values(), ids=SILENT.keys())
def test_a_target_that_goes_meanwhile(tmp_path: Path, answer: scripted.Answer, mark: bytes) -> None:
    target = scripted.Target(tmp_path, answer)
    _, running = begun(target)
    until(lambda: mark in target.received)
    target.hang_up()
    with pytest.raises(errors.ChannelError, match=r"(asking the target|waiting for the target).* closed the link"):
        running.result()


@pytest.mark.parametrize(("answer", "mark"), SILENT.values(), ids=SILENT.keys())
@pytest.mark.parametrize(
    ("said", "text", "fields"),
    [
        (scripted.message(1, 28), "No space left", (None, None, 28)),
        (
            scripted.message(words.MIG_RP_MSG_ERROR, words.Failure("it\x1b broke", 5, 512, "d").encode()),
            r"it\\x1b broke",
            ("d", 512, 5),
        ),
    ],
    ids=["SHUT", "ERROR"],
)
def test_a_target_that_fails_meanwhile(
    tmp_path: Path, answer: scripted.Answer, mark: bytes, said: bytes, text: str, fields: tuple[object, ...]
) -> None:
    target = scripted.Target(tmp_path, answer)
    _, running = begun(target)
    until(lambda: mark in target.received)
    target.say(said)
    with pytest.raises(errors.TargetFailed, match=f"before the stream's end: .*{text}") as caught:
        running.result()
    assert (caught.value.device, caught.value.offset, caught.value.errno) == fields
    assert caught.value.exit_code == 1


def test_a_target_that_never_replies(tmp_path: Path) -> None:
    target = scripted.Target(tmp_path, scripted.hello())
    with pytest.raises(errors.ChannelTimeout, match="waiting for the target to take the disks: it has not said within"):
        blkmig.send([disk_of(2)], target.uri, idle_timeout=SHORT)
