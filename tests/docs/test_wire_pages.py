# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples in docs/wire are what the package writes."""

from __future__ import annotations

import wire_example


def test_examples_are_what_is_written() -> None:
    pages = [path.read_text() for path in wire_example.PAGES.glob("*.md")]
    text = "\n".join(pages)
    assert all(f"<!-- example: {name} -->" in text for name in wire_example.examples())
    is_true = all(wire_example.with_examples(page) == page for page in pages)
    assert is_true, (
        "say on the pages what has changed, then run PYTHONPATH=tests/support python tests/support/wire_example.py"
    )
