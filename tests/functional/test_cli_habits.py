# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command does beside its work: doctor, completion, and words to systemd."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import command
import lab
import pytest

from blkmig import cli, stats
from blkmig.cli import completion, findings, notify, parser
from blkmig.nbd import present

MIB = lab.MIB


def test_doctor_says_what_is_here(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capfd.readouterr().out)["findings"]}
    assert found["blkmig"]["found"] == parser.version()
    assert found["numpy"]["found"]
    assert bool(found["qemu-nbd"]["found"]) == (shutil.which("qemu-nbd") is not None)
    assert found["libnbd"]["found"] == present.version()
    assert cli.main(["doctor"]) == 0
    shown = capfd.readouterr().out
    assert [name for name in found if f"  {name} " not in shown] == []


def test_doctor_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (broken := tmp_path / "qemu-img").write_text("no program")
    broken.chmod(0o755)
    found = {each.name: each for each in findings.findings()}
    assert (found["qemu-nbd"].found, found["qemu-nbd"].install) == ("", "apt-get install qemu-utils")
    assert found["qemu-img"].found == "broken"


def test_every_extra_is_known_to_the_doctor() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    extras = {line.split("'blkmig[")[1].split("]")[0] for *_, line in findings.LIBRARIES if "blkmig[" in line}
    assert [extra for extra in extras if f"\n{extra} = [" not in text] == []
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    there = {line.partition(" = ")[0] for line in section.splitlines() if " = [" in line}
    assert there - {"cli", "test", "lint", "gates", "docs"} == extras, "what is for users is in LIBRARIES"


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion(shell: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert cli.main(["completion", shell]) == 0
    shown = capfd.readouterr().out
    assert [name for name in (*parser.COMMANDS, "--max-bandwidth", "--metrics-listen") if name not in shown] == []


def test_bash_completes(tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    script = tmp_path / "completion"
    script.write_text(command.run("completion", "bash").stdout)
    line = ["blkmig", "send", "--max-"]
    code = f"""
        source {script}
        COMP_WORDS=({" ".join(line)}); COMP_CWORD=2; COMP_LINE='{" ".join(line)}'
        $(complete -p blkmig | sed 's/.*-F \\([^ ]*\\).*/\\1/') blkmig --max- send
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert {*done.stdout.split()} == {"--max-bandwidth", "--max-rounds"}


@pytest.mark.parametrize("name", ["send", "receive", "inspect", "serve"])
def test_words_that_name_files_are_completed_as_files(name: str) -> None:
    pytest.importorskip("shtab")
    script = command.run("completion", "bash").stdout
    assert f"_shtab_blkmig_{name}_pos_0_COMPGEN=_shtab_compgen_files" in script


def test_completion_without_its_library(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert "pip install 'blkmig[completion]'" in capfd.readouterr().err


class Systemd:
    """The socket that a service is told of."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(60)

    def hear(self) -> str:
        return self.socket.recv(4096).decode()


def test_a_receiver_is_ready_when_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd = Systemd(f"{tmp_path}/notify")
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
    disk = tmp_path / "vda.raw"
    disk.write_bytes(os.urandom(MIB))
    with systemd.socket, command.receiver(f"unix:{tmp_path}/s", f"vda={tmp_path}/copy.raw") as receiver:
        assert systemd.hear() == "READY=1\n"
        monkeypatch.delenv("NOTIFY_SOCKET")
        assert command.run("send", str(disk), receiver.uri).exit_code == 0
        assert receiver.finish().exit_code == 0
        said = [systemd.hear()]
        while said[-1] != "STATUS=completed\n":
            said.append(systemd.hear())
    assert "READY=1\nSTATUS=active\n" in said


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_status(tmp_path: Path, kind: str) -> None:
    address = f"{tmp_path}/notify" if kind == "path" else f"@blkmig-test-{os.getpid()}"
    systemd = Systemd(address.replace("@", "\0"))
    notifier = notify.Notifier(address)
    for elapsed in (0.0, 0.5, 1.5):
        notifier(stats.Received(elapsed, 5 * MIB, 5, 0, 34))
    notifier(stats.StatusChanged(2.0, "failed"))
    with systemd.socket:
        assert [systemd.hear() for _ in range(3)] == [
            "STATUS=0:00  bulk 34 %  received 5.0 MiB  5 blocks\n",
            "STATUS=0:02  bulk 34 %  received 5.0 MiB  5 blocks\n",
            "STATUS=failed\n",
        ]
    notifier.tell(READY="1")  # nobody is there any more
    silent = notify.Notifier("")
    silent.tell(READY="1")
    assert not silent.is_wanted


@pytest.mark.parametrize("words", [("doctor",), ("send", "vda.raw", "file:s"), ("send", "--help")])
def test_compiled_modules_that_do_not_load_are_a_message(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a routine that no CPU has: what the manual says of BLKMIG_ZERO_KERNEL."""
    monkeypatch.setenv("BLKMIG_ZERO_KERNEL", "vax780")
    done = command.run(*words)
    assert done.exit_code == 1
    assert done.stderr.startswith("blkmig: BLKMIG_ZERO_KERNEL=vax780: no zero kernel is called 'vax780': use one of ")
    assert done.stderr.count("\n") == 1


def test_files_of_the_program_that_cannot_be_opened_are_a_message() -> None:
    """C7: any number of descriptors is enough, or one clear error."""
    for count in range(5, 9):  # with fewer the interpreter itself does not begin
        line = f"ulimit -n {count}; exec {shlex.join(command.command('doctor'))}"
        done = subprocess.run(["bash", "-c", line], env=command.environment(), capture_output=True, check=False)
        assert b"Traceback" not in done.stderr, count
        assert done.returncode == 0 or done.stderr.startswith(b"blkmig: "), (count, done.stderr)
