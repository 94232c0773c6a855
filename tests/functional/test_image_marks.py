# SPDX-License-Identifier: GPL-2.0-or-later
"""A qcow2 image that is marked as corrupt, or as not closed, is read, and a user is told."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from pathlib import Path

import command
import lab
import peers
import pytest

from blkmig import errors
from blkmig.nbd import image, qcow2

peers.require("qemu-nbd", "qemu-img")

MIB = 1 << 20
CONTENT = lab.random_disk(random.Random(5), 3 * MIB)
DIRTY, CORRUPT = 1, 2


def made(path: Path, marks: int, *, version: str = "1.1", base: Path | None = None) -> Path:
    """Make an image, and mark it as QEMU does."""
    raw = lab.sparse_file(path.with_suffix(".raw"), CONTENT)
    layer = [] if base is None else ["-B", str(base), "-F", "qcow2"]
    options = ["-f", "raw", "-O", "qcow2", "-o", f"compat={version}", *layer]
    subprocess.run(["qemu-img", "convert", *options, raw, path], check=True)
    with path.open("r+b") as file:
        (said,) = struct.unpack_from(">Q", os.pread(file.fileno(), 8, 72))
        os.pwrite(file.fileno(), struct.pack(">Q", said | marks), 72)
    return path


@pytest.mark.parametrize("marks", range(4))
def test_a_source(tmp_path: Path, marks: int, caplog: pytest.LogCaptureFixture) -> None:
    path = made(tmp_path / "a.qcow2", marks)
    with image.ImageBackend(path, format="qcow2", writable=False) as disk:
        assert disk.pread(0, disk.size) == CONTENT
    assert caplog.text.count("has marked its image") == caplog.text.count("as corrupt") == bool(marks & CORRUPT)
    assert caplog.text.count("was not closed, as after a power failure") == bool(marks & DIRTY)
    assert caplog.text.count("qemu-img check -r all") == marks.bit_count()


def test_a_backing_file_that_only_the_image_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = made(tmp_path / "base.qcow2", 0)
    path = made(tmp_path / "a.qcow2", 0, base=base)
    made(base, CORRUPT)
    with image.ImageBackend(path, format="qcow2", writable=False) as disk:
        assert disk.pread(0, disk.size) == CONTENT
    assert f"has marked its image {str(base)!r} as corrupt" in caplog.text


def test_the_command_says_it(tmp_path: Path) -> None:
    """And goes on: it may be what is left to be saved."""
    path = made(tmp_path / "a.qcow2", CORRUPT)
    done = command.run("send", f"a={path},format=qcow2", f"file:{tmp_path}/s")
    assert done.exit_code == 0
    assert "as corrupt" in done.stderr


def test_a_target_that_is_corrupt_is_refused_by_qemu(tmp_path: Path) -> None:
    with pytest.raises(errors.DeviceError, match=r"(?i)corrupt"):
        image.ImageBackend(made(tmp_path / "a.qcow2", CORRUPT), format="qcow2")


@pytest.mark.parametrize(
    "header",
    [
        *(b"", b"QFI\xfb", b"QFI\xfb\0\0\0\3" + bytes(71), b"QFI\xfb\0\0\0\2" + b"\xff" * 100),
        *(b"xxxx\0\0\0\3" + b"\xff" * 100, b"QFI\xfb\0\0\0\3" + bytes(64) + b"\xff" * 7 + b"\xfc"),
    ],
)
def test_other_headers(tmp_path: Path, header: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x").write_bytes(header)
    for path in (tmp_path / "x", tmp_path / "none", tmp_path):
        qcow2.warn_of_marks(str(path), device="d")
    assert not caplog.text
