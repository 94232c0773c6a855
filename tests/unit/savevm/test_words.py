# SPDX-License-Identifier: GPL-2.0-or-later
"""What two blkmigs say on the return path: round trips, every truncation, mutations, and who is told what."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
import savevm_streams as streams

from blkmig import channel, errors, savevm
from blkmig.savevm import return_path, sessions, words

REFUSALS = (
    words.Refusal(0, 28, "no space"),
    words.Refusal(255, 0, ""),
    words.Refusal(7, 0xFFFFFFFF, "x" * words.MAX_REFUSAL_TEXT),
)
WORDS: list[tuple[int, words.Word]] = [
    (words.MIG_RP_MSG_HELLO, words.Hello(0, 65535, 0xFFFFFFFF)),
    (words.MIG_RP_MSG_REPLY, words.Reply()),
    (words.MIG_RP_MSG_REPLY, words.Reply(REFUSALS)),
    (words.MIG_RP_MSG_ERROR, words.Failure("it broke", 5, 1 << 40, "vda")),
    (words.MIG_RP_MSG_ERROR, words.Failure("")),
    (words.MIG_RP_MSG_DONE, words.Done(7)),
    (words.MIG_RP_MSG_DONE, words.Done(0xFFFFFFFF, REFUSALS)),
    (sessions.MIG_RP_MSG_RESUMED, sessions.Resumed(sessions.Waiting.RECEIVER)),
    (sessions.MIG_RP_MSG_RESUMED, sessions.Resumed(sessions.Waiting.OWNER, 0xFFFFFFFF)),
    (words.MIG_RP_MSG_ERROR, words.Failure("é" * 500, 0, 0, "d" * 255)),
]
TEXTS = [word for word in WORDS if word[0] not in (words.MIG_RP_MSG_HELLO, sessions.MIG_RP_MSG_RESUMED)]
MUTATIONS = 3000


def message(kind: int, data: bytes) -> bytes:
    return struct.pack(">HH", kind, len(data)) + data


def read(said: bytes) -> Iterator[tuple[int, object]]:
    with streams.reading(said) as f:
        while not f.at_eof():
            yield return_path.read_message(f)


@pytest.mark.parametrize(("kind", "word"), WORDS)
def test_round_trip(kind: int, word: words.Word) -> None:
    said = message(kind, word.encode())
    assert list(read(said * 2)) == [(kind, word)] * 2


def test_resumed_has_a_state_that_is_known() -> None:
    with pytest.raises(errors.StreamError, match="RESUMED of state 3"):
        list(read(message(sessions.MIG_RP_MSG_RESUMED, b"\3\0\0\0\0")))


def test_how_a_process_resumes() -> None:
    said = sessions.Session(bytes(range(16)), 2, 1, 60)
    assert said.resume() == b"blkR" + bytes(range(16)) + struct.pack(">III", 2, 1, 60)
    assert sessions.parse_again(said.resume()) == said


def test_ready_is_a_number() -> None:
    assert list(read(message(words.MIG_RP_MSG_READY, b"\0\0\0\5"))) == [(words.MIG_RP_MSG_READY, 5)]


@pytest.mark.parametrize(("kind", "word"), WORDS)
def test_every_truncation_is_an_error(kind: int, word: words.Word) -> None:
    """Both of the link, and of the message, whose own length then says less than it holds."""
    data = word.encode()
    for nbytes in range(len(data)):
        with pytest.raises(errors.TruncatedStream):
            list(read(message(kind, data)[: 4 + nbytes]))
        with pytest.raises(errors.StreamError):
            list(read(message(kind, data[:nbytes])))


@pytest.mark.parametrize(("kind", "word"), WORDS)
def test_what_follows_in_a_message_is_an_error(kind: int, word: words.Word) -> None:
    with pytest.raises(errors.StreamError, match="from the target is no"):
        list(read(message(kind, word.encode() + b"\0")))


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">HHIH", 2, 0, 0, 0) * 1,
        struct.pack(">H", 2) + struct.pack(">HIH", 3, 0, 0) * 2,
        struct.pack(">HHIH", 1, 256, 0, 0),
        struct.pack(">HHIH", 1, 0, 0, 201) + b"x" * 201,
        struct.pack(">H", 257) + b"".join(struct.pack(">HIH", index, 0, 0) for index in range(257)),
        struct.pack(">H", 65535) + bytes(8),
    ],
    ids=["one is missing", "one twice", "out of the table", "too long a text", "too many", "far too many"],
)
def test_a_reply_that_no_blkmig_sends(data: bytes) -> None:
    with pytest.raises(errors.StreamError, match="no REPLY as it must be"):
        list(read(message(words.MIG_RP_MSG_REPLY, data)))


def test_mutations_are_errors_or_words_within_bounds() -> None:
    rng = random.Random(20)
    for _ in range(MUTATIONS):
        kind, word = rng.choice(TEXTS)
        data = bytearray(word.encode())
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        try:
            [(_, found)] = read(message(kind, bytes(data)))
        except errors.StreamError:
            continue
        refusals = found.refusals if isinstance(found, words.Reply) else ()
        assert all(refusal.disk < words.MAX_REFUSALS and refusal.text.isprintable() for refusal in refusals)
        assert isinstance(found, words.Reply | words.Failure | words.Done)
        assert not isinstance(found, words.Failure) or found.text.isprintable()


@pytest.mark.parametrize("text", ["\x1b]0;pwned\x07\x1b[2J", "a\nblkmig: complete\r", "\u202emoc.live", "\udc80"])
def test_texts_of_another_host_are_printable(text: str) -> None:
    """C6: a peer must not speak to somebody's terminal."""
    for word in (words.Failure(text), words.Reply((words.Refusal(0, 0, text),))):
        kind = words.MIG_RP_MSG_ERROR if isinstance(word, words.Failure) else words.MIG_RP_MSG_REPLY
        [(_, found)] = read(message(kind, word.encode()))
        shown = found.text if isinstance(found, words.Failure) else found.refusals[0].text  # type: ignore[attr-defined]
        assert shown
        assert shown.isprintable()


