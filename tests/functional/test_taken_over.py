# SPDX-License-Identifier: GPL-2.0-or-later
"""A receiver that waits for a sender which was killed goes on with the next one, which says --resume; and no other."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from pathlib import Path
from typing import Any

import cutter
import dying
import forks
import pauses
import pytest
import tls_links

import blkmig
from blkmig import channel, errors, savevm, stats
from blkmig.files import sessionfile
from blkmig.migration import loading, made

MIB = dying.MIB
MOMENTS: tuple[dying.Moment, ...] = ("bulk", "round", "END", "COMMIT")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_waiting_receiver_goes_on(tmp_path: Path, moment: dying.Moment, count: int) -> None:
    case = dying.Case(tmp_path, count=count)
    case.kill(moment)
    found = case.resume(seed=3)
    incoming = case.receiver.result()
    case.check_equal(moment)
    assert found.same_bytes > 0
    assert incoming.reconnects == 1
    assert any("with --resume" in note for note in incoming.notes), incoming.notes
    assert set(incoming.disks) == set(case.targets)


@pytest.mark.parametrize("moment", ["END", "COMMIT"])
def test_a_move_that_was_not_taken_is_the_sources(tmp_path: Path, moment: dying.Moment) -> None:
    """What the killed process has noted is settled by the receiver's word."""
    case = dying.Case(tmp_path)
    case.kill(moment, writers_after="refuse")
    case.resume()
    case.receiver.result()
    case.check_equal()


@pytest.mark.parametrize("how", ["reset", "silence"])
def test_the_link_of_the_next_one_comes_back(tmp_path: Path, how: cutter.How) -> None:
    """It has the key of the session, and a number of its own; and the next one goes on with that."""
    case = dying.Case(tmp_path, uri="tcp:127.0.0.1:0")
    case.kill("bulk")
    with cutter.Cutter(case.uri, [(900, how), (-100, how), (5000, how)]) as relay, case.disks(seed=2) as opened:
        found = blkmig.send(
            opened, relay.uri, resume=True, idle_timeout=1, writers_after="refuse", downtime_limit=5.0
        )
        received = case.receiver.result()  # before the relay resets what is still on its way
    assert (found.reconnects, received.reconnects) == (3, 4)
    case.check_equal()


def test_again_and_again(tmp_path: Path) -> None:
    case = dying.Case(tmp_path)
    case.kill("bulk")
    for moment in MOMENTS[1:]:
        case.kill(moment, resume=True)
    gc.collect()
    assert sum(type(each) is loading.Loading for each in gc.get_objects()) <= 2, "it keeps what was given up"
    case.resume()
    assert case.receiver.result().reconnects == 4
    case.check_equal()


def test_disks_that_were_taken_are_not_sent_again(tmp_path: Path) -> None:
    """The killed process had said COMMIT: the next one is told that it is done."""
    case = dying.Case(tmp_path)
    case.kill("DONE", writers_after="refuse")
    with pytest.raises(errors.InDoubt, match="the target has taken the disks, by COMMIT"):
        case.resume()
    case.receiver.result()
    case.check_contents()


def frozen(case: dying.Case, moment: dying.Moment, **chosen: Any) -> int:
    """Start a sender that stops at this moment, and return when it has."""
    pid = case.start(moment, how=signal.SIGSTOP, **chosen)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_sender_that_is_only_stopped_keeps_the_next_one_out(tmp_path: Path) -> None:
    case = dying.Case(tmp_path)
    pid = frozen(case, "bulk", writable=False)
    with case.disks(writable=False) as opened, pytest.raises(errors.DeviceBusy, match="still runs, or is stopped"):
        blkmig.send(opened, case.uri, resume=True)
    os.kill(pid, signal.SIGCONT)
    assert exit_code(pid) == 0
    case.receiver.result()
    case.check_equal()


