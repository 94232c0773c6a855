# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples in docs/wire: made by the package, taken apart by the plain reader, written out for a person.

``PYTHONPATH=tests/support python tests/support/wire_example.py`` writes them into the pages.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import model

import blkmig

PAGES = Path(__file__).parents[2] / "docs" / "wire"
MIB = model.MIB
ROW_BYTES = 8


def stream() -> bytes:
    """Return the stream of the example: the same bytes each time, for its clock stands still."""
    contents = bytearray(MIB) + bytes(range(256)) * (3 * MIB // 2 // 256)
    with tempfile.TemporaryDirectory() as folder, blkmig.MemoryBackend(contents, name="vda") as disk:
        path = Path(folder) / "stream"
        with blkmig.OutgoingMigration([disk], f"file:{path}", clock=lambda: 0.0) as migration:
            migration.run()
        return path.read_bytes()


def examples() -> dict[str, str]:
    """Return the text of each example by its name."""
    reader, found = model.Reader(stream()), model.Stream()
    model.read_into(reader, found)
    text = reader.trace[-1][1].decode()
    return {
        "block": "\n".join(row(*piece) for piece in reader.trace),
        "description": json.dumps(json.loads(text), indent=2),
    }


def row(offset: int, piece: bytes, what: str) -> str:
    """Return one line of the hexdump."""
    shown = piece[:ROW_BYTES].hex(" ")
    more = f" ({len(piece):,} bytes)" if len(piece) > ROW_BYTES else ""
    return f"{offset:>9,}  {shown + ' ...' if more else shown:<27}  {what}{more}".rstrip()


def with_examples(page: str) -> str:
    """Return the text of a page with its examples as they are."""
    for name, text in examples().items():
        page = re.sub(
            rf"(<!-- example: {name} -->\n```\w+\n)(.*\n)*?```",
            lambda match, text=text: f"{match[1]}{text}\n```",  # type: ignore[misc]
            page,
        )
    return page


if __name__ == "__main__":
    for path in PAGES.glob("*.md"):
        path.write_text(with_examples(path.read_text()))
