# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that are not raw are refused as raw: by their magic bytes, and as qemu-img makes them."""

import os
import subprocess

import peers
import pytest

import blkmig
from blkmig import errors, files
from blkmig.files import probe

HEADS = [
    ("qcow2", b"QFI\xfb\0\0\0\3"),
    ("qed", b"QED\0"),
    ("vmdk", b"KDMV\1\0\0\0"),
    ("vmdk", b"COWD\1\0\0\0"),
    ("vmdk", b"# Disk DescriptorFile\nversion=1\n"),
    ("vmdk", b"\xbe\xba\xfe\xca\0\0\0\0"),
    ("vhdx", b"vhdxfile"),
    ("vpc", b"conectix"),
    ("luks", b"LUKS\xba\xbe\0\1"),
    ("vdi", b"<<< QEMU VM Virtual Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe"),
    ("parallels", b"WithoutFreeSpace"),
    ("parallels", b"WithouFreSpacExt"),
    ("bochs", b"Bochs Virtual HD Image\0"),
    ("cloop", b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"),
]
RAW = [b"", b"Q", b"QFI", b"\xeb\x63\x90" + bytes(507) + b"\x55\xaa", b"LUKS", b"koly", b"conectiX"]


@pytest.mark.parametrize("size", [0, 100, 1 << 20])
@pytest.mark.parametrize(("found", "head"), HEADS)
def test_magic_at_the_start(tmp_path, found, head, size):
    path = tmp_path / "disk.img"
    path.write_bytes(head.ljust(size, b"\0"))
    with pytest.raises(errors.FormatError, match=f"looks like a {found} image; say format={found}") as caught:
        files.FileBackend(path)
    assert caught.value.exit_code == 2
    with files.FileBackend(path, format="raw") as backend:
        assert backend.pread(0, len(head)) == head


@pytest.mark.parametrize(("found", "tail"), [("vpc", b"conectix"), ("dmg", b"koly")])
def test_magic_in_the_last_sector(tmp_path, found, tail):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096) + tail.ljust(512, b"\0"))
    with pytest.raises(errors.FormatError, match=f"looks like a {found} image"):
        files.FileBackend(path)
    path.write_bytes(bytes(4096) + tail.ljust(513, b"\0"))
    files.FileBackend(path).close()


@pytest.mark.parametrize("head", RAW)
def test_what_is_raw(tmp_path, head):
    path = tmp_path / "disk.img"
    path.write_bytes(head)
    with path.open("rb") as file:
        assert probe.probe_format(file.fileno(), len(head)) == "raw"
    path.write_bytes(head.ljust(2048, b"\0"))
    with files.FileBackend(path) as backend:
        assert backend.size == 2048


@pytest.mark.parametrize("path", ["/proc/version", "/sys/devices/system/cpu/online"])
def test_a_file_that_hides_its_size(tmp_path, path):
    """A1: of 0 bytes, it says, or of 4096 where it has a few: it was sent as that many, with success."""
    with pytest.raises(errors.DeviceError, match="does not say how large it is"):
        blkmig.send([path], f"file:{tmp_path}/stream")
    assert not list(tmp_path.iterdir())


def test_a_base_must_be_raw_too(tmp_path):
    (tmp_path / "base.qcow2").write_bytes(b"QFI\xfb".ljust(1024, b"\0"))
    (tmp_path / "top.raw").write_bytes(bytes(1024))
    with pytest.raises(errors.FormatError):
        files.FileBackend(tmp_path / "top.raw", base=tmp_path / "base.qcow2")


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("qcow2", ""),
        ("qcow", ""),
        ("qed", ""),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=monolithicFlat"),
        ("vhdx", ""),
        ("vpc", "subformat=dynamic"),
        ("vpc", "subformat=fixed"),
        ("vdi", ""),
        ("parallels", ""),
    ],
)
def test_images_made_by_qemu_img(tmp_path, format, options):
    peers.require("qemu-img")
    path = tmp_path / "disk.img"
    made = subprocess.run(
        ["qemu-img", "create", "-q", "-f", format, *(["-o", options] if options else []), path, "4M"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"this qemu-img makes no {format}: {made.stderr.strip()}")
    with pytest.raises(errors.FormatError, match="looks like a"):
        files.FileBackend(path)


def test_mounts_of_any_name(tmp_path):
    """Names of mounts are bytes in any encoding, and line breaks of Unicode are none."""
    (tmp_path / "mountinfo").write_bytes(
        b"21 1 8:1 / /M\xfcller\xc2\x85 rw - ext4 /dev/sda1 rw\n"
        b"22 1 0:55 / /\xff rw shared:1 - fuse.sshfs a@b:/\xfc rw\n"
    )
    assert probe.file_system_of(os.makedev(8, 1), tmp_path) == "ext4"
    assert probe.file_system_of(os.makedev(0, 55), tmp_path) == "fuse.sshfs"
    assert probe.file_system_of(os.makedev(0, 56), tmp_path) == ""


def test_fuse_on_a_block_device_is_served(tmp_path, monkeypatch):
    """As ntfs-3g: its files have the number of the block device."""
    monkeypatch.setattr(probe, "file_system_of", {os.makedev(8, 1): "fuseblk", os.makedev(8, 2): "ext4"}.get)
    for number, is_served in ((1, True), (2, False)):
        about = os.stat_result((0, 0, os.makedev(8, number), *[0] * 7))
        monkeypatch.setattr(os, "fstat", lambda _, about=about: about)
        assert probe.is_served(-1) == is_served
