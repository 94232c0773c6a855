# SPDX-License-Identifier: GPL-2.0-or-later
"""The documentation site is built without a warning, and is whole on its own: a reader's browser asks no other host."""

from __future__ import annotations

import dataclasses
import html.parser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import blkmig
from blkmig import errors

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")

ROOT = Path(__file__).parents[2]
IS_FOREIGN = re.compile(r"\s*(?:[a-z]+:)?//", re.IGNORECASE)
LOADED_BY_CSS = re.compile(r"""(?:url\(\s*|@import\s+)["']?([^"')\s;]+)""")
ANCHOR = re.compile(r'id="(blkmig[\w.]*)"')
LINKS_THAT_LOAD = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload"}


class Loads(html.parser.HTMLParser):
    """Collects what a browser fetches for a page without being told to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.viewport = ""
        self.schemes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        if tag != "a":
            self.found += [known[name] for name in ("src", "srcset", "data", "poster") if name in known]
        if tag == "link" and LINKS_THAT_LOAD & set(known.get("rel", "").split()):
            self.found.append(known.get("href", ""))
        if tag == "meta" and known.get("name") == "viewport":
            self.viewport = known["content"]
        if "data-md-color-scheme" in known:
            self.schemes.add(known["data-md-color-scheme"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; a warning is a failure."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def parsed(page: Path) -> Loads:
    loads = Loads()
    loads.feed(page.read_text())
    return loads


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    found = {str(page.relative_to(site)): parsed(page).found for page in site.rglob("*.html")}
    found |= {str(css.relative_to(site)): LOADED_BY_CSS.findall(css.read_text()) for css in site.rglob("*.css")}
    assert len(found) > 3
    # What the theme's script would ask other hosts for: drawings, and the figures of a repository.
    asks = re.compile(r'class="mermaid"|data-md-component="source"')
    assert [page.name for page in site.rglob("*.html") if asks.search(page.read_text())] == []
    assert [(name, url) for name, urls in found.items() for url in urls if IS_FOREIGN.match(url)] == []


def test_fits_a_phone_and_the_night(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert "width=device-width" in parsed(page).viewport
        assert parsed(page).schemes == {"default", "slate"}


def test_every_public_name_is_described(site: Path) -> None:
    """What the package says of itself is in the reference: names, errors, parameters, primitives."""
    described = {match for page in site.rglob("reference/*.html") for match in ANCHOR.findall(page.read_text())}
    assert {f"blkmig.{name}" for name in blkmig.__all__ if name != "errors"} - described == set()
    assert {f"blkmig.errors.{kind.__name__}" for kind in errors.MigrationError.__subclasses__()} - described == set()
    fields = dataclasses.fields(blkmig.MigrationParameters)
    assert {f"blkmig.MigrationParameters.{field.name}" for field in fields} - described == set()
    verbs = ("buffer_is_zero", "Bitmap.take_areas", "BlockBuffer.fill", "put_be64")
    assert {f"blkmig._core.{verb}" for verb in verbs} - described == set()


def test_docstrings_are_shown_as_text(site: Path) -> None:
    """No role and no mark of reStructuredText is left in the reference."""
    for page in site.rglob("reference/*.html"):
        shown = re.sub(r"<[^>]+>", "", page.read_text())
        assert re.findall(r".*(?::class:|:func:|:meth:|^::$).*", shown, re.MULTILINE) == []


def test_sources_stay_out_of_it(site: Path) -> None:
    """The man page is for `man`, and the tools are for those who build the site."""
    assert not list(site.rglob("*.md"))
    assert not list(site.rglob("*.1"))
