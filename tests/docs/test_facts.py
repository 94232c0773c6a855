# SPDX-License-Identifier: GPL-2.0-or-later
"""What the pages list is what the code has: threads, extras, variables, options, abilities, messages, statuses."""

from __future__ import annotations

import ast
import dataclasses
import errno
import inspect
import re
import textwrap
import tomllib
from pathlib import Path

import pytest

import blkmig
from blkmig import errors, migration, savevm, stats, testing
from blkmig.block import ExtraKind, wire
from blkmig.cli import parser
from blkmig.migration import bundling, farewell, outgoingsession
from blkmig.savevm import words

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WIRE = (DOCS / "wire" / "blkmig.md").read_text()
CODE = {path: path.read_text() for path in sorted((ROOT / "blkmig").rglob("*.py"))}

OF_OTHERS = {"--maxprocesses", "--sparse", "--inplace", "--strict", "--strip-debug"}
OF_OTHERS |= {"--bench-dir", "--quick", "--rivals"}
"""Options of pytest, of programs that the pages speak of, and of the benchmarks; those of the gates have one word."""

SOURCES = {".py", ".pyx", ".pxd", ".h", ".json"}

NOT_FOR_USERS = {"cli", "docs", "lint"}
"""Extras that bring nothing, or are for work on blkmig itself."""


SHOWN = [getattr(module, name) for module in (stats, blkmig) for name in dir(module) if name[0].isupper()]
SHOWN += [migration.Forecast, migration.Inspection, testing.Fault]
RECORDS = sorted({each for each in SHOWN if dataclasses.is_dataclass(each)}, key=lambda each: each.__name__)
"""What the reference shows field by field."""


def all_errors(kind: type[errors.MigrationError] = errors.MigrationError) -> set[type[errors.MigrationError]]:
    return {kind}.union(*map(all_errors, kind.__subclasses__()))


