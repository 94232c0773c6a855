# SPDX-License-Identifier: GPL-2.0-or-later
"""Small migrations in which one system call fails once: a process of its own, under LD_PRELOAD of failing_calls.c.

::

    failing_run.py [--OPTION | END=--OPTION]... FOLDER END NAME ERRNO [STEP [FIRST]]      END: "send" or "receive"

imports the package once, and then forks both ends for each call named NAME that the chosen end makes, beginning with
number FIRST and in steps of STEP. It prints one JSON object a run: what was failed, how both ends exited and what they
said, and whether the target is there and equal. NAME "" fails nothing and prints what each end calls, how often. An
option is given to that end, or to both.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import forks
from forks import has_ended, text_of, wait

from blkmig import cli

RUN_SECONDS = 30
"""A run that takes longer waits without a bound."""

EXIT_IN_DOUBT = 7
EXIT_STOPPED = 128 + signal.SIGTERM
GRACE_SECONDS = 0.5
"""A receiver whose sender failed has this long to notice; one that still listens then is stopped."""

shim = ctypes.CDLL(None)


def start(folder: pathlib.Path, words: list[str], arm: tuple[str, int, int], label: str) -> int:
    """Fork one end and return its pid; what it prints goes to LABEL.out."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        log = os.open(folder / f"{label}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for fd in (1, 2):
            os.dup2(log, fd)
        name, nth, error = arm
        shim.failing_calls_arm(name.encode(), ctypes.c_long(nth), error)
        code = cli.main(words)
        sys.stderr.flush()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 2
    except BaseException:
        shim.failing_calls_report(os.fsencode(folder / f"{label}.calls"))
        sys.excepthook(*sys.exc_info())
    finally:
        shim.failing_calls_report(os.fsencode(folder / f"{label}.calls"))
        os._exit(code)


def run(folder: pathlib.Path, arms: dict[str, tuple[str, int, int]], options: dict[str, list[str]]) -> dict[str, Any]:
    """Run both ends, with what is armed in each and their own `options`, and return how it went."""
    socket, nothing = folder / "link", ("", 0, 0)
    deadline = time.monotonic() + RUN_SECONDS
    words = ["receive", f"unix:{socket}", f"v={folder / 'copy.raw'}", *options["receive"]]
    receiver = start(folder, words, arms.get("receive", nothing), "receive")
    while not socket.exists() and not has_ended(receiver) and time.monotonic() < deadline:
        time.sleep(0.001)
    words = ["send", f"v={folder / 'a.raw'}", f"unix:{socket}", "--reconnect=2"]  # for so long a receiver is asked
    words += options["send"]
    sender = start(folder, words, arms.get("send", nothing), "send")
    codes = {"send": wait(sender, deadline)}
    was_stopped = codes["send"] != 0 and not ends_soon(receiver)
    if was_stopped:
        os.kill(receiver, signal.SIGTERM)  # a sender that never began leaves a receiver that goes on listening
    codes["receive"] = wait(receiver, deadline)
    copy, source = folder / "copy.raw", folder / "a.raw"
    return {
        "codes": codes,
        "was_stopped": was_stopped,
        "said": {end: text_of(folder / f"{end}.out") for end in codes},
        "calls": {end: calls(folder / f"{end}.calls") for end in codes},
        "exists": copy.exists(),
        "equal": copy.exists() and copy.read_bytes() == source.read_bytes(),
    }


def ends_soon(pid: int) -> bool:
    """Return whether a child ends within GRACE_SECONDS."""
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        if has_ended(pid):
            return True
        time.sleep(0.001)
    return False


def calls(path: pathlib.Path) -> dict[str, int]:
    """Return how often each call was made; empty for a process that could not even say that."""
    found: dict[str, int] = {}
    for line in text_of(path).splitlines():
        name, count = line.split()
        found[name] = found.get(name, 0) + int(count)
    return found


def clean(folder: pathlib.Path) -> None:
    """Remove everything but the source."""
    for path in folder.iterdir():
        if path.name != "a.raw":
            path.unlink()


def options_of(words: list[str]) -> dict[str, list[str]]:
    """Return the options of each end."""
    options: dict[str, list[str]] = {"send": [], "receive": []}
    for word in words:
        end, equals, option = word.partition("=--")
        for chosen in [end] if equals else options:
            options[chosen].append(f"--{option}" if equals else word)
    return options


def main(say: Callable[[str], object] = print) -> None:
    """Fail each call of the chosen kind, one a run."""
    given = [word for word in sys.argv[1:] if "--" in word]
    options, words = options_of(given), sys.argv[1 + len(given) :]
    folder, end, name, error = pathlib.Path(words[0]), words[1], words[2], int(words[3])
    step, number = map(int, [*words[4:], *"11"[len(words[4:]) :]])
    forks.import_everything()
    while True:
        result = run(folder, {end: (name, number if name else 0, error)}, options)
        result["failed"] = f"{end}: {name} number {number}, {errno.errorcode.get(error, error)}"
        reached = result["calls"][end].get(name, 0) >= number or not result["calls"][end]
        if name and reached and any(result["codes"].values()):
            again = run(folder, {}, options)
            if again["codes"]["receive"] in (EXIT_IN_DOUBT, EXIT_STOPPED):
                # It has settled who has the disk, and said what to do, or still waited for the source to ask.
                again = run(folder, {}, options)
            result["again"] = again["codes"] | {"equal": again["equal"]}
        clean(folder)
        if name and not reached:
            return
        say(json.dumps(result))
        sys.stdout.flush()
        if not name:
            return
        number += step


if __name__ == "__main__":
    main()
