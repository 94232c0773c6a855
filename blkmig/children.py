# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that were started: they end with this process, and how they have ended is never taken for granted.

A process that ignores SIGCHLD, as some supervisors leave it to whom they start, is not told how its children end;
nor is one whose other parts wait for any child. Python's `subprocess` makes 0 of that, which is success.

A child is tied to this process by a pipe that the kernel closes when this process ends, by SIGKILL, too::

    this process ──── pipe, held open ────► /bin/sh, reading      at its end: removes sockets, ends the child
         └──────────── Popen ─────────────► child

PR_SET_PDEATHSIG would be set in the child, which is no place for Python code in a program with threads, and it fires
when the *thread* ends that has started the child.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_WATCH = r"""
read -r pid since
read -r word && exit
rm -f -- "$@"
is_there() {
    read -r line 2>/dev/null <"/proc/$pid/stat" || return
    set -- ${line##*) }
    [ "${20}" = "$since" ]
}
is_there || exit
kill -TERM "$pid"
kill -CONT "$pid"
for second in 1 2 3 4 5 6 7 8 9 10; do
    sleep 1
    is_there || exit
done
kill -KILL "$pid"
"""
"""The number of a process that has ended may be another one's by then, so the moment of its start is compared, too."""

OBEY_SECONDS = 2.0
"""How long processes may take to do what no process can refuse: to stop, and to end by SIGKILL. One that waits for a
disk does neither, and is left alone after that."""

_ENDED = "ZX"
_STILL = f"Tt{_ENDED}"
"""Their states then, in /proc/PID/stat: ended, which a parent that is stopped does not take note of; or stopped."""

_WAITS = "D"
"""The state of one that waits where no signal is heard."""

_STARTED = 19
"""Where that moment stands in /proc/PID/stat, behind the name."""


def exit_status(child: subprocess.Popen[bytes]) -> int | None:
    """Return how `child` has ended as Popen gives it, None while it runs.

    Raises ChildProcessError if it has ended and nobody can say how.
    """
    if child.returncode is not None:
        return child.returncode
    try:
        # Looked at, and left: what Popen itself makes of a child that is gone is 0.
        found = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        child.returncode = -signal.SIGCHLD  # so that nobody waits for it again, and nobody takes it for a success
        raise status_unknown() from None
    if found is None:
        return None
    child.poll()
    child.returncode = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
    return child.returncode


def status_unknown() -> ChildProcessError:
    """Return the error for a command of which nobody can tell how it ended."""
    return ChildProcessError(
        errno.ECHILD,
        "the command has ended, and nobody can say how: this process ignores SIGCHLD, or another part of it takes the "
        "exit statuses of all children; restore signal.SIG_DFL for SIGCHLD",
    )


def require_statuses() -> None:
    """Raise ChildProcessError if this process would not be told how a command ends; call it before starting one."""
    if is_sigchld_ignored():
        raise status_unknown()