def test_bytes_that_are_no_text_are_shown_all_the_same() -> None:
    data = words.Failure("abc").encode().replace(b"abc", b"a\xffc")
    [(_, found)] = read(message(words.MIG_RP_MSG_ERROR, data))
    assert isinstance(found, words.Failure)
    assert found.text == "a\\xffc"


def test_what_is_too_long_is_cut_between_characters() -> None:
    refusal = words.Reply((words.Refusal(0, 0, "x" + "é" * 200),))
    failure = words.Failure("x" + "é" * 1000, device="n" * 300)
    [(_, refused)] = read(message(words.MIG_RP_MSG_REPLY, refusal.encode()))
    [(_, failed)] = read(message(words.MIG_RP_MSG_ERROR, failure.encode()))
    assert isinstance(refused, words.Reply)
    assert isinstance(failed, words.Failure)
    assert refused.refusals[0].text == "x" + "é" * 99
    assert (failed.text, failed.device) == ("x" + "é" * 499, "n" * 255)


@pytest.mark.parametrize(("lowest", "highest"), [(1, 1), (0, 9)])
def test_versions_that_overlap(lowest: int, highest: int) -> None:
    assert words.Hello(lowest, highest).is_understood


@pytest.mark.parametrize(("lowest", "highest"), [(2, 3), (0, 0), (3, 1)])
def test_versions_that_do_not_overlap(lowest: int, highest: int) -> None:
    assert not words.Hello(lowest, highest).is_understood


# -- a loader that knows them ----------------------------------------------------------------------------------------


def commands(*values: int) -> bytes:
    pings = b"".join(streams.command(2, struct.pack(">I", value)) for value in values)
    return streams.HEADER + streams.command(1) + pings + streams.start(1, "block") + streams.end(1) + streams.EOF


def block_state() -> savevm.SaveState:
    state = savevm.SaveState()
    state.register_savevm_live("block", 0, 1, streams.CountingHandlers())
    return state


def test_alive_is_a_text() -> None:
    kind = words.MIG_RP_MSG_ALIVE
    assert list(read(message(kind, b"") + message(kind, b"a\xffc\x1b"))) == [
        (kind, words.Alive("")),
        (kind, words.Alive("a\\xffc\\x1b")),
    ]
    assert words.Alive("é" * 200).encode() == "é".encode() * 100
    with pytest.raises(errors.StreamError, match="no message"):
        list(read(message(kind, b"x" * 201)))


