# SPDX-License-Identifier: GPL-2.0-or-later
"""A token in place of certificates: whoever has it may send, nobody else; it is in no message."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import pty
import random
import re
import stat
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import command
import cutter
import lab
import pytest
import tls_links
from tls_links import TIMEOUT

import blkmig
from blkmig import channel, errors, events, pipes
from blkmig.channel import handshakes, token
from blkmig.cli import main

pytest.importorskip("cryptography", reason="a token needs the package cryptography")

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "d.raw").write_bytes(random.Random(1).randbytes(2 * MIB))
    return tmp_path / "d.raw"


def by(text: str) -> blkmig.TlsParameters:
    return blkmig.TlsParameters(token=text)


def other_pin(text: str) -> str:
    said = token.Token.parse(text)
    return token.Token(bytes(32), said.seed).text()


def other_seed(text: str) -> str:
    said = token.Token.parse(text)
    return token.Token(said.pin, bytes(32)).text()


def test_whoever_has_the_token_may_send(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has another one is refused, at the end that notices, and keeps nobody out."""
    incoming = blkmig.incoming("tls:127.0.0.1:0", {"d": tmp_path / "copy.raw"})
    with caplog.at_level(logging.DEBUG), incoming, concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(incoming.run)
        try:
            uri, said = tls_links.named(incoming.uri), incoming.token
            with pytest.raises(errors.ChannelError, match="not the receiver that has made the token") as stranger:
                blkmig.send([source], uri, tls=by(other_pin(said)))
            with pytest.raises(errors.ChannelError, match=r"does not (trust|accept)") as refused:
                blkmig.send([source], uri, tls=by(other_seed(said)))
            assert not (tmp_path / "copy.raw").exists()
            blkmig.send([source], uri, tls=by(said))
            assert running.result(TIMEOUT)
        finally:
            incoming.cancel()
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()
    for text in (caplog.text, str(stranger.value), str(refused.value), repr(by(said)), repr(incoming.parameters)):
        assert said not in text


def test_a_token_of_a_receiver_that_has_ended(source: Path, tmp_path: Path) -> None:
    with channel.listen("tls:127.0.0.1:0") as old:
        said = old.token
    incoming = blkmig.incoming("tls:127.0.0.1:0", {"d": tmp_path / "copy.raw"})
    with incoming, concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(incoming.run)
        try:
            assert incoming.token != said
            with pytest.raises(errors.ChannelError, match="not the receiver that has made the token"):
                blkmig.send([source], tls_links.named(incoming.uri), tls=by(said))
        finally:
            incoming.cancel()


