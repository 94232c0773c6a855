# SPDX-License-Identifier: GPL-2.0-or-later
"""Record the golden streams: real QEMU 7.2, real bytes, disks whose contents compress to nearly nothing.

    python tests/golden/record.py [NAME...]

Each recording becomes ``NAME.stream.xz`` and an entry in ``manifest.json`` that says all that a test needs: the
command line, what was sent (size and sha256 of every disk when the source had ended) and what a receiver must find.
What differs from run to run: order and number of sections, the contents of the slack, what the guest wrote.
"""

from __future__ import annotations

import json
import lzma
import pathlib
import sys
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

import real_qemu  # noqa: E402
from recordings import RECORDINGS  # noqa: E402
from session import Disk, Recording, Session  # noqa: E402


def describe_disk(disk: Disk, folder: pathlib.Path) -> dict[str, Any]:
    """Return the manifest's entry for one disk, as it is now."""
    contents = (folder / disk.file).read_bytes()
    entry: dict[str, Any] = {"name": disk.name, "size": len(contents), "sha256": real_qemu.sha256(contents)}
    if contents == disk.contents:
        entry |= {"seed": disk.name, "zero_blocks": list(disk.zero_blocks)}
    return entry


def record(recording: Recording) -> dict[str, Any]:
    """Make one recording, store it, and return its entry in the manifest."""
    with tempfile.TemporaryDirectory(prefix="golden-") as name:
        folder = pathlib.Path(name)
        session = Session(recording, folder)
        recording.run(session)
        stream = session.stream.read_bytes()
        packed = lzma.compress(stream, preset=9 | lzma.PRESET_EXTREME)
        (HERE / f"{recording.name}.stream.xz").write_bytes(packed)
        disks = [describe_disk(disk, folder) for disk in recording.disks if disk.sent]
        return {
            "name": recording.name,
            "note": recording.note,
            "qemu": real_qemu.version(),
            "command": " ".join(session.vm.command).replace(f"{folder}/", ""),
            "machine": recording.machine,
            "capabilities": [capability.replace("_", "-") for capability in recording.capabilities],
            "parameters": recording.parameters,
            "migrate": {"blk": True, "inc": recording.incremental},
            "status": recording.status,
            "verdict": recording.verdict,
            "stream": {"size": len(stream), "sha256": real_qemu.sha256(stream)},
            "disks": disks,
            **session.extra,
        }


def main(names: list[str]) -> None:
    """Record everything, or what was named, and write the manifest in the order of the list."""
    path = HERE / "manifest.json"
    entries = {entry["name"]: entry for entry in json.loads(path.read_text())} if path.exists() else {}
    for recording in RECORDINGS:
        if not names or recording.name in names:
            entries[recording.name] = record(recording)
            packed = (HERE / f"{recording.name}.stream.xz").stat().st_size
            print(f"{recording.name:20} {entries[recording.name]['stream']['size']:>10} {packed:>8}", file=sys.stderr)
    ordered = [entries[recording.name] for recording in RECORDINGS if recording.name in entries]
    path.write_text(json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
