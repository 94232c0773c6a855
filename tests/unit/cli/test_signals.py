# SPDX-License-Identifier: GPL-2.0-or-later
"""What INT, TERM and HUP do to a command that is opening, running and closing (C5)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from blkmig.cli import signals


class Told:
    """A run's signals whose words and whose end are noted."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.left: list[int] = []
        self.signals = signals.Signals(self.said.append, self.left.append)


def test_a_signal_is_raised_while_disks_are_opened_and_only_once() -> None:
    told = Told()
    with pytest.raises(signals.Interrupted, match="cancelled by SIGHUP"):
        told.signals.handle(signal.SIGHUP, None)
    told.signals.handle(signal.SIGTERM, None)
    assert told.signals.number == signal.SIGHUP


def test_a_signal_cancels_while_the_migration_runs_and_is_not_raised() -> None:
    told, cancelled = Told(), threading.Event()
    with told.signals.cancelling(cancelled.set):
        told.signals.hear(signal.SIGTERM, 0.0)
        told.signals.handle(signal.SIGTERM, None)
        assert cancelled.is_set()
    told.signals.handle(signal.SIGTERM, None)  # everything is being closed


def test_a_signal_that_came_just_before_cancels_too() -> None:
    told, cancelled = Told(), threading.Event()
    told.signals.hear(signal.SIGINT, 0.0)  # heard by the thread, not yet by the main thread
    with told.signals.cancelling(cancelled.set):
        assert cancelled.is_set()


def test_a_signal_is_raised_again_where_that_is_wanted() -> None:
    told = Told()
    with told.signals.cancelling(int):
        pass
    told.signals.handle(signal.SIGINT, None)
    with pytest.raises(signals.Interrupted):
        with told.signals.raising():
            raise AssertionError


def test_a_stubborn_user_is_not_locked_in() -> None:
    """The third wish ends the process; signals that come together are one."""
    told = Told()
    for now in (0.0, 0.1, 0.9):
        told.signals.hear(signal.SIGINT, now)
    assert (told.said, told.left) == ([], [])
    told.signals.hear(signal.SIGINT, 1.5)
    assert "one more signal" in told.said[0]
    told.signals.hear(signal.SIGTERM, 1.6)
    assert not told.left
    told.signals.hear(signal.SIGTERM, 3.0)
    assert told.left == [130]


def test_a_signal_that_no_thread_can_take_is_heard() -> None:
    """As that of a process whose main thread is in a call to a file system that does not answer: it stays pending."""
    told, before = Told(), signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
        told.signals.look(0.0)
        told.signals.look(2.0)  # the same one
        told.signals.take(signal.SIGHUP, 4.0)  # and once more, as the main thread goes on
        assert (told.signals.number, told.said) == (signal.SIGHUP, [])
        told.signals.take(signal.SIGHUP, 6.0)
        assert "one more signal" in told.said[0]
    finally:
        assert signal.sigwait([signal.SIGHUP]) == signal.SIGHUP
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        told.signals.overdue.ended()


def test_signals_are_handled_for_a_while_and_then_as_before() -> None:
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with signals.handling(print, is_own_process=False) as heard:
        with pytest.raises(signals.Interrupted, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard.number == signal.SIGTERM
        assert signals.current() is heard
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    assert "blkmig-signals" not in [thread.name for thread in threading.enumerate()]


def test_what_was_inherited_as_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handling(print, is_own_process=False):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_has_nothing_to_handle() -> None:
    numbers: list[int | None] = []

    def run() -> None:
        with signals.handling(print, is_own_process=False) as heard:
            numbers.append(heard.number)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert numbers == [None]


def test_a_signal_while_the_interpreter_ends_changes_nothing() -> None:
    program = """if True:
        import os, signal, sys
        from blkmig import cli
        class Late:
            def __del__(self, kill=os.kill, pid=os.getpid()):
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    kill(pid, number)
        late = Late()
        sys.argv = ["blkmig", "--version"]
        sys.exit(cli.main())
    """
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done
    assert done.stdout.startswith("blkmig")