@pytest.mark.parametrize("after", ["release", "refuse"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stopped_sender_that_wakes_up_finds_another_one(tmp_path: Path, moment: dying.Moment, after: str) -> None:
    """Where no lock keeps the two apart, as on two hosts: the receiver does, and exactly one goes on."""
    case = dying.Case(tmp_path)
    pid = frozen(case, moment, writers_after=after)
    other = case.elsewhere()
    done: list[int] = []

    def wake(event: object) -> None:
        if isinstance(event, stats.Progressed) and not done:
            os.kill(pid, signal.SIGCONT)
            done.append(exit_code(pid))

    with other.disks() as opened:
        parameters = blkmig.MigrationParameters(resume=True, writers_after="refuse", downtime_limit=5.0)
        with blkmig.outgoing(opened, case.uri, parameters, on_progress=wake) as migration:
            while not done:
                migration.iterate()
            migration.run()
    assert done == [1]
    case.receiver.result()
    other.check_contents()


def test_a_stopped_sender_that_had_handed_its_disks_over_never_has_them_again(tmp_path: Path) -> None:
    case = dying.Case(tmp_path)
    pid = frozen(case, "DONE", writers_after="refuse", reconnect=1.0)
    with pytest.raises(errors.InDoubt, match="the target has taken the disks"):
        case.elsewhere().resume()
    case.receiver.result()
    held = case.source_contents()
    os.kill(pid, signal.SIGCONT)
    assert exit_code(pid) in (0, 1)  # it has DONE, or is in doubt; it lets no writer go on in either case
    assert case.source_contents() == held == case.target_contents()


def test_two_with_the_same_number(tmp_path: Path) -> None:
    """The second one is refused, and the first one goes on."""
    case = dying.Case(tmp_path)
    case.kill("round")
    other = case.elsewhere()
    with case.disks() as opened:
        parameters = blkmig.MigrationParameters(resume=True, switchover="manual")
        with blkmig.outgoing(opened, case.uri, parameters) as migration:
            migration.iterate()
            with pytest.raises(errors.TargetFailed, match="another sender goes on"):
                other.resume()
            migration.switchover()
            migration.run()
    case.receiver.result()
    case.check_contents()
    with pytest.raises(errors.ChannelError):
        other.resume(connect_timeout=1.0)


@pytest.mark.parametrize("case_name", ["without resume", "no key", "another key", "other disks"])
def test_who_is_none_of_the_session_is_told_so(tmp_path: Path, case_name: str) -> None:
    case = dying.Case(tmp_path)
    case.kill("bulk")
    chosen: dict[str, Any] = {"resume": case_name != "without resume"}
    key = case.key_file()
    kept = key.read_bytes()
    if case_name == "no key":
        key.unlink()
    elif case_name == "another key":
        (tmp_path / "other").mkdir()
        other = dying.Case(tmp_path / "other", seed=2)
        other.kill("bulk")
        key.write_bytes(other.key_file().read_bytes())
        other.resume()
        other.receiver.result()
    with case.disks() as opened:
        if case_name == "other disks":
            opened = [blkmig.MemoryBackend(bytearray(MIB), name="x"), *opened]
            with pytest.raises(errors.ParameterError, match="other disks"):
                blkmig.send(opened, case.uri, **chosen)
        else:
            with pytest.raises(errors.TargetFailed, match="waits for its sender, or for one that says --resume"):
                blkmig.send(opened, case.uri, **chosen)
    key.write_bytes(kept)
    case.resume()
    case.receiver.result()
    case.check_equal()


@pytest.mark.parametrize("chosen", [{"incremental": True}, {"state": "none"}])
def test_a_receiver_that_cannot_be_resumed_keeps_its_session(
    tmp_path: Path, chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "state" in chosen:
        chosen, begin = {}, sessionfile.SessionFile.begin

        def no_place(file: sessionfile.SessionFile, says: dict[str, Any], **options: Any) -> None:
            if says.get("side") == "target":
                raise OSError(30, "Read-only file system")
            begin(file, says, **options)

        monkeypatch.setattr(sessionfile.SessionFile, "begin", no_place)
    else:
        (tmp_path / "to").mkdir()
        (tmp_path / "to" / "d0.raw").write_bytes(bytes(dying.SIZE))
    case = dying.Case(tmp_path, **chosen)
    case.kill("bulk", **({"shared_base": True} if chosen else {}))
    with pytest.raises(errors.TargetFailed, match="nothing can be resumed"):
        case.resume()
    case.receiver.migration.cancel()
    with pytest.raises(errors.Cancelled):
        case.receiver.result()


def test_a_target_that_was_there_is_compared(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "d0.raw").write_bytes(bytes(dying.SIZE))
    case = dying.Case(tmp_path)
    case.kill("bulk")
    assert case.resume().same_bytes > 0
    case.receiver.result()
    case.check_equal()


def test_over_tls_with_a_token(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="a token needs the package cryptography")
    case = dying.Case(tmp_path, uri="tls:127.0.0.1:0")
    tls = blkmig.TlsParameters(token=case.receiver.migration.token)
    case.uri = tls_links.named(case.uri)
    case.kill("bulk", tls=tls)
    assert case.resume(tls=tls).same_bytes > 0
    case.receiver.result()
    case.check_equal()


def test_over_several_connections(tmp_path: Path) -> None:
    case = dying.Case(tmp_path)
    case.kill("bulk", connections=3)
    assert case.resume(connections=4).same_bytes > 0
    case.receiver.result()
    case.check_equal()


def test_a_receiver_that_was_started_anew(tmp_path: Path) -> None:
    """It has not met the session, and takes its next process as any that resumes."""
    case = dying.Case(tmp_path)
    case.kill("bulk")
    case.receiver.migration.cancel()
    with pytest.raises(errors.Cancelled):
        case.receiver.result()
    case.receive()
    case.kill("round", resume=True)
    assert case.resume().same_bytes > 0
    case.receiver.result()
    case.check_equal()


def test_a_receiver_that_does_not_know_the_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an older blkmig: the sender comes again without it."""
    case = dying.Case(tmp_path)
    case.kill("bulk")
    case.receiver.migration.cancel()
    with pytest.raises(errors.Cancelled):
        case.receiver.result()
    monkeypatch.setattr(savevm, "RESUME_MAGIC", b"none")
    case.receive()
    assert case.resume().same_bytes > 0
    case.receiver.result()
    case.check_equal()


def test_a_receiver_that_has_not_met_the_session_settles_no_move(tmp_path: Path) -> None:
    """It says nothing of who owns the disks, so the note of the killed process stands."""
    case = dying.Case(tmp_path)
    case.kill("COMMIT", writers_after="refuse")
    case.receiver.migration.cancel()
    with pytest.raises(errors.Cancelled):
        case.receiver.result()
    case.receive()
    with pytest.raises(errors.InDoubt, match="may have moved"):
        case.resume()
    case.receiver.migration.cancel()
    with pytest.raises(errors.MigrationError):
        case.receiver.result()
    assert not case.targets["d0"].exists()


def test_the_next_receiver_tells_who_resumes_that_the_disks_were_taken(tmp_path: Path) -> None:
    """Both ends were killed behind COMMIT: the session file has the key."""

    def receive() -> None:
        setattr(made.MadeTargets, "give_names", lambda *_: os.kill(os.getpid(), signal.SIGKILL))  # noqa: B010
        with blkmig.IncomingMigration(case.uri, case.targets) as migration:
            os.write(ready, b"!")
            migration.run()

    case = dying.Case(tmp_path)
    case.receiver.migration.cancel()
    with pytest.raises(errors.Cancelled):
        case.receiver.result()
    reading, ready = os.pipe()
    receiver = forks.start(receive)
    assert os.read(reading, 1) == b"!"
    sender = case.start("DONE", writers_after="refuse")
    assert exit_code(receiver) == exit_code(sender) == -signal.SIGKILL
    os.close(reading)
    os.close(ready)

    def begin() -> None:
        with blkmig.IncomingMigration(case.uri, case.targets):
            pass

    meets = pauses.Call(begin)
    end = time.monotonic() + dying.END_SECONDS
    told: errors.MigrationError | None = None
    while not isinstance(told, errors.InDoubt):
        assert time.monotonic() < end, told
        try:
            case.resume(connect_timeout=2.0)
        except errors.MigrationError as error:  # until the receiver listens
            told = error
    assert "the target has taken the disks, by COMMIT" in str(told)
    with pytest.raises(errors.InDoubt, match="they are here, and complete"):
        meets.result()
    case.check_contents()


def test_a_receiver_that_was_started_anew_takes_the_first_who_resumes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It knows no numbers of before. From then on an older process is refused, and a newer one takes over."""
    where = f"unix:{tmp_path}/s"

    def comes(word: bytes) -> tuple[channel.OutputQEMUFile, channel.InputQEMUFile]:
        f = channel.connect(where, timeout=pauses.LONG)
        back = f.return_path()
        assert back is not None
        f.put_buffer(word)
        f.flush()
        return f, back

    def of(incarnation: int) -> savevm.Session:
        return savevm.Session(bytes(range(16)), incarnation, 1, 60)

    def answer(word: bytes) -> object:
        f, back = comes(word)
        opened.extend((f, back))
        return savevm.read_message(back)[1]

    opened: list[channel.OutputQEMUFile | channel.InputQEMUFile] = []
    incoming = blkmig.incoming(where, {"a": tmp_path / "a.raw"})
    with incoming:
        receiver = pauses.Call(incoming.run)
        f, back = comes(of(1).again())  # who would go on by itself is not taken at all
        with contextlib.suppress(errors.ChannelError):  # it is reset if something of it was not read
            assert back.at_eof()
        assert "it wants to go on with a session that another receiver began" in caplog.text
        assert answer(of(3).resume()) == savevm.Resumed(savevm.Waiting.NOBODY)
        refused = answer(of(2).resume())
        assert isinstance(refused, savevm.Failure)
        assert "another sender goes on" in refused.text
        assert answer(of(4).resume()) == savevm.Resumed(savevm.Waiting.RECEIVER)
        assert not receiver.is_over()
        incoming.cancel()
        for each in (f, back, *opened):
            each.abort()
        with pytest.raises(errors.Cancelled):
            receiver.result()
