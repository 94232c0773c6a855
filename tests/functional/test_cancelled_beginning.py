# SPDX-License-Identifier: GPL-2.0-or-later
"""A source that gives up while its target still opens disks is not waited for, however long that takes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pauses
import pytest
import tls_links

import blkmig
from blkmig import errors
from blkmig.migration import incomingsession, outgoingsession, questions, targets
from blkmig.savevm import commands

SOON = 9.0
"""Less than anything waits that is not told of the end."""


@pytest.fixture(params=["tcp", "tls", "unix", "tls by a relay"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.contextmanager
def begun(
    way: str, folder: Path
) -> Iterator[tuple[blkmig.IncomingMigration, blkmig.OutgoingMigration, pauses.Call, pauses.Call]]:
    """Run a receiver and begin a source, each in a thread, over such a link; give both, and their calls."""
    uri = f"unix:{folder}/s" if way == "unix" else f"{way[:3]}:127.0.0.1:0"
    with contextlib.ExitStack() as stack:
        incoming = stack.enter_context(blkmig.incoming(uri, {"d": folder / "copy.raw"}))
        where = tls_links.named(incoming.uri)
        if "relay" in way:
            where = stack.enter_context(tls_links.Between(incoming.uri, which=-1)).uri
        trust = blkmig.TlsParameters(token=incoming.token) if "tls" in way else None
        outgoing = blkmig.outgoing([pauses.disk_of(2)], where, blkmig.MigrationParameters(tls=trust))
        yield incoming, outgoing, pauses.Call(incoming.run), pauses.Call(lambda: stack.enter_context(outgoing))


@pytest.mark.parametrize(("owner", "name"), [(targets.TargetSet, "open"), (incomingsession.IncomingSession, "_take")])
def test_a_source_that_is_cancelled_meanwhile(
    way: str, owner: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS it cannot say goodbye before somebody shakes hands with it, and it does not wait for that."""
    monkeypatch.setattr(outgoingsession, "GOODBYE_SECONDS", pauses.LONG)
    is_inside, go_on, original = threading.Event(), threading.Event(), getattr(owner, name)

    def slow(*args: Any, **options: Any) -> Any:
        is_inside.set()
        assert go_on.wait(pauses.LONG)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, slow)
    with begun(way, tmp_path) as (incoming, outgoing, receiver, sender):
        try:
            assert is_inside.wait(pauses.LONG)
            outgoing.cancel()
            assert sender.is_over(SOON), "it waits for a target that opens its disks"
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


def test_a_source_that_does_not_hear_that_it_would_be_waited_for(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to SESSION is there, and the source is cancelled before it looks."""
    has_answered, answer, hear = threading.Event(), commands.Commands.answer_session, questions.Questions.await_session

    def answering(*args: Any) -> None:
        answer(*args)
        has_answered.set()

    def deaf(self: questions.Questions, seconds: float) -> Any:
        assert has_answered.wait(pauses.LONG)
        outgoing.cancel()
        return hear(self, seconds)

    monkeypatch.setattr(commands.Commands, "answer_session", answering)
    monkeypatch.setattr(questions.Questions, "await_session", deaf)
    with begun(way, tmp_path) as (incoming, outgoing, receiver, sender):
        try:
            with pytest.raises(errors.Cancelled):
                sender.result()
            assert receiver.is_over(SOON), "the receiver waits for a source that has given up"
        finally:
            incoming.cancel()
