# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of a command line: a command, its words and its options, in any order.

An option whose value is optional takes a value only after a "=". So it never takes the next word for its value.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from .. import errors
from . import output

COMMANDS = {
    "send": "send",
    "receive": "receive",
    "inspect": "inspect",
    "serve": "serve",
    "cleanup": "serve",
    "demo": "demo",
    "doctor": "doctor",
    "completion": "completion",
}
"""The module of each command."""

ALL_MODULES = tuple(dict.fromkeys(COMMANDS.values()))

FROM_ENVIRONMENT = {
    f"--{name}": f"BLKMIG_{name.upper().replace('-', '_')}"
    for name in ("progress", "metrics", "metrics-listen", "report", "log-json", "state-dir")
}
"""Options that the environment may say for all commands of a service; what the command line says comes first."""

EXAMPLES = "examples:\n"

PLAIN = "\0"
"""This mark stands before a word that is no option, although it may look like one. No word of a command line holds
it."""


class UsageError(errors.ParameterError):
    """A command line that makes no sense; `usage` shows its form."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps descriptions, and leaves the lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(EXAMPLES):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that raises its errors, and prints through `output` as everything else does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, **options)
        self.without_value: dict[str, str] = {}
        """Options whose value is optional, each with the value that stands for none."""

        self.commands: dict[str, CommandParser] = {}
        """The parsers of the commands; only the parser of the whole command line has any."""

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError. It says which variable has the option that it is about, if one has."""
        for option, name in FROM_ENVIRONMENT.items():
            if message.startswith(f"argument {option}: ") and os.environ.get(name):
                message += f" ({name} is {os.environ[name]!r})"
        raise UsageError(message, self.format_usage())

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            output.put(message.rstrip("\n"))

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Return what `words` say. Options may stand anywhere among them, but not behind a "--"."""
        end = words.index("--") if "--" in words else len(words)
        # parse_intermixed_args() collects the words first, and drops the "--" when it does.
        plain = (f"{PLAIN}{word}" for word in words[end + 1 :])
        given = [*self._of_environment(), *map(self._with_value, words[:end]), *plain]
        args = self.parse_intermixed_args(given)
        for name, value in vars(args).items():
            if isinstance(value, str | list):
                setattr(args, name, _without_mark(value))
        return args

    def _of_environment(self) -> Iterator[str]:
        """Yield the options that the environment says; those of the command line stand behind them, and win."""
        for option, name in FROM_ENVIRONMENT.items():
            if os.environ.get(name) and option in self._option_string_actions:
                yield f"{option}={os.environ[name]}"

    def _with_value(self, word: str) -> str:
        """Return `word`; an option without its optional value gets one."""
        for option, value in self.without_value.items():
            if len(word) > len("--d") and option.startswith(word):
                return f"{option}={value}"
        return word


def _without_mark(value: Any) -> Any:
    """Return a word, or a list of words, without the mark `PLAIN`."""
    if isinstance(value, list):
        return list(map(_without_mark, value))
    return value.removeprefix(PLAIN) if isinstance(value, str) else value


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return what a command line says; its `run` is the function that runs the command. Raises UsageError, SystemExit.

    Only the module of that command is imported.
    """
    place = next((index for index, word in enumerate(words) if not word.startswith("-")), len(words))
    before, name, after = words[:place], "".join(words[place : place + 1]), words[place + 1 :]
    if name in COMMANDS and not {"-h", "--help", "--version"}.intersection(before):
        return build_command(name).parse([*before, *after])
    top = build_parser([] if "--version" in before else ALL_MODULES)
    top.parse_args(before)
    known = ", ".join(COMMANDS)
    raise UsageError(f"there is no command {name!r}: say one of {known}" if name else f"say what to do: {known}",
                     top.format_usage())  # fmt: skip


def build_parser(modules: Sequence[str]) -> CommandParser:
    """Return the parser of the whole command line, with the commands of `modules`."""
    top = CommandParser(
        prog="blkmig",
        description="Move disks while they are being written: QEMU's live block migration, without QEMU.",
        epilog="Options may stand anywhere after the command. Sizes take K, M, G and T, powers of 1024. "
        "blkmig COMMAND --help says more, with examples.",
    )
    top.add_argument("--version", action="version", version=f"blkmig {version()}")
    top.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
    commands = top.add_subparsers(metavar="COMMAND")
    for module in modules:
        importlib.import_module(f"..{module}", __name__).add_command(commands)
    top.commands = commands.choices
    return top


def build_command(name: str) -> CommandParser:
    """Return the parser of one command."""
    return build_parser([COMMANDS[name]]).commands[name]


def version() -> str:
    """Return the package's version. This module must not import the package itself, so it looks it up."""
    text: str = sys.modules[__name__.partition(".")[0]].__version__
    return text


def variables_behind(message: str, words: Sequence[str]) -> Iterator[str]:
    """Yield, of a message about options, which of them the environment has said, and not the command line."""
    for option, name in FROM_ENVIRONMENT.items():
        value = os.environ.get(name)
        is_about = value and name not in message and (option in message or repr(value) in message)
        if is_about and not any(word.partition("=")[0] == option for word in words):
            yield f"the environment says {option}: {name} is {value!r}"


def is_verbose(words: Sequence[str]) -> bool:
    """Return whether a command line has ``-v``, even if it cannot be parsed."""
    return "-v" in words or "--verbose" in words


def progress_style(words: Sequence[str]) -> str:
    """Return the value of ``--progress`` in a command line, even if it cannot be parsed."""
    style = os.environ.get(FROM_ENVIRONMENT["--progress"]) or "auto"
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option == "--progress":
            style = value if equals else "".join(words[index + 1 : index + 2])
    return style
