# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths of callers: whatever takes one refuses what no file can be called, and opens nothing (C8)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blkmig
from blkmig import channel, errors, migration, paths, qemu, sources
from blkmig.cli import arguments
from blkmig.files import dirtymap, sharedmap
from blkmig.nbd import backend as nbd
from blkmig.nbd import image
from blkmig.nbd import uri as nbd_uri
from blkmig.sources import serve

MIB = 1 << 20


def disk() -> blkmig.MemoryBackend:
    return blkmig.MemoryBackend(bytearray(MIB), name="d")


def share(path: Any) -> object:
    return sharedmap.SharedMapBackend(disk(), path, hold="true", release="true")


def storage_daemon(nbd_address: Any, qmp: Any) -> None:
    Path("d.raw").write_bytes(bytes(MIB))
    serve.StorageDaemon([serve.ServedDisk("v", sources.describe("d.raw"))], nbd_address, qmp=qmp).close()


PATHS: dict[str, Callable[[Any], object]] = {
    "FileBackend": blkmig.FileBackend,
    "FileBackend.create": lambda path: blkmig.FileBackend.create(path, 512),
    "a base": lambda path: blkmig.FileBackend("d.raw", base=path),
    "ImageBackend": lambda path: image.ImageBackend(path, format="qcow2"),
    "a new ImageBackend": lambda path: image.ImageBackend(path, format="qcow2", create_size=512),
    "an image's base": lambda path: image.ImageBackend("d.raw", format="qcow2", base=path),
    "open_disk": blkmig.open_disk,
    "open_disks": blkmig.open_disks,
    "cleanup": qemu.cleanup,
    "create_map": lambda path: dirtymap.create_map(path, MIB),
    "SharedMapBackend": share,
    "certificates": lambda path: nbd.NbdBackend("nbds://localhost:1/", tls_certificates=path),
    "a psk file": lambda path: nbd.NbdBackend("nbds://localhost:1/", tls_psk_file=path),
    "NbdBackend": nbd.NbdBackend,
    "serve": lambda path: storage_daemon(f"unix:{path}" if isinstance(path, str) else path, None),
    "serve's qmp": lambda path: storage_daemon("unix:nbd", path),
    "send": lambda path: blkmig.send([path], "file:st"),
    "a target": lambda path: blkmig.receive("file:st", {"d": path}),
    "a target by number": lambda path: blkmig.receive("file:st", by_index={0: path}),
    "a folder": lambda path: blkmig.receive("file:st", into=path),
}
TEXTS: dict[str, Callable[[str], object]] = {
    "an image": lambda path: blkmig.open_disk(f"{path},format=qcow2"),
    "a base in a text": lambda path: blkmig.open_disk(f"x,base={path}"),
    "qemu:": lambda path: blkmig.open_disks(f"qemu:{path}"),
    "open_qemu": lambda path: qemu.open_qemu(f"qemu:{path}"),
    "qemu: nbd=": lambda path: blkmig.open_disks(f"qemu:x,nbd=unix:{path}"),
    "cleanup qemu:": lambda path: qemu.cleanup(f"qemu:{path}"),
    "dirtymap:": lambda path: blkmig.open_disks(f"dirtymap:{path},disk=d.raw,hold=true,release=true"),
    "a map's disk": lambda path: blkmig.open_disks(f"dirtymap:m,disk={path},hold=true,release=true"),
    "nbd+unix:": lambda path: nbd.NbdBackend(f"nbd+unix:///?socket={path}"),
    "a stream's file": lambda path: blkmig.send([disk()], f"file:{path}"),
    "a stream's socket": lambda path: blkmig.send([disk()], f"unix:{path}"),
    "a stream's command": lambda path: blkmig.send([disk()], f"exec:exit 1; {path}"),
    "a stream's host": lambda path: blkmig.send([disk()], f"tcp:{path}:1"),
    "receive": lambda path: blkmig.receive(f"file:{path}", {"d": "t.raw"}),
    "listen": lambda path: channel.listen(f"unix:{path}"),
    "a forecast": lambda path: migration.forecast(
        [disk()], blkmig.MigrationParameters(), seconds=0, bandwidth=1, uri=f"unix:{path}"
    ),
}


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, path) for name in (*PATHS, *TEXTS) for path in ("a\0b", "\ud800")]
    + [(name, path) for name in PATHS for path in (b"a", 5, 1.5)],
)
def test_what_is_no_path(tmp_path: Path, name: str, path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a ValueError of some system call, or a UnicodeEncodeError."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.ParameterError):
        (PATHS.get(name) or TEXTS[name])(path)
    assert {found.name for found in tmp_path.iterdir()} <= {"d.raw"}


@pytest.mark.parametrize("name", [*PATHS, *TEXTS])
def test_a_path_of_any_bytes_is_one(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is no UTF-8 may fail as any other one does."""
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(errors.MigrationError):
        opened = (PATHS.get(name) or TEXTS[name])("x\udcff")
        if isinstance(opened, blkmig.BlockBackend | channel.Listener):
            opened.close()


def test_two_commas_are_one() -> None:
    assert paths.split("a,,b,c,,,d") == ["a,b", "c,", "d"]
    assert nbd_uri.unix_uri("/a b\udcff") == "nbd+unix:///?socket=/a%20b%FF"


@pytest.mark.parametrize(
    ("call", "text", "advice"),
    [
        (blkmig.open_disk, "a,b.raw", "write a comma in a value twice"),
        (blkmig.open_disks, "qemu:/run/a,b.qmp", "'b.qmp' in 'qemu:/run/a,b.qmp' is not known"),
        (blkmig.open_disks, "qemu:/run/a,b.qmp", "write a comma in a value twice"),
        (blkmig.open_disks, "dirtymap:m,disk=a,b,hold=true,release=true", "'b' is not known.*write a comma"),
        (blkmig.open_disks, "dirtymap:m,disk=a,disk=b,hold=x,release=y", "'disk=b' is .* comes twice"),
        (channel.parse_uri, "file:a,b", "a comma in the path is written ',,'"),
        (channel.parse_uri, "file:a,offset=x", "bad address 'file:a,offset=x': offset=x: 'x' is not a size"),
        (arguments.named_size, "v=x", "--size=v=x: 'x' is not a size"),
    ],
)
def test_what_is_taken_apart_says_how_to_write_it(call: Callable[[str], object], text: str, advice: str) -> None:
    with pytest.raises(errors.ParameterError, match=advice):
        call(text)
