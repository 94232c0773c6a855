#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the manual of the ``blkmig`` command from its parser: the man page, and the page of the documentation.

::

    parser of argparse ──┐                  ┌──► docs/man/blkmig.1            (troff)
                         ├──► [Section ...] ┤
    manual_words.py ─────┘                  └──► docs/reference/command.md    (Markdown)

Run it without arguments after a change of an option. A test compares both files with what it would write.
"""

from __future__ import annotations

import argparse
import pathlib
import re

import manual_words
from manual_words import Part

import blkmig
from blkmig.cli import parser as parsing

ROOT = pathlib.Path(__file__).parents[1]
MAN_PAGE = ROOT / "docs/man/blkmig.1"
COMMAND_PAGE = ROOT / "docs/reference/command.md"
EVERYWHERE = ("-h", "-v")
"""Options that every command has: said once."""


# -- what the parser says ----------------------------------------------------------------------------------------------


def commands() -> dict[str, parsing.CommandParser]:
    """Return the parser of each command."""
    return parsing.build_parser(parsing.ALL_MODULES).commands


def sections_of(name: str, parser: parsing.CommandParser) -> list[Part]:
    """Return what is said of one command: a synopsis, its purpose, its words, its options."""
    purpose = parser.description or ""
    parts: list[Part] = [synopsis(name, parser), purpose[:1].upper() + purpose[1:].rstrip(".") + "."]
    terms = [(term(action), sentence(action)) for action in parser._actions if not is_everywhere(action)]
    return [*parts, terms]


def synopsis(name: str, parser: parsing.CommandParser) -> str:
    """Return the shape of a command line, as code."""
    options = [term(action).strip("`") for action in parser._actions if action.option_strings and action.required]
    words = [word_of(action) for action in parser._actions if not action.option_strings]
    return f"`{' '.join(['blkmig', name, *options, '[OPTION]...', *words])}`"


def word_of(action: argparse.Action) -> str:
    """Return a word of a command line, with dots if there may be more of it."""
    word = str(action.metavar or action.dest)
    return {"+": f"{word}...", "*": f"[{word}]..."}.get(str(action.nargs), word)


def term(action: argparse.Action) -> str:
    """Return an option with its value, or a word."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = str(action.metavar or (action.choices and "|".join(action.choices)) or action.dest.upper())
    if action.nargs == 0:
        value = ""
    elif action.nargs == "?":
        value = f"[{value}]"
    else:
        value = f" {value}"
    return ", ".join(f"`{option}{value}`" for option in action.option_strings)


def sentence(action: argparse.Action) -> str:
    """Return the help of an option as a sentence; one that only tells a default says so."""
    text = (action.help or "") % vars(action)
    only_default = re.fullmatch(r"\(default: (.*)\)", text)
    if only_default:
        return f"Default: {only_default[1]}."
    text = re.sub(r"(?<![\w-])--[a-z][a-z-]*[a-z](?:=[a-z]+)?", r"`\g<0>`", text).rstrip(".") + "."
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+\W?(\s|$)", text) else text


def is_everywhere(action: argparse.Action) -> bool:
    return bool({*EVERYWHERE} & {*action.option_strings})


def examples_of(parser: parsing.CommandParser) -> list[str]:
    """Return the command lines of a command's help."""
    lines = (parser.epilog or "").removeprefix(parsing.EXAMPLES).splitlines()
    return [re.sub(r"\s{2,}#", "  #", line.strip()) for line in lines if line.strip()]


GENERAL: list[tuple[str, str]] = [
    ("`-h`, `--help`", "Show the options of a command, with examples."),
    ("`-v`, `--verbose`", "Say more on stderr, and where an error that nobody expected came from."),
    ("`--version`", "Show the version. It stands before a command."),
]


# -- troff -------------------------------------------------------------------------------------------------------------

FROM_UNICODE = {"-": r"\-", "'": r"\(aq", "^": r"\(ha", "~": r"\(ti", "`": r"\(ga"}


def troff(text: str) -> str:
    """Return a text, with code between backquotes, for troff."""
    pieces = text.split("`")
    for index, piece in enumerate(pieces):
        escaped = piece.replace("\\", r"\e")
        escaped = "".join(FROM_UNICODE.get(char, char) for char in escaped)
        pieces[index] = rf"\fB{escaped}\fR" if index % 2 else escaped
    line = "".join(pieces)
    return rf"\&{line}" if line.startswith((".", "'")) else line


def troff_parts(parts: list[Part]) -> list[str]:
    lines = []
    for part in parts:
        if isinstance(part, str):
            lines += [".PP", troff(part)]
        else:
            for what, text in part:
                lines += [".TP", troff(what), troff(text)]
    return lines


def man_page() -> str:
    """Return the man page."""
    every = commands()
    lines = [
        '.\\" SPDX-License-Identifier: GPL-2.0-or-later',
        '.\\" Written by tools/manual.py from the options of the command: change these, not this.',
        f'.TH BLKMIG 1 "" "blkmig {blkmig.__version__}" "User Commands"',
        ".SH NAME",
        troff("blkmig - move disks while they are being written"),
        ".SH SYNOPSIS",
    ]
    for name, parser in every.items():
        lines += [troff(synopsis(name, parser)), ".br"]
    lines += [".SH DESCRIPTION", *troff_parts(manual_words.DESCRIPTION), ".SH COMMANDS"]
    for name, parser in every.items():
        lines += [f".SS {name}", *troff_parts(sections_of(name, parser)[1:])]
    lines += [".SH GENERAL OPTIONS", *troff_parts([GENERAL])]
    for title, parts in manual_words.AFTER:
        lines += [f".SH {title.upper()}", *troff_parts(parts)]
    lines.append(".SH EXAMPLES")
    for parser in every.values():
        lines += [".PP", ".nf", *(troff(f"`{line}`") for line in examples_of(parser)), ".fi"]
    lines += [".SH SEE ALSO", troff(", ".join(f"`{name}`({chapter})" for name, chapter in manual_words.SEE_ALSO))]
    return "\n".join(lines) + "\n"


# -- Markdown ----------------------------------------------------------------------------------------------------------


def markdown_parts(parts: list[Part]) -> list[str]:
    lines = []
    for part in parts:
        if isinstance(part, str):
            lines += [outside_code(part), ""]
        else:
            for what, text in part:
                lines += [what, f":   {outside_code(text)}", ""]
    return lines


def outside_code(text: str) -> str:
    """Return a text in which only backquotes have a meaning."""
    pieces = text.split("`")
    pieces[::2] = [re.sub(r"([*_<\[\]])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)


def command_page() -> str:
    """Return the page of the documentation."""
    lines = [
        "<!-- Written by tools/manual.py from the options of the command: change these, not this page. -->",
        "",
        "# Command line",
        "",
        *markdown_parts(manual_words.DESCRIPTION),
        *markdown_parts([GENERAL]),
    ]
    for name, parser in commands().items():
        shape, *parts = sections_of(name, parser)
        assert isinstance(shape, str)
        lines += [f"## blkmig {name}", "", "```text", shape.strip("`"), "```", "", *markdown_parts(parts)]
        lines += ["```text", *examples_of(parser), "```", ""]
    for title, said in manual_words.AFTER:
        lines += [f"## {title}", "", *markdown_parts(said)]
    return "\n".join(lines).rstrip("\n") + "\n"


def pages() -> dict[pathlib.Path, str]:
    """Return what each file is to hold."""
    return {MAN_PAGE: man_page(), COMMAND_PAGE: command_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