def test_a_token_that_is_too_old(source: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr(token, "LIFETIME_SECONDS", -1.0)
    with channel.listen("tls:127.0.0.1:0") as listener, concurrent.futures.ThreadPoolExecutor() as pool:
        accepted = pool.submit(lambda: listener.accept(timeout=TIMEOUT))
        with pytest.raises(errors.MigrationError):
            blkmig.send([source], tls_links.named(listener.uri), tls=by(listener.token))
        listener.cancel()
        with pytest.raises(errors.Cancelled):
            accepted.result(TIMEOUT)
    assert "the token is too old" in caplog.text


def test_a_session_comes_again_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large disk takes longer than that; nobody else can begin anything at its receiver meanwhile."""
    content, later = random.Random(3).randbytes(3 * MIB), [0.0]
    receiver = lab.Receiver("tls:127.0.0.1:0", {"d": tmp_path / "copy.raw"})
    clock = types.SimpleNamespace(monotonic=lambda: time.monotonic() + later[0])
    monkeypatch.setattr(handshakes, "time", clock)

    def note(event: events.Event) -> None:
        if isinstance(event, events.Reconnecting):
            later[0] = 2 * token.LIFETIME_SECONDS

    disk = blkmig.MemoryBackend(bytearray(content), name="d")
    parameters = blkmig.MigrationParameters(tls=by(receiver.migration.token))
    with cutter.Cutter(receiver.uri, [(MIB, "reset")]) as relay:
        with blkmig.outgoing([disk], tls_links.named(relay.uri), parameters, on_progress=note) as migration:
            migration.run()
        receiver.result()
    assert (migration.stats.reconnects, later[0] > 0) == (1, True)
    assert (tmp_path / "copy.raw").read_bytes() == content


def test_what_is_no_token() -> None:
    said = token.Token(bytes(range(32)), bytes(range(32, 64)))
    text = said.text()
    assert re.fullmatch(r"[\w-]+", text)
    assert token.Token.parse(f" {text[:40]}\n{text[40:]}\n") == said
    assert "seed" not in repr(said)
    wrong = ["", "x", text[:-1], text[1:], text + "A", text.swapcase(), text[:10] + "é" + text[11:]]
    wrong += [text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :] for place in range(len(text))]
    for bad in wrong:
        with pytest.raises(errors.ParameterError) as caught:
            token.Token.parse(bad)
        assert not bad or len(bad) < 2 or bad not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("others", [{"certificates": "/x"}, {"authority": "/x"}, {"hostname": "example.org"}])
def test_a_token_stands_alone(others: dict[str, Any]) -> None:
    with pytest.raises(errors.ParameterError, match="in place of certificates") as caught:
        blkmig.TlsParameters(token="secret", **others)
    assert "secret" not in str(caught.value)


def test_a_receiver_makes_its_token_itself() -> None:
    with pytest.raises(errors.ParameterError, match="makes its token itself"):
        channel.listen("tls:127.0.0.1:0", tls=by("x"))


def test_by_files_on_the_command_line(source: Path, tmp_path: Path) -> None:
    """The receiver's file is there while it waits, for this user alone."""
    file = tmp_path / "token"
    with command.receiver("tls:127.0.0.1:0", f"d={tmp_path}/copy.raw", "--token-file", file) as receiver:
        deadline = time.monotonic() + TIMEOUT
        while not file.exists() or not file.read_text().endswith("\n"):
            assert time.monotonic() < deadline
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        said = file.read_text()
        again = command.run("receive", "tls:127.0.0.1:0", f"d={tmp_path}/more.raw", "--token-file", file)
        assert again.exit_code == 2
        assert "it is there already" in again.stderr
        sent = command.run("send", "--token-file", file, f"d={source}", tls_links.named(receiver.uri))
        assert sent.exit_code == 0, sent.stderr
        outcome = receiver.finish()
    assert outcome.exit_code == 0, outcome.stderr
    assert not file.exists()
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()
    for text in (sent.stdout, sent.stderr, outcome.stdout, outcome.stderr, again.stderr):
        assert said.strip() not in text


def test_by_a_pipe_on_the_command_line(source: Path, tmp_path: Path) -> None:
    """As a program for passwords gives it, in its own time."""
    file = tmp_path / "token"
    with command.receiver("tls:127.0.0.1:0", f"d={tmp_path}/copy.raw", "--token-file", file) as receiver:
        line = '"$@" --token-file <(until read -r said <"$file"; do :; done; printf %s "${said:0:9}"; echo "${said:9}")'
        words = command.command("send", f"d={source}", tls_links.named(receiver.uri))
        environment = {**command.environment(), "file": str(file)}
        done = subprocess.run(["bash", "-c", line, "bash", *words], env=environment, timeout=TIMEOUT, check=False)
        assert (done.returncode, receiver.finish().exit_code) == (0, 0)


def test_a_file_that_took_the_place_of_the_token_stays(tmp_path: Path) -> None:
    """What the receiver has not made, it does not remove."""
    file = tmp_path / "token"
    with command.receiver("tls:127.0.0.1:0", f"d={tmp_path}/copy.raw", "--token-file", file) as receiver:
        deadline = time.monotonic() + TIMEOUT
        while not file.exists():
            assert time.monotonic() < deadline
        file.unlink()
        file.write_text("precious")
        receiver.process.terminate()
        assert receiver.finish().exit_code == 143
    assert file.read_text() == "precious"


def shown_until(terminal: int, wanted: bytes) -> bytes:
    """Return what a terminal shows, up to something that is waited for, or the end."""
    seen = b""
    with contextlib.suppress(OSError):  # which is how a terminal ends
        while not re.search(wanted, seen) and (piece := os.read(terminal, 1000)):
            seen += piece
    return seen


def on_a_terminal(*words: str) -> tuple[int, int]:
    """Start a command that has a terminal of its own; return its process and the terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(sys.executable, command.command(*words), command.environment())
    return pid, terminal


def test_from_one_terminal_to_another(source: Path, tmp_path: Path) -> None:
    """One shows the token, the other one asks for it and does not show it."""
    receiver, screen = on_a_terminal("receive", "--progress=none", "tls:127.0.0.1:0", f"d={tmp_path}/copy.raw")
    seen = shown_until(screen, rb"[\w-]{92}\r?\n").decode()
    assert "--token\r\n" in seen
    said = re.findall(r"^[\w-]{92}", seen, re.MULTILINE)[0]
    uri = re.findall(r"listening on (\S+)", seen)[0]
    sender, other = on_a_terminal("send", "--progress=none", f"d={source}", tls_links.named(uri), "--token")
    assert shown_until(other, rb"token: ").endswith(b"token: ")
    os.write(other, f"{said}\n".encode())
    assert said not in shown_until(other, rb"(?!)").decode()
    for pid, terminal in ((sender, other), (receiver, screen)):
        shown_until(terminal, rb"(?!)")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(terminal)
    assert (tmp_path / "copy.raw").read_bytes() == source.read_bytes()


def test_words_about_tokens_that_make_no_sense(source: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    (tmp_path / "open").write_text("token")
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "empty").touch(0o600)
    os.mkfifo(tmp_path / "pipe", 0o600)
    monkeypatch.setattr(pipes, "SECONDS", 0.01)
    monkeypatch.setattr("sys.stdin", (tmp_path / "empty").open())
    for words, why in (
        (["--token-file", f"{tmp_path}/open"], "others may use the token"),
        (["--token-file", f"{tmp_path}/none"], "No such file"),
        (["--token-file", f"{tmp_path}/empty"], "the token is missing"),
        (["--token-file", "-"], "the token is missing"),
        (["--token-file", f"{tmp_path}/pipe"], "nobody has written all of it into this pipe"),
        (["--token", "--token-file", "-"], "say one of them"),
    ):
        assert main(["send", *words, str(source), "tls:localhost:1"]) == 2
        assert why in capsys.readouterr().err
    for words, why in (
        (["tls:127.0.0.1:0"], "stderr is no terminal"),
        (["tcp:127.0.0.1:0", "--token-file", f"{tmp_path}/t"], "is for tls: without certificates"),
        (["tls:127.0.0.1:0", "--token-file", "-"], "say a FILE for it"),
    ):
        assert main(["receive", *words, "--into", f"{tmp_path}/new"]) == 2
        assert why in capsys.readouterr().err


def test_without_the_package(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(errors.ParameterError, match=r"pip install 'blkmig\[tls\]'"):
        channel.listen("tls:127.0.0.1:0")
