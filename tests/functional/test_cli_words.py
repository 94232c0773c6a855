# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of a command line: in any order, none swallowed, none empty, and nothing that ends in a traceback."""

from __future__ import annotations

import os
import subprocess
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
        (["receive", "file:x", "v=1", "v=2"], "disk 'v' is said twice, '1' and '2'"),
        (["receive", "file:x", "1", "--map", "0=2"], "disk number 0 is said twice"),
        (["receive", "file:x", "v=1", "--size", "v=1M", "--size", "v=2M"], "the size of disk 'v' is said twice"),
        (["inspect", "file:x", "--size", "1M", "--size", "2M"], "the size of disk '' is said twice"),
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

    monkeypatch.setattr("blkmig.sources.open_sources", fail)
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


LONG = "x" * 300
BAD = [
    "send v=DISK file:/proc/x",
    "send v=DISK file:/",
    f"send v=DISK file:{LONG}",
    f"send v={LONG} file:x",
    f"send v=DISK unix:{LONG}",
    "send v=DISK unix:/nonexistent/x",
    "send v=DISK tcp:localhost:99999",
    "send v=DISK fd:99",
    "send v=DISK exec:",
    f"send v=DISK fd:{'9' * 5000}",
    f"send v=DISK tcp:localhost:{'9' * 5000}",
    "send v=DISK tcp:\udcff:1",
    f"send v=DISK tcp:{LONG}.org:1",
    f"send v=DISK file:x --max-bandwidth={'9' * 5000}",
    f"send v=DISK file:x --max-bandwidth={'9' * 500}.5",
    f"send v=DISK file:x --max-rounds={'9' * 5000}",
    "send v=DISK file:x,offset=-1",
    "send v=DISK file:x,offset=99999999999999999999",
    "send v=/dev/null file:x",
    "send v=/ file:x",
    "send v=/proc/self/mem file:x",
    "send v=DISK v=DISK file:x",
    "send v=qemu:/nonexistent file:x",
    "send v=qemu: file:x",
    "send v=dirtymap:x file:x",
    "send v=DISK file:x --max-rounds=-1",
    "send v=DISK file:x --timeout=nan",
    "send v=DISK file:x --downtime-limit=inf",
    "send v=DISK file:x --downtime-factor=nan",
    "send v=DISK file:x --connect-timeout=nan",
    "send v=DISK file:x --idle-timeout=-1",
    "send v=DISK file:x --max-bandwidth=99999999999999999999",
    "send v=DISK file:x --machine=\udcff",
    "send v=DISK file:x --reading=any",
    "send v=DISK file:x --granularity=5000",
    "send v=DISK file:x --granularity=fine",
    "receive file:DISK v=copy",
    "receive file:STREAM --into /proc/1",
    "receive file:STREAM --into DISK",
    "receive file:STREAM v=/dev/null",
    "receive file:STREAM v=/",
    "receive file:STREAM v=qemu:x",
    "receive file:STREAM other=x",
    "receive file:STREAM --map 99999999999999999999=copy",
    "receive file:STREAM --map \u00b2=x",
    f"receive file:STREAM --map {'9' * 5000}=x",
    "receive file:STREAM --size 1 v=copy",
    "receive file:STREAM v=copy --size v=1T",
    f"receive file:STREAM v={LONG}",
    "receive file:/ v=copy",
    "receive file:/dev/zero v=copy",
    "receive fd:77 v=copy",
    "receive tcp:1.2.3.4:1 v=copy",
    "receive unix:/nonexistent/x v=copy",
    "receive tcp::4444:5 v=copy",
    "receive file:STREAM v=copy --accept-timeout=nan",
    "receive file:STREAM v=copy --idle-timeout=nan",
    "inspect /",
    "inspect /dev/null",
    "inspect DISK",
    "inspect \udcff",
    "inspect STREAM --size any",
    "serve a=/nonexistent --nbd unix:n",
    "serve a=DISK --nbd tcp:localhost:99999 --qmp q",
    f"serve a=DISK --nbd unix:{LONG}",
    f"serve a=DISK --nbd tcp:localhost:{'9' * 5000} --qmp q",
    "serve a=DISK --nbd tcp:localhost:\u00b2 --qmp q",
    f"serve a=DISK --nbd tcp:{LONG}.org:1 --qmp q",
    "serve a=DISK --nbd any",
    "cleanup any",
    "cleanup qemu:/nonexistent",
    "cleanup qemu:DISK",
    "cleanup qemu:/nonexistent --connect-timeout=nan",
    "demo --dir /nonexistent",
    "demo --size=8M --dir /proc",
    "demo --size=any",
    "demo --size=8M --downtime-limit=nan",
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return a disk and its stream, by what the words above call them."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "disk.raw").write_bytes(b"x" * (lab.MIB + 512))
    assert command.run("send", f"v={folder}/disk.raw", f"file:{folder}/stream").exit_code == 0
    return {"DISK": f"{folder}/disk.raw", "STREAM": f"{folder}/stream"}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_told_in_clear_words(
    line: str,
    inputs: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """C7: whatever is wrong with it, it is an error of the tree, and nothing that was there is touched."""
    monkeypatch.chdir(tmp_path)
    before = {name: Path(path).read_bytes() for name, path in inputs.items()}
    for name, path in inputs.items():
        line = line.replace(name, path)
    assert cli.main([*line.split(), *([] if line.startswith(("inspect", "serve", "cleanup")) else ["--progress=none"])])
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert outcome.DEFECT not in err
    assert err or line.startswith("inspect")
    assert {name: Path(path).read_bytes() for name, path in inputs.items()} == before
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("words", ["send v=a.raw fd:N", "receive fd:N v=b.raw", "inspect fd:N"])
def test_a_descriptor_that_was_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: str
) -> None:
    """A4: what a command has opened itself, disks among it, is never taken for the stream."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.raw", "b.raw", "own"):
        Path(name).write_bytes(bytes(lab.MIB))
    fd = os.open("own", os.O_RDWR)  # kept from other programs, as what Python opens is
    try:
        assert cli.main(words.replace("N", str(fd)).split()) == 5
        assert f"descriptor {fd} was not given to this command" in capfd.readouterr().err
        os.set_inheritable(fd, True)
        assert cli.main(words.replace("N", str(fd)).split()) == (0 if words.startswith("send") else 1)
    finally:
        os.close(fd)


def test_names_do_not_depend_on_the_locale(tmp_path: Path) -> None:
    """C9: a name is the same bytes on the wire and in a folder, whatever the command line is written in."""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    content = bytes(range(256)) * 4096
    (tmp_path / "ü.raw").write_bytes(content)

    def run(*words: str, **environment: str) -> None:
        env = {**command.environment(), **environment}
        done = subprocess.run(command.command(*words), cwd=tmp_path, env=env, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr

    run("send", "ü.raw", "file:one", **ascii_only)
    run("inspect", "one", **ascii_only)
    run("send", "ü=ü.raw", "file:two", **ascii_only)
    run("receive", "file:two", "--into", "utf8")
    run("receive", "file:two", "--into", "ascii", **ascii_only)
    run("receive", "file:two", "ü=named.raw", **ascii_only)
    for path in ("utf8/ü.raw", "ascii/ü.raw", "named.raw"):
        assert (tmp_path / path).read_bytes() == content


def test_names_are_escaped_in_results(tmp_path: Path) -> None:
    """C9: a stream says what a disk is called, and does not command the terminal."""
    (tmp_path / "a.raw").write_bytes(bytes(lab.MIB))
    name = "a\n\x1b[31m"
    assert command.run("send", f"{name}={tmp_path}/a.raw", f"file:{tmp_path}/s").exit_code == 0
    done = command.run("receive", f"file:{tmp_path}/s", f"{name}={tmp_path}/b.raw")
    assert done.exit_code == 0
    assert done.stdout.startswith("a \\x1b[31m ")
