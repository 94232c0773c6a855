# SPDX-License-Identifier: GPL-2.0-or-later
"""A source that resumes, and is cancelled before it has the receiver's answer to that, is not waited for."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import dying
import pauses
import pytest
import tls_links

import blkmig
from blkmig import errors, savevm
from blkmig.migration import keyfile, outgoingsession, questions

SOON = 9.0
"""Less than anything waits that is not told of the end."""


@pytest.mark.parametrize("is_answered", [False, True])
@pytest.mark.parametrize("way", ["tcp", "unix", "tls", "tls by a relay"])
def test_who_is_cancelled_before_the_answer(
    way: str, is_answered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer has not left, or it has, and the source does not hear it."""
    monkeypatch.setattr(outgoingsession, "GOODBYE_SECONDS", pauses.LONG)
    has_come, go_on, welcomed = threading.Event(), threading.Event(), threading.Event()
    send_word, await_resumed = savevm.send_word, questions.Questions.await_resumed

    def slow(back: Any, word: savevm.Word) -> None:
        has_come.set()
        assert is_answered or go_on.wait(pauses.LONG)
        send_word(back, word)
        welcomed.set()

    def deaf(self: questions.Questions) -> Any:
        assert (welcomed if is_answered else has_come).wait(pauses.LONG)
        outgoing.cancel()
        return await_resumed(self)

    monkeypatch.setattr(savevm, "send_word", slow)
    monkeypatch.setattr(questions.Questions, "await_resumed", deaf)
    source = tmp_path / "d.raw"
    source.write_bytes(b"x" * pauses.MIB)
    incoming = blkmig.incoming(f"unix:{tmp_path}/s" if way == "unix" else f"{way[:3]}:127.0.0.1:0",
                               {"d": tmp_path / "copy.raw"})  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.enter_context(incoming)
        disk = stack.enter_context(blkmig.FileBackend(source, name="d"))
        key = keyfile.KeyFile(None)
        key.begin([disk], keyfile.Known(b"k" * 16, 1))
        key.close()  # as it is left by a process that is killed
        where = tls_links.named(incoming.uri)
        if "relay" in way:
            where = stack.enter_context(tls_links.Between(incoming.uri, which=-1)).uri
        trust = blkmig.TlsParameters(token=incoming.token) if "tls" in way else None
        outgoing = blkmig.outgoing([disk], where, blkmig.MigrationParameters(resume=True, tls=trust))
        receiver, sender = pauses.Call(incoming.run), pauses.Call(lambda: stack.enter_context(outgoing))
        try:
            assert sender.is_over(SOON), "it waits for a target that is busy"
            with pytest.raises(errors.Cancelled):
                sender.result()
            go_on.set()
            assert receiver.is_over(SOON), "the receiver waits for a source that has given up"
            with pytest.raises((errors.ChannelError, errors.TruncatedStream)):
                receiver.result()
        finally:
            go_on.set()
            incoming.cancel()
    assert not (tmp_path / "copy.raw").exists()


def test_a_receiver_that_waited_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, and keeps what has come for the next one."""
    case, await_resumed = dying.Case(tmp_path, uri="tcp:127.0.0.1:0"), questions.Questions.await_resumed
    case.kill("bulk")
    welcomed, send_word = threading.Event(), savevm.send_word

    def welcoming(back: Any, word: savevm.Word) -> None:
        send_word(back, word)
        if isinstance(word, savevm.Resumed):
            welcomed.set()

    def deaf(self: questions.Questions) -> Any:
        assert welcomed.wait(pauses.LONG)
        outgoing.cancel()
        return await_resumed(self)

    monkeypatch.setattr(savevm, "send_word", welcoming)
    monkeypatch.setattr(questions.Questions, "await_resumed", deaf)
    with case.disks() as opened:
        outgoing = blkmig.outgoing(opened, case.uri, blkmig.MigrationParameters(resume=True))
        with pytest.raises(errors.Cancelled), outgoing:
            raise AssertionError
    with pytest.raises((errors.ChannelError, errors.TruncatedStream)):
        case.receiver.result()
    monkeypatch.undo()
    case.receive()
    assert case.resume().same_bytes > 0
    case.receiver.result()
    case.check_equal()