def is_sigchld_ignored() -> bool:
    """Return whether this process ignores SIGCHLD, whoever made it do so."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        status = Path("/proc/self/status").read_text(errors="replace")
        ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
        return bool(int(ignored, 16) >> (signal.SIGCHLD - 1) & 1)
    return signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN


def end(child: subprocess.Popen[bytes], grace: float) -> None:
    """Make `child` end, and whatever it has started: by SIGTERM, after `grace` seconds by SIGKILL; never raises.

    A shell hands no signal on to what it waits for. It has no process group of its own, or an ssh could not ask the
    terminal for a password. All are stopped before they get the signal, so that none of them starts one that misses it.
    """
    if child.returncode is not None:
        return
    family: dict[int, int] = {}
    with contextlib.ExitStack() as stack:
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, max(grace, OBEY_SECONDS))):
            _stop_family(child, family, stack)
            deadline = time.monotonic() + patience
            for each in (number, signal.SIGCONT):
                with contextlib.suppress(OSError):
                    child.send_signal(each)
                for fd in family.values():
                    with contextlib.suppress(OSError):
                        signal.pidfd_send_signal(fd, each)
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                child.wait(patience)
                if all(_has_ended(fd, deadline) for fd in family.values()):
                    return


def _stop_family(child: subprocess.Popen[bytes], family: dict[int, int], stack: contextlib.ExitStack) -> None:
    """Stop `child` and all that it has started, and add the latter to `family`, with pidfds that `stack` closes.

    The kernel has a list of each thread's children, which is only complete while none of them ends. So all processes of
    the system are looked at, until nobody new is found after all known ones stand still. A process whose parent has
    ended meanwhile is nobody's any more, and left alone.
    """
    with contextlib.suppress(OSError):
        child.send_signal(signal.SIGSTOP)
    for fd in family.values():  # which went on, and did not end
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(fd, signal.SIGSTOP)
    deadline, stood_still = time.monotonic() + OBEY_SECONDS, False
    while time.monotonic() < deadline:
        members = {pid for pid, fd in family.items() if not _has_ended(fd, 0.0)}  # no other process has these numbers
        if child.returncode is None:
            members.add(child.pid)
        states = dict(_processes())
        found = [
            pid
            for pid, (state, parent) in states.items()
            if parent in members and pid not in members and state not in _ENDED
        ]
        is_new = [_stop(pid, members, family, stack) for pid in found]
        seen = {pid: states[pid] for pid in members & states.keys()}
        stand_still = not any(is_new) and all(_stands_still(pid, seen) for pid in seen)
        if stood_still and stand_still:
            return
        stood_still = stand_still


def _stands_still(pid: int, family: Mapping[int, tuple[str, int]]) -> bool:
    """Return whether a process starts nothing any more: one that waits in vfork() for a child that is stopped, too."""
    state = family[pid][0]
    waits = any(parent == pid and each in _STILL for each, parent in family.values())
    return state in _STILL or (state == _WAITS and waits)


def _stop(pid: int, parents: set[int], family: dict[int, int], stack: contextlib.ExitStack) -> bool:
    """Stop a process that one of `parents` has started, and add it to `family`; return whether that could be done."""
    with contextlib.suppress(OSError, ValueError):
        fd = os.pidfd_open(pid)
        stack.callback(os.close, fd)
        if _state_and_parent(pid)[1] in parents:  # the number is not another one's by now
            signal.pidfd_send_signal(fd, signal.SIGSTOP)
            family[pid] = fd
            return True
    return False


def _processes() -> Iterator[tuple[int, tuple[str, int]]]:
    """Yield the number of each process, with its state and its parent's number."""
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):  # noqa: PTH208 - numbers are wanted, not paths
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError):  # it has ended since it was listed
                    yield int(name), _state_and_parent(int(name))


def _state_and_parent(pid: int) -> tuple[str, int]:
    """Return what /proc says of a process. Raises OSError, or ValueError."""
    state, parent, *_ = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
    return state, int(parent)


def _has_ended(pidfd: int, deadline: float) -> bool:
    """Return whether a process ends before the `deadline`."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


class Tie:
    """What ends a child when this process has ended, whatever ended it; files in `remove`, such as sockets, go first.

    Made before the child, so that `hold` is all that is to be done once that runs. For a child that has ended it does
    nothing but wait for the end of this process, until `undo`. Raises OSError.
    """

    def __init__(self, remove: Sequence[str] = ()) -> None:
        read_end, self._write_end = os.pipe2(os.O_CLOEXEC)
        try:
            self._watcher = subprocess.Popen(
                ["/bin/sh", "-c", _WATCH, "blkmig-tie", *remove],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # what the terminal says to us is not for it
            )
        except BaseException:
            self.forget()
            raise
        finally:
            os.close(read_end)
        _ties.add(self)

    def hold(self, child: subprocess.Popen[Any]) -> None:
        """Have `child` end with this process."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended, and nobody is told how
            about = Path(f"/proc/{child.pid}/stat").read_text(errors="replace")
            os.write(self._write_end, f"{child.pid} {about.rpartition(') ')[2].split()[_STARTED]}\n".encode())
        # A child that nobody knows any more has been waited for. At this process's end the pipe alone is to act.
        weakref.finalize(child, self.undo).atexit = False

    def undo(self) -> None:
        """Let the child, which has ended, go. Twice does no harm."""
        fd, self._write_end = self._write_end, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.write(fd, b"\nended\n")  # two lines, if nobody was held
            os.close(fd)
            self._watcher.wait()

    def forget(self) -> None:
        """Leave it to the process that has forked this one."""
        fd, self._write_end = self._write_end, -1
        if fd >= 0:
            os.close(fd)


def start(command: Sequence[str], *, remove: Sequence[str] = (), **options: Any) -> tuple[subprocess.Popen[Any], Tie]:
    """Start a child, as Popen does with these `options`, that ends with this process: see :class:`Tie`."""
    tie = Tie(remove)
    try:
        child = subprocess.Popen(command, **options)
        try:
            tie.hold(child)
        except BaseException:
            child.kill()
            child.wait()
            raise
    except BaseException:
        tie.undo()
        raise
    return child, tie


_ties: weakref.WeakSet[Tie] = weakref.WeakSet()


def _forget_all() -> None:
    """Close, in a forked child, the pipes of the process that forked it: its end shall be seen."""
    for tie in list(_ties):
        tie.forget()
    _ties.clear()


os.register_at_fork(after_in_child=_forget_all)
