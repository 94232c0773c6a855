# SPDX-License-Identifier: GPL-2.0-or-later
"""What people and programs are told: results on stdout; errors, notes and the log on stderr.

A result that cannot be written does not stop the work: `results_error` keeps the reason, and the command fails at its
end.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import time
import traceback
from typing import Any

from .. import stats, texts
from . import display, logfile, standard

stderr = display.Display()
results_error: str | None = None
"""The first reason why results did not reach stdout; None while all did."""

log: logfile.LogFile | None = None
"""What is told to programs goes here, too, with ``--log-json``."""

_is_verbose = False

PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Of the log's levels, for the journal: syslog's."""


def set_up(*, progress: str, is_verbose: bool) -> None:
    """Prepare the output of one run of the command."""
    global stderr, results_error, _is_verbose
    stderr, results_error, _is_verbose = display.Display(), None, is_verbose
    stderr.is_json = progress == "json"
    stderr.is_journal = standard.is_journal(2) and not stderr.is_json
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, LogHandler)]:
        root.removeHandler(handler)
    root.addHandler(LogHandler())
    root.setLevel(logging.DEBUG if is_verbose else logging.WARNING)


class LogHandler(logging.Handler):
    """Shows the package's warnings, or with ``-v`` everything that it and others log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record of the log."""
        if not _is_verbose and record.name.partition(".")[0] != "blkmig":
            return
        message = record.getMessage()
        told = {"event": "Log", "level": record.levelname, "logger": record.name, "message": message}
        tell(told, f"blkmig: {message}", priority=PRIORITIES.get(record.levelno, 6))


# -- programs --------------------------------------------------------------------------------------------------------


def tell(record: dict[str, Any], *lines: str, priority: int = 6) -> None:
    """Tell programs `record`, and people `lines`, each where they are; `priority` is syslog's."""
    log_record(record)
    if stderr.is_json:
        stderr.record(_timed(record))
        return
    for line in lines:
        stderr.line(line, priority=priority)


def _timed(record: dict[str, Any]) -> dict[str, Any]:
    return {"event": record["event"], "time": round(time.time(), 3), **record}


def log_record(record: dict[str, Any]) -> None:
    """Put a record into the log alone; nothing without one. Blocks for nobody."""
    if log is not None:
        log.put(_timed(record))


def tell_event(event: stats.Event) -> None:
    """Tell who reads stderr as JSON an event. It waits for nobody."""
    stderr.record(_timed(to_json(event)), patience=0.0)


def log_event(event: stats.Event) -> None:
    """Put an event into the log."""
    log_record(to_json(event))


def log_result(result: Any) -> None:
    """Put what a command has done into the log; who reads stdout gets it there."""
    log_record({"event": "Result", "result": to_json(result)})


def ended(exit_code: int) -> None:
    """Say that the command has ended, unless an error has said it, and close the log."""
    global log
    if exit_code == 0 and (log is not None or stderr.is_json):
        tell({"event": "Ended", "code": exit_code})
    log, before = None, log
    if before is not None:
        why = before.close()
        if why:
            print_note(f"the log {before.path!r} is not complete: {why}")


# -- stderr ----------------------------------------------------------------------------------------------------------


def print_error(error: BaseException, exit_code: int, *, message: str | None = None) -> int:
    """Say what went wrong, in one line, and each note of the error in one more; return `exit_code`.

    A `message` replaces the error's own text. It is for unexpected errors, whose traceback ``-v`` shows.
    """
    stderr.status("")
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    text = str(error) if message is None else message
    record = {"event": "Error", "kind": type(error).__name__, "code": exit_code, "message": text, "notes": notes}
    usage = str(getattr(error, "usage", "")).splitlines()
    lines = [*usage, *(f"blkmig: {line}" for line in (text, *notes))]
    tell({**record, "fields": to_json(fields_of(error))}, *lines, priority=3)
    if message is not None:
        print_traceback(error)
    return exit_code


def fields_of(error: BaseException) -> dict[str, Any]:
    """Return the fields of an error, which say more than its text."""
    known = getattr(error, "__dict__", {})
    return {name: value for name, value in known.items() if not name.startswith("_") and name != "usage"}


def print_traceback(error: BaseException) -> None:
    """Show the traceback of an error, if the user has said ``-v``."""
    if _is_verbose:
        for line in "".join(traceback.format_exception(error)).splitlines():
            stderr.line(line)


def print_note(text: str) -> None:
    """Print a message that is no error."""
    tell({"event": "Note", "message": text}, f"blkmig: {text}", priority=5)


def print_listening(uri: str) -> None:
    """Say where a receiver waits: programs that start one read this line."""
    tell({"event": "Listening", "uri": uri}, f"listening on {uri}")


# -- stdout ----------------------------------------------------------------------------------------------------------


def put(text: str = "", *, flush: bool = False) -> None:
    """Write lines to stdout. Characters that it cannot show are escaped; a failure is kept in `results_error`."""
    global results_error
    if results_error is not None:
        return
    try:
        encoding = getattr(sys.stdout, "encoding", None) or "ascii"
        lines = "\n".join(map(texts.printable, text.split("\n")))
        print(lines.encode(encoding, "backslashreplace").decode(encoding), flush=flush)
    except (OSError, ValueError) as error:
        _lose_results(error)


def flush_results() -> None:
    """Flush stdout; a failure is kept in `results_error`."""
    if results_error is None:
        try:
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            _lose_results(error)


def _lose_results(error: OSError | ValueError) -> None:
    global results_error
    results_error = getattr(error, "strerror", None) or str(error)  # a text: the error would keep frames alive
    standard.discard_stdout()


def to_json(value: Any) -> Any:
    """Return statistics, events and the fields of errors as values that JSON can hold. An event gets its kind, too."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        record = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, stats.Event):
            record = {"event": type(value).__name__, **record}
        return record
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def print_json(value: Any, *, is_stdout_taken: bool = False) -> None:
    """Print a result as one JSON object on one line: on stdout, or on stderr if a stream goes to stdout."""
    import json

    if is_stdout_taken and stderr.is_json:
        stderr.record(_timed({"event": "Result", "result": to_json(value)}))
    elif is_stdout_taken:
        stderr.line(json.dumps(to_json(value)))
    else:
        put(json.dumps(to_json(value)), flush=True)


def print_table(rows: list[tuple[str, str]], *, is_stdout_taken: bool = False) -> None:
    """Print rows of two columns: on stdout, or on stderr if a stream goes to stdout."""
    shown = [(texts.printable(label), texts.printable(value)) for label, value in rows]
    width = max(len(label) for label, _ in shown)
    for label, value in shown:
        if is_stdout_taken:
            stderr.line(f"{label:<{width}}  {value}")
        else:
            put(f"{label:<{width}}  {value}")
