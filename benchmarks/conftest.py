# SPDX-License-Identifier: GPL-2.0-or-later
"""What all benchmarks share: ``--quick``, the folder for the data, the versions that go into the JSON."""

from __future__ import annotations

import pathlib
import platform
import sys
import tempfile
from collections.abc import Iterator

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # the package `harness`
from harness import arena as arenas
from harness import images, peers, tools

pytest_plugins = ["blkmig.gates.plugin"]  # the fixture `ratio` and the options --gates


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks of blkmig")
    group.addoption("--quick", action="store_true", help="smoke run: small data, one round, nothing is judged")
    group.addoption("--bench-dir", metavar="DIR", type=pathlib.Path, help="where the images go (default: TMPDIR)")
    group.addoption("--rivals", metavar="NAME,...", default="", help="the only rivals in whole copies: nbdcopy,dd ...")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.quick:
        config.option.gates_quick = True
    folder = config.option.bench_dir
    if folder is not None and not folder.is_dir():
        raise pytest.UsageError(f"--bench-dir: there is no folder {folder}; make it first")


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether this is a smoke run: shrink the data, measure nothing in earnest."""
    return bool(request.config.option.quick)


@pytest.fixture(scope="session")
def bench_dir(request: pytest.FixtureRequest) -> Iterator[pathlib.Path]:
    """Return a folder for images; it is removed with all that is in it."""
    with tempfile.TemporaryDirectory(prefix="blkmig-bench-", dir=request.config.option.bench_dir) as folder:
        yield pathlib.Path(folder)


@pytest.fixture(scope="session")
def arena(request: pytest.FixtureRequest, bench_dir: pathlib.Path, quick: bool) -> arenas.Arena:
    """Return the place for end-to-end comparisons."""
    if tools.compiler() is None:
        pytest.skip("no C compiler: the processes cannot be measured")
    if not quick and request.config.option.gates != "ci":
        images.warm_memory()
    rivals = frozenset(filter(None, request.config.option.rivals.split(",")))
    shared = request.config.option.gates == "ci"
    return arenas.Arena(bench_dir, tools.Tools(bench_dir / "tools"), quick, rivals, shared)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Skip what cannot run here."""
    try:
        return (yield)
    except images.CannotRunHere as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _versions(request: pytest.FixtureRequest) -> None:
    """Add what the comparisons depend on to the JSON."""
    if "ratio" in request.fixturenames:
        request.getfixturevalue("ratio").versions.update({"linux": platform.release(), **peers.versions()})
