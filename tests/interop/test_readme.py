# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command line of the README, of the guides and of ``--help`` runs, word for word (E5).

The lines are taken from there; each has to be in one of the scenarios below, and each scenario runs them in a sandbox
with the programs and files that they speak of. The README's first two commands are run by .ci/run. In the pages below
docs, a block of command lines stands under the mark ``<!-- commands -->``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import subprocess
from pathlib import Path

import peers
import pytest
import sandbox

from blkmig import cli
from blkmig.cli import parser

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
QEMU = "qemu-system-x86_64"
MACHINE = "-nodefaults -display none -accel tcg -S"


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Lines of the documentation, the script that runs them as ``$1``, ``$2`` ..., and the programs that it takes."""

    name: str
    lines: tuple[str, ...]
    script: str
    programs: tuple[str, ...] = ()


RECEIVE = "blkmig receive tcp::4444"
SEND_VDA = "blkmig send vda=vda.raw tcp:dest:4444"
RUN_QEMU = f"""
# Not by -daemonize: QEMU would go to / and not find its files again.
start_qemu() {{
    rm -f monitor
    {QEMU} {MACHINE} -qmp unix:monitor,server=on,wait=off "$@" & qemu=$!
    until [ -S monitor ] && qmp monitor '{{"execute": "query-status"}}' >/dev/null; do kill -0 $qemu; done
}}
quit_qemu() {{ qmp monitor '{{"execute": "quit"}}'; wait $qemu; }}
until_completed() {{
    until qmp monitor '{{"execute": "query-migrate"}}' >told; grep -q completed told; do
        ! grep failed told
    done
}}
"""
LIVE = f"""{RUN_QEMU}
start_qemu -drive file=vda.raw,format=raw,if=none,id=vda -device virtio-blk-pci,id=dev0,drive=vda \\
    -qmp unix:/run/vm.qmp,server=on,wait=off
