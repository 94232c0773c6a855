# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages for readers: what they name is there, what they link to is there, and the README stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README_WORDS = 900
QUESTIONS = {
    "Where is the rate limit kept?": "`RateLimiter` in `blkmig/channel/rate.py`",
    "What may a backend assume about threads?": "## What a backend may assume",
    "How do I add a source?": "## A new kind of disk",
    "Where would a wrong digest be noticed?": "`verify_digests` in `blkmig/migration/verdict.py`",
    "Which test shows that a dirty bit is cleared first?": "test_clearing_after_the_read_would_be_noticed",
}
"""What a newcomer asks, and what the answer says."""

IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def named_paths(text: str) -> set[str]:
    """Return what stands between backquotes and begins like a path of the repository."""
    return set(re.findall(r"`((?:blkmig|tests|benchmarks|docs|examples)/[^`\s]*)`", text))


def placed_names(text: str) -> set[tuple[str, str]]:
    """Return (name, path) of each "`name` in `path`": where a page says that something is."""
    return set(re.findall(r"`([A-Za-z_.]+)`(?:\)|,)? (?:in|of) `((?:blkmig|tests)/[^`\s]+\.\w+)`", text))


def links(text: str) -> set[str]:
    """Return where the page's links lead to, within the repository."""
    return {target for target in re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", text) if "://" not in target}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) < README_WORDS


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_paths_exist(page: Path) -> None:
    missing = set()
    for name in named_paths(page.read_text()):
        path, _, test = name.partition("::")
        where = ROOT / path
        if not where.exists() or (test and f"def {test}(" not in where.read_text()):
            missing.add(name)
    assert missing == set()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_names_are_where_they_are_said_to_be(page: Path) -> None:
    placed = placed_names(page.read_text())
    assert {(name, path) for name, path in placed if name.rpartition(".")[2] not in (ROOT / path).read_text()} == set()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    assert {target for target in links(page.read_text()) if not (page.parent / target).exists()} == set()


def test_rooms_has_the_floors_that_are_tested() -> None:
    code = (ROOT / "tests" / "packaging" / "test_floors.py").read_text()
    tested = {name: int(floor) for name, floor in re.findall(r'^    "(\w+)": (\d+),$', code, re.MULTILINE)}
    rows = re.findall(
        r"^\| (\d+) \| ([^|]+) \|", (ROOT / "docs" / "architecture" / "rooms.md").read_text(), re.MULTILINE
    )
    shown = {name.rstrip("/"): int(floor) for floor, names in rows for name in re.findall(r"`([^`]+)`", names)}
    assert {name: shown.get(name) for name in tested} == tested


def test_rooms_has_every_file() -> None:
    text = (ROOT / "docs" / "architecture" / "rooms.md").read_text()
    files = {path.name for path in (ROOT / "blkmig").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert {name for name in files if f"{name}`" not in text} == set()


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_newcomer_finds_it_in_two_clicks(question: str) -> None:
    start = ROOT / "CONTRIBUTING.md"
    pages = [start]
    for _ in range(2):
        pages += [
            (page.parent / target).resolve()
            for page in pages
            for target in links(page.read_text())
            if target.endswith(".md")
        ]
    texts = {page: page.read_text() for page in pages}
    assert any(question in text for text in texts.values())
    assert any(QUESTIONS[question] in text for text in texts.values())
