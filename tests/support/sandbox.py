# SPDX-License-Identifier: GPL-2.0-or-later
"""A network and a few folders of its own, in which command lines of the documentation run word for word.

There, the host ``dest`` is this machine, /srv and /run are empty, ``blkmig`` is the package under test, ``ssh HOST
COMMAND`` runs the command here, and no port is in use.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import command
import peers

SETUP = r"""
set -euo pipefail
ip link set lo up
mount --bind "$SANDBOX/hosts" /etc/hosts
mount --bind "$SANDBOX/srv" /srv
mount --bind "$SANDBOX/run" /run
export PATH="$SANDBOX/bin:$PATH"
cd "$SANDBOX/here"
# Run a receiving line in the background, and go on when it listens.
receive() {
    rm -f "$SANDBOX/err"; mkfifo "$SANDBOX/err"
    bash -c "$1" 2>"$SANDBOX/err" & receiver=$!
    exec 7<"$SANDBOX/err"
    read -r announced <&7
    [[ $announced == "listening on"* ]] || { echo "$announced"; cat <&7; exit 1; } >&2
}
# Wait for what `receive` has started.
received() { wait $receiver || { cat <&7 >&2; exit 1; }; exec 7<&-; }
# Run a line.
run() { bash -c "set -o pipefail; $1"; }
"""

BLKMIG = """#!/bin/sh
exec {python} -m blkmig "$@"
"""

PYTHON = """#!/bin/sh
exec {python} "$@"
"""

QEMU = """#!/bin/sh
# A guest that has nothing to run, and does not run before somebody says so, or before it has come.
PATH=${PATH#*:}
case "$*" in *-incoming*) ;; *) set -- -S "$@" ;; esac
exec qemu-system-x86_64 -nodefaults -display none -accel tcg "$@"
"""

SSH = """#!/bin/sh
shift
exec sh -c "$*"
"""

SOCAT = """#!{python}
import os, socket, sys
assert sys.argv[1] == "-" and sys.argv[2].startswith("UNIX:"), sys.argv
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[2][5:])
while piece := os.read(0, 1 << 20):
    link.sendall(piece)
link.shutdown(socket.SHUT_WR)
while link.recv(4096):
    pass
"""

QMP = """#!{python}
# qmp SOCKET COMMAND...: run each command, as it is written in JSON, and print what the last one returns
import json, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
lines = link.makefile("rw")
lines.readline()
for text in ['{{"execute": "qmp_capabilities"}}', *sys.argv[2:]]:
    lines.write(text)
    lines.flush()
    while "event" in (answer := json.loads(lines.readline())):
        pass
    if "error" in answer:
        sys.exit(str(answer))
print(json.dumps(answer["return"]))
"""


class Sandbox:
    """The folders of a sandbox; `here` is where its lines run."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.here = folder / "here"
        for name in ("here", "srv/disks", "run", "bin"):
            (folder / name).mkdir(parents=True)
        (folder / "hosts").write_text("127.0.0.1 localhost dest\n")
        programs = {
            "blkmig": BLKMIG,
            "python": PYTHON,
            "qemu-system-x86_64": QEMU,
            "ssh": SSH,
            "socat": SOCAT,
            "qmp": QMP,
        }
        for name, text in programs.items():
            (folder / "bin" / name).write_text(text.format(python=sys.executable) if "{python}" in text else text)
            (folder / "bin" / name).chmod(0o755)

    def run(self, script: str, lines: Sequence[str] = (), *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a script of bash, whose ``$1``, ``$2`` ... are `lines`; what it leaves running is ended."""
        enter = ["unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return subprocess.run(
            [*enter, "bash", "-c", SETUP + script, "sandbox", *lines],
            env={**command.environment(), "SANDBOX": str(self.folder), "HOME": str(self.folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def require() -> None:
    """Skip the calling module where there can be no sandbox."""
    peers.require("unshare", "ip", "bash")
    enter = ["unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--mount-proc"]
    tried = subprocess.run([*enter, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False)
    if tried.returncode:
        peers.lacking(f"no namespaces: {tried.stderr.strip()}")
    if not all(os.path.isdir(path) for path in ("/srv", "/run")):  # noqa: PTH112
        peers.lacking("no /srv or /run to be replaced")