def loaded(f: channel.InputQEMUFile) -> savevm.LoadVM:
    loader = savevm.LoadVM(block_state(), f, answers={words.ASK: words.Hello(), words.ASK_ALIVE: words.Alive(), 3: 4})
    loader.loadvm()
    return loader


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    from blkmig.savevm import drain

    monkeypatch.setattr(drain, "PATIENT_IDLE_TIME", 0.01)
    monkeypatch.setattr(drain, "IDLE_TIME", 0.01)


def said_by(values: tuple[int, ...], status: int) -> list[tuple[int, object]]:
    """Return what a loader says to a source that sends PINGs of these values, up to its end with `status`."""
    with streams.conversation() as (f, far):
        far.sendall(commands(*values))
        loader = loaded(f)
        loader.way_back.reply([words.Refusal(1, 2, "three")])
        loader.way_back.ready(9)
        loader.finish(status, words.Failure("it broke", 5, 4096, "vda") if status else None)
        said = b""
        far.settimeout(20)
        while b"\0\1\0\4" not in said[-8:]:
            said += far.recv(4096)
    return list(read(said))


def test_a_source_that_asks_gets_words() -> None:
    assert said_by((7, words.ASK, 3), 5) == [
        (savevm.MIG_RP_MSG_PONG, 7),
        (words.MIG_RP_MSG_HELLO, words.Hello(1, 1, 0)),
        (savevm.MIG_RP_MSG_PONG, 4),
        (words.MIG_RP_MSG_REPLY, words.Reply((words.Refusal(1, 2, "three"),))),
        (words.MIG_RP_MSG_READY, 9),
        (words.MIG_RP_MSG_ERROR, words.Failure("it broke", 5, 4096, "vda")),
        (savevm.MIG_RP_MSG_SHUT, 5),
    ]


def beaten(*values: int) -> list[tuple[int, object]]:
    """Return what comes of a sign of life, to a source that sends PINGs of these values before."""
    with streams.conversation() as (f, far):
        far.sendall(commands(*values))
        loader = loaded(f)
        loader.beat(3, "what it is at")
        far.settimeout(20)
        return list(read(far.recv(4096)))[len(values) :]


def test_a_sign_of_life_is_in_words_for_who_has_asked_for_that() -> None:
    """A first edition takes ALIVE for no message at all, and ends: it gets PONG."""
    assert beaten(words.ASK, words.ASK_ALIVE) == [(words.MIG_RP_MSG_ALIVE, words.Alive("what it is at"))]
    assert beaten(words.ASK) == [(savevm.MIG_RP_MSG_PONG, 3)]


def test_a_source_that_does_not_ask_gets_qemus_messages_alone() -> None:
    """A QEMU would take anything else for an error."""
    assert said_by((7,), 5) == [(savevm.MIG_RP_MSG_PONG, 7), (savevm.MIG_RP_MSG_SHUT, 5)]


def test_a_loader_that_is_told_of_no_questions_answers_as_ever() -> None:
    with streams.conversation() as (f, far):
        far.sendall(commands(words.ASK))
        savevm.LoadVM(block_state(), f).loadvm()
        assert list(read(far.recv(8))) == [(savevm.MIG_RP_MSG_PONG, words.ASK)]


# -- a source that waits for the last word ---------------------------------------------------------------------------


def test_the_reason_is_what_was_said_first() -> None:
    failure = words.Failure("it broke", 5)
    said = message(2, b"\0\0\0\1") + message(words.MIG_RP_MSG_ERROR, failure.encode()) + message(1, b"\0\0\0\5")
    with streams.reading(said) as f:
        assert savevm.await_shut(f) == failure
    with streams.reading(said) as f:
        assert savevm.find_reason(f, 1.0) == failure


def test_late_words_are_passed_over() -> None:
    late = [message(kind, word.encode()) for kind, word in WORDS if not isinstance(word, words.Failure)]
    with streams.reading(b"".join(late) + message(1, b"\0\0\0\0")) as f:
        assert savevm.await_shut(f) == 0


def test_a_flood_of_words_has_no_reason_in_it() -> None:
    """B3: looking for a reason ends, however much is there."""
    flood = message(words.MIG_RP_MSG_REPLY, words.Reply(REFUSALS).encode()) * 2000
    with streams.reading(flood) as f:
        assert savevm.find_reason(f, 0.0) is None
        assert f.position < len(flood)
    with streams.reading(flood) as f, pytest.raises(errors.StreamError, match="message after message"):
        savevm.await_shut(f, clock=lambda: 0.0)