def rows(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table behind the line that ends with `heading`."""
    lines = text.partition(f"{heading}\n")[2].splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("|"))
    table = [line for line in lines[first:] if line]
    length = next((index for index, line in enumerate(table) if not line.startswith("|")), len(table))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:length]]


def test_every_thread_has_a_name_on_its_page() -> None:
    made = re.compile(r'(?:name=|self\.start\(|super\(\)\.__init__\(|_Call\()"((?:blkmig|demo)-[a-z-]+)"')
    started = {name for text in CODE.values() for name in made.findall(text)}
    table = rows((DOCS / "architecture" / "threads.md").read_text(), "## The threads")
    shown = {name for first, *_ in table for name in re.findall(r"`([a-z-]+)`", first)}
    assert len(started) > 20
    assert shown == started


def test_every_extra_is_on_the_first_page() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    shown = re.findall(r"^\| `blkmig\[(\w+)\]` \|", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert {*shown} == {*extras} - NOT_FOR_USERS


def test_every_variable_is_in_the_manual() -> None:
    read = {name for text in CODE.values() for name in re.findall(r'environ(?:\.get\(|\[)"(\w+)"', text)}
    read |= {*parser.FROM_ENVIRONMENT.values()}
    said = (DOCS / "reference" / "command.md").read_text().partition("## Environment")[2]
    assert len(read) > 8
    assert [name for name in sorted(read) if f"`{name}`" not in said] == []


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_field_is_described(kind: type) -> None:
    (defined,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(defined, ast.ClassDef)
    following = zip(defined.body, [*defined.body[1:], ast.Pass()], strict=True)
    fields = [(field, behind) for field, behind in following if isinstance(field, ast.AnnAssign)]
    bare = [ast.unparse(field.target) for field, behind in fields if not isinstance(behind, ast.Expr)]
    assert bare == []


@pytest.mark.parametrize("folder", ["architecture", "wire"])
def test_names_are_those_of_the_code(folder: str) -> None:
    """What stands between backquotes, wherever in the code, the tests or their names."""
    files = [path for room in ("blkmig", "tests") for path in (ROOT / room).rglob("*") if path.suffix in SOURCES]
    known = {part for path in files for part in (path.stem, path.parent.name)}
    known |= {word for path in files for word in re.findall(r"\w+", path.read_text())}
    said = {
        (page.name, word)
        for page in (DOCS / folder).glob("*.md")
        for quoted in re.findall(r"`([\w./:()]+)`", page.read_text())
        for word in re.findall(r"[A-Za-z_]\w{3,}", quoted)
    }
    assert len(said) > 50
    assert {(page, word) for page, word in said if word not in known} == set()


def test_options_are_those_of_the_command() -> None:
    top = parser.build_parser(parser.ALL_MODULES)
    commands = (top, *top.commands.values())
    known = {option for each in commands for action in each._actions for option in action.option_strings}
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "benchmarks" / "README.md"]
    unknown = {
        (page.name, option)
        for page in pages
        for option in re.findall(r"(?<![\w-])--[a-z][-a-z]+", page.read_text())
        if option not in known | OF_OTHERS and not option.startswith("--gates")
    }
    assert unknown == set()


def test_abilities_are_those_of_hello() -> None:
    table = rows(WIRE, "those that\nare not described on this page are not written.")
    shown = {name: int(number, 16) for number, name in (cells[0].split() for cells in table)}
    assert shown == {ability.name: ability.value for ability in savevm.Ability}


def test_kinds_are_those_of_the_records() -> None:
    (said,) = re.findall(r"Kinds 1 to (\d+) are called ([A-Z, and]+);", WIRE)
    names = said[1].replace(" and ", ", ").split(", ")
    assert len(names) == int(said[0])
    numbers = {name: number for number, name in enumerate(names, 1)}
    assert {kind.name: numbers.get(kind.name) for kind in ExtraKind} == {kind.name: kind.value for kind in ExtraKind}


def test_messages_are_those_of_the_return_path() -> None:
    table = rows(WIRE, "begins with a [session](#sessions), or is refused for one.")
    assert {int(cells[0], 16) for cells in table} == {*words.LENGTHS}


def test_flags_are_those_of_the_records() -> None:
    table = rows(WIRE, "[pack](#packs).")
    shown = {cells[1]: int(cells[0], 16) for cells in table if "+" not in cells[0]}
    own = {name.removeprefix("FLAG_"): value for name, value in vars(wire).items() if name.startswith("FLAG_")}
    assert own.items() <= shown.items()


PARAMETERS = [("send", blkmig.MigrationParameters), ("receive", blkmig.IncomingParameters)]


@pytest.mark.parametrize(("command", "kind"), PARAMETERS)
def test_defaults_are_those_that_the_help_says(command: str, kind: type) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    fields["reconnect"] = outgoingsession.RECONNECT_SECONDS
    actions = parser.build_command(command)._actions
    said = {action.dest: re.search(r"\(default: (\d[\d.]*)\)", action.help or "") for action in actions}
    numbers = {dest: float(found[1]) for dest, found in said.items() if found and dest in fields}
    assert numbers == {dest: fields[dest] for dest in numbers}
    assert "idle_timeout" in numbers


def test_messages_of_tls_are_those_of_the_guide() -> None:
    table = rows((DOCS / "guides" / "tls.md").read_text(), "## What goes wrong")
    shown = [cells[0].strip("`").removesuffix(": ...") for cells in table]
    assert len(shown) > 5
    assert [message for message in shown if not any(message in text for text in CODE.values())] == []


def test_the_contract_of_cimport_is_on_its_page() -> None:
    contract = (ROOT / "blkmig" / "_core.pxd").read_text().partition('"""\n    enum:')[2].partition("no contract")[0]
    names = re.findall(r'(\w+) "blkmig_\w+"', contract, re.IGNORECASE) + re.findall(r"cdef inline \w+ (\w+)", contract)
    page = (DOCS / "reference" / "core.md").read_text()
    assert len(names) > 25
    assert [name for name in names if not re.search(rf"`{name}[`(]", page)] == []


def test_connections_are_as_many_as_the_guide_says() -> None:
    table = rows((DOCS / "guides" / "far-away.md").read_text(), "goes over several connections where the way is long:")
    for trip, count in table:
        milliseconds = int(re.findall(r"\d+", trip)[0]) - ("less" in trip)
        assert bundling.count_for((milliseconds + 0.01) / 1000) == int(count), trip


def test_statuses_are_those_of_a_failure() -> None:
    """Of an error that has no errno of its own: what SHUT says of it stands in the container's page."""
    table = rows((DOCS / "wire" / "container.md").read_text(), "or 1 where none does:")
    shown = {getattr(errno, cells[0]) for cells in table if cells[0].startswith("E")}
    assert shown == {farewell.status_of(kind.__new__(kind)) for kind in all_errors()} - {farewell.FAILED}


@pytest.mark.parametrize("page", ["README.md", "docs/guides/targets.md"])
def test_exit_codes_are_those_of_the_errors(page: str) -> None:
    text = (ROOT / page).read_text()
    text = text[text.lower().index("exit codes") :] if page == "README.md" else text.partition("## Exit codes")[2]
    codes = {0} | {kind.exit_code for kind in all_errors()}
    assert [code for code in sorted(codes) if not re.search(rf"\b{code}\b", text)] == []
