# SPDX-License-Identifier: GPL-2.0-or-later
"""Every example of the documentation runs, in the order of its page, in a sandbox of its own."""

from __future__ import annotations

import os
from pathlib import Path

import nbd_servers
import pages
import peers
import pytest
import sandbox

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ALL = sorted(path for path in DOCS.rglob("*.md"))
MIB = 1 << 20
TIMEOUT = 300.0  # seconds, on a machine that has much else to do

PROGRAMS = {
    "tutorial.md": ("qemu-storage-daemon",),
    "guides/move-a-disk.md": ("qemu-system-x86_64", "qemu-img"),
    "guides/qemu-at-either-end.md": ("qemu-system-x86_64", "qemu-img"),
}
"""What the examples of a page take besides blkmig."""

NEED_LIBNBD = {"tutorial.md", "guides/move-a-disk.md"}
NEED_LIBRARY = {"guides/watch.md": "prometheus_client"}


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_every_example_is_accounted_for(page: Path) -> None:
    """It runs, or the page says why it does not."""
    assert [f"{name_of(page)}:{each.line}" for each in pages.examples(page) if not each.is_accounted_for] == []


@pytest.mark.parametrize("page", [page for page in ALL if pages.script(page)], ids=name_of)
def test_examples_run(tmp_path: Path, page: Path) -> None:
    sandbox.require()
    peers.require(*PROGRAMS.get(name_of(page), ()))
    if name_of(page) in NEED_LIBNBD:
        nbd_servers.require_libnbd()
    if name_of(page) in NEED_LIBRARY:
        pytest.importorskip(NEED_LIBRARY[name_of(page)])
    place = sandbox.Sandbox(tmp_path / "box")
    (place.here / "vda.raw").write_bytes(os.urandom(2 * MIB) + bytes(MIB) + os.urandom(MIB))
    done = place.run(pages.script(page), timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert pages.not_printed(page, done.stdout) == []
