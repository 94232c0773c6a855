# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples of a page of the documentation, as a script that runs all of them in the page's order.

A comment before a block says what it is; readers do not see it::

    <!-- run -->                 shell: run it and wait for it; python: a program of its own
    <!-- run: receive -->        shell: start a receiver and go on when it listens; `received` waits for its end
    <!-- run: start -->          shell: start it and go on; its process is $started, what it says is in ./started
    <!-- run: qmp SOCKET -->     json: tell it a QEMU's monitor, line by line
    <!-- file: NAME -->          write it into a file
    <!-- not run: REASON -->     it is not run, because
    <!-- prints -->              the examples print these lines
    <!-- prints like -->         they print a table with these words in its first column, in this order
    <!-- commands -->            tests/interop/test_readme.py runs its lines
    <!-- hidden: COMMAND -->     without a block: run this, too: to wait for something, or to look at a result

Every block in a language that can be run needs one; text, drawings and what programs print do not.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import textwrap
from pathlib import Path

RUNNABLE = {"sh", "bash", "console", "python", "toml"}
MARK = re.compile(r"<!-- (run|file|not run|hidden|commands|prints|prints like)(?:: (.*))? -->")
FENCE = re.compile(r"(\s*)```\s*([a-z]*)(.*)")
END = "END_OF_THE_EXAMPLE"


@dataclasses.dataclass(frozen=True)
class Example:
    """One block of a page, or a hidden command; `line` is where it begins."""

    line: int
    language: str
    text: str
    kind: str = ""
    argument: str = ""

    @property
    def is_accounted_for(self) -> bool:
        """Whether it runs, or says why it does not."""
        return bool(self.kind) or self.language not in RUNNABLE

    def script(self) -> str:
        """Return what runs it, for bash."""
        match self.kind, self.argument, self.language:
            case "hidden", command, _:
                return command
            case "file", name, _:
                return f"cat >{shlex.quote(name)} <<'{END}'\n{self.text}\n{END}"
            case "run", "", "python":
                return f"python - <<'{END}'\n{self.text}\n{END}"
            case "run", "", "sh":
                return self.text
            case "run", "receive", "sh":
                return f"receive {shlex.quote(self.text)}"
            case "run", "start", "sh":
                return f"bash -c {shlex.quote('exec ' + self.text)} >started 2>&1 & started=$!"
            case "run", argument, "json" if argument.startswith("qmp "):
                return f"qmp {argument.removeprefix('qmp ')} {' '.join(map(shlex.quote, self.text.splitlines()))}"
            case "not run" | "commands" | "prints" | "prints like" | "", _, _:
                return ""
        raise ValueError(f"line {self.line}: nobody knows how to {self.kind} {self.language}: {self.argument}")


def examples(page: Path) -> list[Example]:
    """Return the examples of a page. Raises ValueError for a mark that no block follows."""
    found: list[Example] = []
    mark: tuple[str, str] | None = None
    block: list[str] | None = None
    opening, language, indent = 0, "", ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = FENCE.fullmatch(line)
        if block is not None:
            if fence and not fence[2] and not fence[3].strip():
                text = textwrap.dedent("\n".join(block))
                found.append(Example(opening, language, text, *(mark or ("", ""))))
                block, mark = None, None
            else:
                block.append(line.removeprefix(indent))
        elif fence:
            block, opening, language, indent = [], number, fence[2], fence[1]
        elif seen := MARK.fullmatch(line.strip()):
            if mark is not None:
                raise ValueError(f"{page}:{number}: no block follows the mark before this one")
            if seen[1] == "hidden":
                found.append(Example(number, "", "", "hidden", seen[2]))
            else:
                mark = seen[1], seen[2] or ""
        elif line.strip() and mark is not None:
            raise ValueError(f"{page}:{number}: no block follows the mark before this")
    return found


def not_printed(page: Path, said: str) -> list[str]:
    """Return what a page shows as printed, and is not in what its examples have said."""
    column = [first_column(line) for line in said.splitlines()]
    found = [each.text for each in examples(page) if each.kind == "prints" and each.text not in said]
    for each in examples(page):
        if each.kind == "prints like":
            rest = iter(column)
            shown = [line for line in each.text.splitlines() if line[:1].strip()]  # and no line that goes on
            found += [line for line in shown if first_column(line) not in rest]
    return found


def first_column(line: str) -> str:
    """Return what stands in a line before its first gap."""
    return re.split(r"\s{2,}", line.rstrip(), maxsplit=1)[0]


def script(page: Path) -> str:
    """Return a script for bash that runs the examples of a page; it says on stderr where it is."""
    parts = []
    for example in examples(page):
        text = example.script()
        if text:
            parts += [f"echo '-- {page.name}:{example.line}' >&2", text]
    return "\n".join(parts)