"""
SERVE = """
bash -c "$1" >told & server=$!
until grep -q "send with" told; do kill -0 $server; done
kill -TERM $server
status=0; wait $server || status=$?
[ $status = 143 ]
"""

MAKE_CERTIFICATES = (
    f"python -c 'import sys, pathlib; sys.path.insert(0, \"{Path(sandbox.__file__).parent}\"); import tls\n"
    "tls.make_certificates(pathlib.Path(\"pki\"), host=\"dest\")'\n"
)
SCENARIOS = [
    Scenario("one disk", (f"{RECEIVE} vda=copy.raw", SEND_VDA),
             'receive "$1"; run "$2"; received; cmp vda.raw copy.raw'),
    Scenario("every disk", (f"{RECEIVE} --into /srv/disks", SEND_VDA),
             'receive "$1"; run "$2"; received; cmp vda.raw /srv/disks/vda.raw'),
    Scenario("over ssh", ("blkmig send vda.raw vdb.raw 'exec:ssh dest blkmig receive - --into /srv/disks'",),
             'run "$1"; cmp vda.raw /srv/disks/vda.raw; cmp vdb.raw /srv/disks/vdb.raw'),
    Scenario("to a socket over ssh", ("blkmig send drive0=vda.raw 'exec:ssh dest socat - UNIX:incoming'",),
             'receive "blkmig receive unix:incoming drive0=copy.raw"; run "$1"; received; cmp vda.raw copy.raw'),
    Scenario("incremental", (f"{RECEIVE} --incremental vda=x.raw",),
             'cp vda.raw x.raw; truncate -s 4M top.raw\n'
             'printf top | dd of=top.raw bs=1 seek=1M conv=notrunc status=none\n'
             'receive "$1"; blkmig send --incremental vda=top.raw,base=vda.raw tcp:dest:4444; received\n'
             '[ "$(tail -c +1048577 x.raw | head -c 3)" = top ]; cmp -n 1M vda.raw x.raw'),
    Scenario("an image into a file and back",
             ("blkmig send vda.qcow2,format=qcow2 file:vda.stream",
              "blkmig receive file:vda.stream vda=vda.qcow2,format=qcow2"),
             'qemu-img convert -O qcow2 vda.raw vda.qcow2; run "$1"; rm vda.qcow2; run "$2"\n'
             'qemu-img compare vda.raw vda.qcow2', ("qemu-img", "qemu-nbd")),
    Scenario("what is in a stream", ("blkmig inspect captured.stream", "blkmig inspect --records - <captured.stream"),
             'blkmig send vda=vda.raw file:captured.stream; run "$1" | grep complete; run "$2" | grep DEVICE_BLOCK'),
    Scenario("the demo", ("blkmig demo", "blkmig demo --size 256M --write-rate 100M --progress=plain"), 'run "$2"'),
    Scenario("from a QEMU",
             (f"{RECEIVE} drive0=copy.raw",
              '{"execute": "migrate-set-parameters", "arguments": {"downtime-limit": 0}}',
              '{"execute": "migrate", "arguments": {"uri": "tcp:dest:4444", "blk": true}}'),
             RUN_QEMU + 'start_qemu -drive file=vda.raw,format=raw,if=virtio,id=drive0\n'
             'receive "$1"; qmp monitor "$2"; qmp monitor "$3"; until_completed; received; cmp vda.raw copy.raw',
             (QEMU,)),
    Scenario("to a QEMU",
             ("qemu-system-x86_64 -drive file=copy.qcow2,if=virtio,id=drive0 -incoming tcp::4444 ...",
              "blkmig send --qemu drive0=vda.raw tcp:dest:4444"),
             RUN_QEMU + 'qemu-img create -q -f qcow2 copy.qcow2 4M; words=${1#* }; start_qemu ${words% ...}\n'
             'run "$2"; quit_qemu; qemu-img compare vda.raw copy.qcow2', (QEMU, "qemu-img")),
    Scenario("to an old QEMU", ("blkmig send --machine pc-i440fx-2.3 drive0=vda.raw tcp:dest:4444",),
             RUN_QEMU + 'qemu-img create -q -f qcow2 copy.qcow2 4M\n'
             'start_qemu -machine pc-i440fx-2.3 -drive file=copy.qcow2,if=virtio,id=drive0 -incoming tcp::4444\n'
             'run "$1"; quit_qemu; qemu-img compare vda.raw copy.qcow2', (QEMU, "qemu-img")),
    Scenario("disks of a running QEMU",
             ("blkmig send --dry-run qemu:/run/vm.qmp tcp:dest:4444",
              f"{RECEIVE} --into /srv/disks",
              "blkmig send --move qemu:/run/vm.qmp,device=vda tcp:dest:4444",
              "blkmig cleanup qemu:/run/vm.qmp"),
             LIVE + 'run "$1"; receive "$2"; run "$3"; received; run "$4"; cmp vda.raw /srv/disks/vda.raw', (QEMU,)),
    Scenario("the disks of a VM that moves",
             ("blkmig send --switchover=pause-before qemu:/run/vm.qmp tcp:dest:4444",),
             LIVE + 'receive "blkmig receive tcp::4444 --into /srv/disks"; bash -c "$1" & sender=$!\n'
             'until qmp monitor \'{"execute": "query-migrate-capabilities"}\' |\n'
             '    grep -q \'"pause-before-switchover", "state": true\\|"state": true, "capability": "pause-before\'\n'
             'do kill -0 $sender; done\n'
             f'cp vda.raw other.raw; {QEMU} {MACHINE} -device virtio-blk-pci,id=dev0,drive=vda -incoming unix:ram \\\n'
             '    -drive file=other.raw,format=raw,if=none,id=vda & until [ -S ram ]; do kill -0 $!; done\n'
             'qmp monitor \'{"execute": "migrate", "arguments": {"uri": "unix:ram"}}\'\n'
             'wait $sender; received; until_completed; cmp vda.raw /srv/disks/vda.raw', (QEMU,)),
    Scenario("over TLS",
             ("blkmig receive tls::4444 --tls-certificates pki --into /srv/disks",
              "blkmig send vda.raw tls:dest:4444 --tls-certificates pki"),
             MAKE_CERTIFICATES + 'receive "$1"; run "$2"; received; cmp vda.raw /srv/disks/vda.raw', ("openssl",)),
    Scenario("what is here", ("blkmig doctor", "blkmig doctor --json"), 'run "$1"; run "$2" | python3 -m json.tool'),
    Scenario("completion",
             ("blkmig completion bash >/etc/bash_completion.d/blkmig", "blkmig completion zsh >~/.zfunc/_blkmig"),
             'HOME=$PWD; mkdir .zfunc; run "$2"; grep -q blkmig .zfunc/_blkmig\n'
             'words=${1% >*}; run "$words >completion"; bash -n completion'),
    Scenario("an image that is served", ("blkmig serve vda=vda.qcow2,format=qcow2 --nbd unix:/run/vda.nbd",),
             'qemu-img convert -O qcow2 vda.raw vda.qcow2' + SERVE, ("qemu-storage-daemon", "qemu-img")),
    Scenario("an image that is served on TCP",
             ("blkmig serve vda=vda.raw --nbd tcp:127.0.0.1:10809 --qmp /run/vda.qmp",),
             SERVE, ("qemu-storage-daemon",)),
]  # fmt: skip

RUNS_IN_ANOTHER = {
    "qemu-system-x86_64 ... -qmp unix:/run/vm.qmp,server=on,wait=off",
    'eval "$(blkmig completion bash)"',
    "blkmig receive --delta vda=old.raw --allow 10.0.0.7 tcp::4444 vda=new.raw",
    "blkmig receive --in-place --allow 10.0.0.7 tcp::4444 vda=old.raw",
}
"""What starts the QEMU of two scenarios, which have more to say about it, what test_cli_habits.py runs in bash, and
what docs/test_examples.py runs in the page about old copies, with an address that is there."""


def without_comment(line: str) -> str:
    return re.sub(r"\s+#.*", "", re.sub(r"\s{4,}[a-z].*$", "", line) if line.startswith("{") else line).strip()


def documented_lines() -> list[str]:
    """Return the command lines of the README and of the pages below docs."""
    found = readme_lines()
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"<!-- commands -->\n```\w*\n(.*?)```", page.read_text(), re.DOTALL):
            found += [without_comment(line) for line in block.splitlines()]
    return found


def readme_lines() -> list[str]:
    """Return the command lines of the README: its blocks that have no language, and what stands between backquotes."""
    found, prose, language = [], "", None
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.startswith("```"):
            language = line.removeprefix("```") if language is None else None
        elif language is None:
            prose += f"{line}\n"
        elif language == "":
            found.append(without_comment(line))
    return found + [quoted for quoted in re.findall(r"`([^`]+)`", prose) if re.match(r"blkmig \S+ \S", quoted)]


def help_lines() -> list[str]:
    """Return the examples of each command's help."""
    found = []
    for name in parser.COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            assert cli.main([name, "--help"]) == 0
        found += [line for line in text.getvalue().partition("examples:")[2].splitlines() if line.strip()]
    return [without_comment(line) for line in found]


def test_every_line_has_a_scenario() -> None:
    """E5: what is added to the README, to a guide or to a help text has to be run here, too."""
    known = {line for scenario in SCENARIOS for line in scenario.lines} | RUNS_IN_ANOTHER
    documented = {*documented_lines(), *help_lines()}
    assert documented - known == set()
    assert known - documented == set()


@pytest.mark.parametrize("line", sorted({*documented_lines(), *help_lines()}))
def test_every_line_is_parsed(line: str) -> None:
    """E5: the words of each line make sense, also where it cannot be run."""
    if line.startswith("blkmig "):
        words = shlex.split(re.split(" [<>]", line)[0])
        parser.parse(words[1:])


@pytest.fixture(scope="module")
def _namespaces() -> None:
    sandbox.require()


@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "-"))
def test_lines_run(tmp_path: Path, scenario: Scenario) -> None:
    """E5."""
    peers.require(*scenario.programs)
    place = sandbox.Sandbox(tmp_path / "box")
    for name in ("vda.raw", "vdb.raw"):
        (place.here / name).write_bytes(os.urandom(2 * MIB) + bytes(MIB) + os.urandom(MIB))
    done: subprocess.CompletedProcess[str] = place.run(scenario.script, scenario.lines)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
