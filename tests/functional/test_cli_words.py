# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of a command line: in any order, none swallowed, none empty, and nothing that ends in a traceback."""

from __future__ import annotations

from pathlib import Path

import command
import lab
import pytest

import blkmig
from blkmig import cli
from blkmig.cli import outcome, output, parser


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    """C12."""
    assert cli.main(["--version"]) == 0
    assert capfd.readouterr().out == f"blkmig {blkmig.__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("send --dry-run qemu:/run/vm.qmp tcp:dest:4444", {"dry_run": 3.0, "disks": ["qemu:/run/vm.qmp"]}),
        ("send qemu:/run/vm.qmp --dry-run tcp:dest:4444", {"dry_run": 3.0, "disks": ["qemu:/run/vm.qmp"]}),
        ("send qemu:/run/vm.qmp tcp:dest:4444 --dry-run=0.5", {"dry_run": 0.5, "uri": "tcp:dest:4444"}),
        ("send --dry a b tcp:dest:4444", {"dry_run": 3.0, "disks": ["a", "b"]}),
        ("send a --verify b --move c tcp:dest:4444 --qemu", {"verify": True, "move": True, "disks": ["a", "b", "c"]}),
        ("receive tcp::4444 --incremental vda=x.raw", {"incremental": True, "disks": ["vda=x.raw"]}),
        ("receive --verify tcp::4444 a=1 --direct b=2 --size 1G", {"disks": ["a=1", "b=2"], "size": ["1G"]}),
        ("receive --into d - -v", {"uri": "-", "into": "d", "verbose": True}),
        ("-v receive --into d -", {"verbose": True}),
        ("inspect x.stream --records", {"stream": "x.stream", "records": True}),
        ("serve a=a.raw --nbd unix:n b=b.raw", {"images": ["a=a.raw", "b=b.raw"], "nbd": "unix:n"}),
        ("--progress=json send a -", {"progress": "json", "uri": "-"}),
        ("send -- -weird.raw -", {"disks": ["-weird.raw"], "uri": "-"}),
    ],
)
def test_options_may_stand_anywhere(words: str, expected: dict[str, object]) -> None:
    """E5: no option swallows the next word, and no word behind an option is lost."""
    args = vars(parser.parse(words.split()))
    assert {name: args[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to do: send, receive"),
        (["sned", "a", "b"], "there is no command 'sned': say one of send, receive"),
        (["send", "a"], "required"),
        (["send", "a", "b", "--nonsense"], "--nonsense"),
        (["send", "a", "b", "--dry-run=soon"], "'soon' is not a number of seconds"),
        (["send", "a", "b", "--dry-run=nan"], "'nan' is not a number of seconds"),
        (["send", "a", "b", "--dry-run=inf"], "'inf' is not a number of seconds"),
        (["receive", "file:x", "v="], "'v=' names no disk"),
        (["receive", "file:x", ""], "'' names no disk"),
        (["receive", "file:x", "--into", ""], "the value is empty"),
        (["receive", "file:x", "--map", "0="], "--map takes INDEX=DISK"),
        (["receive", "file:x", "--size", "v=", "v=x"], "is not a size"),
        (["receive", "", "v=x"], "the value is empty"),
        (["send", "v=", "file:x"], "'v=' names no disk"),
        (["send", "", "file:x"], "'' names no disk"),
        (["send", "v=x", ""], "the value is empty"),
        (["inspect", ""], "the value is empty"),
        (["serve", "a=", "--nbd", "unix:n"], "'a=' names no disk"),
        (["serve", "a=a", "--nbd", ""], "the value is empty"),
        (["demo", "--dir", ""], "the value is empty"),
        (["cleanup", ""], "the value is empty"),
    ],
)
def test_words_that_make_no_sense(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    """C8, C12: exit 2 and one clear line; nothing was touched."""
    assert cli.main(words) == 2
    out, err = capfd.readouterr()
    assert message in err.splitlines()[-1]
    assert not out


@pytest.mark.parametrize("name", parser.COMMANDS)
def test_help_tells_with_examples(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    out, _ = capfd.readouterr()
    assert "examples:" in out
    assert f"blkmig {name} " in out or name == "demo"


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (OSError(28, "No space left on device", "x.raw"), 1, "'x.raw': No space left on device"),
        (OSError(12, "Cannot allocate memory"), 1, "Cannot allocate memory"),
        (MemoryError(), 1, "there is not enough memory"),
        (RecursionError("maximum recursion depth exceeded"), 1, "RecursionError"),
        (ZeroDivisionError("division by zero"), 1, "this is a defect of blkmig; run it again with -v"),
        (UnicodeEncodeError("ascii", "ü", 0, 1, "ordinal not in range"), 1, "UnicodeEncodeError"),
        (KeyboardInterrupt(), 130, "cancelled"),
        (blkmig.errors.InDoubt("who owns it"), 7, "who owns it"),
    ],
)
def test_no_error_ends_in_a_traceback(
    error: BaseException,
    exit_code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """C7: the last resort, for what nobody expected; with ``-v`` it says where that came from."""

    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("blkmig.disk.open_sources", fail)
    assert cli.main(["send", "a", "file:x"]) == exit_code
    _, err = capfd.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert cli.main(["-v", "send", "a", "file:x"]) == exit_code
    _, err = capfd.readouterr()
    assert ("Traceback" in err) == (exit_code == 1)


def test_a_signal_makes_a_broken_link_a_cancel_and_a_fact_stays_a_fact(capfd: pytest.CaptureFixture[str]) -> None:
    """C5: what breaks because of the signal is the signal's; that the disks differ is not."""
    output.set_up(progress="plain", is_verbose=False)
    broken = blkmig.errors.ChannelError("sending", uri="tcp:a:1", cause="it broke")
    assert outcome.report(broken, 1) == 129
    assert "cancelled by SIGHUP" in capfd.readouterr().err
    assert outcome.report(blkmig.errors.ContentMismatch("they differ", device="v"), 15) == 3
    assert outcome.report(blkmig.errors.InDoubt("who owns it"), 2) == 7


def test_words_that_are_no_text(tmp_path: Path) -> None:
    """C7: bytes in the command line that no encoding knows."""
    for words in (["send", b"\xff\xfe.raw", b"file:x"], [b"\xff"], ["inspect", b"\xff"], ["receive", b"\xff", "a"]):
        done = command.finish(command.start(*words))  # type: ignore[arg-type]
        assert done.exit_code in (1, 2, 5)
        assert "Traceback" not in done.stderr
        assert "\\udcff" in done.stderr


def test_a_file_of_a_strange_name_can_be_sent(tmp_path: Path) -> None:
    path = Path(str(tmp_path / "\udcff.raw"))
    path.write_bytes(b"x" * lab.MIB)
    assert command.run("send", str(path), f"file:{tmp_path}/s").exit_code == 0
