# SPDX-License-Identifier: GPL-2.0-or-later
"""How a command ended: what the user is told, and the exit code. Only ``-v`` shows tracebacks."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Sequence

from .. import errors, hanging
from ..errors import base
from ..migration import displays
from . import logfile, output, parser, signals, standard

EXIT_FAILED = 1

ENDED_BY_SIGNAL = (EXIT_FAILED, errors.ChannelError.exit_code, errors.Cancelled.exit_code)
"""After a signal these exit codes mean only "cancelled": a link that breaks then, for instance, tells nothing more.
Other exit codes are kept."""

DEFECT = "this is a defect of blkmig; run it again with -v and report what it says"


def run(words: Sequence[str], heard: signals.Signals) -> int:
    """Run a command line, tell the user how it ended, and return the exit code."""
    before, threading.excepthook = threading.excepthook, _thread_failed
    try:
        output.set_up(progress=parser.progress_style(words), is_verbose=parser.is_verbose(words))
        heard.overdue.say = lambda error, hung: say_overdue(error, hung, heard.number)
        standard.check_messages(words)
        args = parser.parse(words)
        output.log = logfile.opened(getattr(args, "log_json", None))
        exit_code: int = args.run(args)
        output.flush_results()
    except BaseException as error:
        heard.overdue.ended()  # before anything is said: it may say another error
        if isinstance(error, errors.DisplayInUse) and error.display == displays.STDERR_LABEL:
            standard.keep_messages_out(is_stdout_free=not any(map(displays.is_stdout, words)))
        if isinstance(error, errors.ParameterError):
            for note in parser.variables_behind(str(error), words):
                error.add_note(note)
        exit_code = report(error, heard.number)
    finally:
        threading.excepthook = before
    heard.overdue.ended()
    if output.results_error is not None and exit_code == 0:
        why = output.results_error
        lost = errors.MigrationError(f"the work is done, but its result cannot be written to stdout: {why}")
        exit_code = output.print_error(lost, lost.exit_code)
    output.ended(exit_code)
    return exit_code


def report(error: BaseException, signal_number: int | None) -> int:
    """Say what ended a command, and return its exit code."""
    match error:
        case signals.Interrupted() | KeyboardInterrupt():
            return _cancelled(error, signal_number)
        case SystemExit():
            return error.code if isinstance(error.code, int) else EXIT_FAILED
        case errors.MigrationError():
            if signal_number is not None and error.exit_code in ENDED_BY_SIGNAL:
                return _cancelled(error, signal_number)
            return output.print_error(error, error.exit_code)
        case OSError():
            where = "" if error.filename is None else f"{error.filename!r}: "
            hint = base.advice(error)
            what = f"{where}{error.strerror or error}{hint and '; '}{hint}"
            return output.print_error(error, EXIT_FAILED, message=what)
        case MemoryError():
            return output.print_error(error, EXIT_FAILED, message="there is not enough memory")
        case _:
            return output.print_error(error, EXIT_FAILED, message=f"{describe_defect(error)}: {DEFECT}")


def say_overdue(error: errors.MigrationError | None, hung: hanging.Call, signal_number: int | None) -> int:
    """Say how a command has ended that hung in `hung`; None: its migration is complete. Return its exit code."""
    if error is None:
        output.print_note(f"the migration is complete, but {hung}")
    exit_code = 0 if error is None else report(error, signal_number)
    output.ended(exit_code)
    return exit_code


def _cancelled(error: BaseException, signal_number: int | None) -> int:
    """Say that a signal ended the command, and what else went wrong; return the exit code."""
    number = error.number if isinstance(error, signals.Interrupted) else signal_number
    if not isinstance(error, errors.Cancelled | signals.Interrupted | KeyboardInterrupt):
        output.print_note(str(error))
    ended = errors.Cancelled("cancelled" if number is None else str(signals.Interrupted(number)))
    for note in getattr(error, "__notes__", ()):
        ended.add_note(note)
    return output.print_error(ended, errors.Cancelled.exit_code if number is None else 128 + number)


def describe_defect(error: BaseException) -> str:
    """Return the kind, the text and the place of an unexpected error, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename.rpartition('blkmig/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{where}" if str(error) else f"{type(error).__name__}{where}"


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """Report a thread that ended with an exception, which is a defect of blkmig."""
    if args.exc_value is not None and args.exc_type is not SystemExit:
        output.print_note(f"{describe_defect(args.exc_value)}: {DEFECT}")
        output.print_traceback(args.exc_value)
