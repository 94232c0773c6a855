# SPDX-License-Identifier: GPL-2.0-or-later
"""The workflow that builds and publishes wheels: what it runs is named by commits, and it may do little."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install -e '.[docs]'")

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github/workflows/wheels.yml"
PINNED = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    if not WORKFLOW.exists():
        pytest.skip("an sdist has no workflows")
    return yaml.safe_load(WORKFLOW.read_text())["jobs"]  # type: ignore[no-any-return]


def test_actions_are_named_by_their_commits(jobs: dict[str, Any]) -> None:
    used = [line.strip().removeprefix("- ") for line in WORKFLOW.read_text().splitlines() if "uses:" in line]
    assert len(used) == sum("uses" in step for job in jobs.values() for step in job["steps"])
    assert [line for line in used if not PINNED.fullmatch(line)] == []


def test_a_job_may_do_what_it_needs(jobs: dict[str, Any]) -> None:
    """Only the one that publishes can sign; it runs no code of the project, and nothing knows a password."""
    text = WORKFLOW.read_text()
    assert "\npermissions: {}\n" in text
    assert "secrets." not in text
    assert {name: job["permissions"] for name, job in jobs.items() if name != "publish"} == {
        "sdist": {"contents": "read"},
        "wheels": {"contents": "read"},
    }
    assert jobs["publish"]["permissions"] == {"id-token": "write", "attestations": "write"}
    assert not [step for step in jobs["publish"]["steps"] if "run" in step]
    assert all(job["timeout-minutes"] for job in jobs.values())


def test_it_builds_what_the_configuration_says(jobs: dict[str, Any]) -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheels, matrix = about["tool"]["cibuildwheel"], jobs["wheels"]["strategy"]["matrix"]
    assert [f"{python}-*" for python in matrix["python"]] == wheels["build"]
    assert matrix["machine"] == wheels["linux"]["archs"]
    said = {line.rpartition(" ")[2] for line in about["project"]["classifiers"] if "Python :: 3." in line}
    assert {f"cp{version.replace('.', '')}" for version in said} == {
        python.rstrip("t") for python in matrix["python"]
    }
