# SPDX-License-Identifier: GPL-2.0-or-later
"""What a text says about an NBD export, or about any disk."""

from __future__ import annotations

import pathlib

import pytest

import blkmig
from blkmig import errors
from blkmig.nbd import backend as nbd
from blkmig.nbd import connection as nbd_connection
from blkmig.nbd import uri as nbd_uri
from blkmig.sources import opening, targetfile


@pytest.mark.parametrize("export", ["", "vda", "a b", "a/b", "ünï?&#%", "x" * 4096])
def test_export_in_uri(export: str) -> None:
    uri = nbd_uri.unix_uri("/tmp/a b&c?d/s", export)
    assert nbd_uri.export_of(uri) == export
    assert uri.startswith("nbd+unix:///")
    assert "socket=/tmp/a%20b%26c%3Fd/s" in uri


def test_another_export() -> None:
    assert nbd_uri.with_export("nbds://h:1/a?tls-certificates=/d", "b/c") == "nbds://h:1/b%2Fc?tls-certificates=/d"


@pytest.mark.parametrize(
    ("uri", "tls"),
    [
        ("http://host/", None),
        ("/dev/vda", None),
        ("nbd://host/?tls-certificates=/dir", None),
        ("nbd+unix:///?socket=s", "dir"),
        ("nbd://[::1/x", None),
        ("nbd://host:ten/x", None),
        ("nbd://host:99999/x", None),
        ("nbd://:10999/x", None),
        ("nbd://@:10999/x", None),
        ("nbds://:10999/x", None),
        ("nbd+vsock://:10999/x", None),
    ],
)
def test_uri_refused(uri: str, tls: str | None) -> None:
    with pytest.raises(errors.ParameterError):
        nbd_connection.NbdConnection(uri, tls_certificates=tls)
    with pytest.raises(errors.ParameterError):
        nbd.NbdBackend(uri, tls_certificates=tls)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("nbd://h/x", "nbd://H:10809/x"),
        ("nbd://h:1/x", "nbds://user@h:1/x?tls-certificates=/d"),
        ("nbd://h", "nbd://h/"),
        ("nbd+unix:///a%2Fb?socket=s", "nbd+unix:///a/b?socket=./t/../s"),
        ("nbd+vsock://2/x", "nbd+vsock://2:10809/x"),
    ],
)
def test_two_targets_at_one_export(tmp_path: pathlib.Path, one: str, other: str) -> None:
    """A4: both were written to it, with success, and one was lost. Nobody is connected to before that is known."""
    with pytest.raises(errors.ParameterError, match="disk 'b' and disk 'a' are the same NBD export"):
        blkmig.receive(f"unix:{tmp_path}/s", {"a": one, "b": other})
    assert not list(tmp_path.iterdir())


def test_exports_that_are_not_the_same() -> None:
    uris = ["nbd://h/x", "nbd://h/y", "nbd://h:1/x", "nbd://g/x", "nbd+vsock://2/x", "nbd://2/x"]
    uris += ["nbd+unix:///x?socket=s", "nbd+unix:///x?socket=t", "nbd+unix:///y?socket=s"]
    assert len({nbd_uri.place_of(uri) for uri in uris}) == len(uris)


def test_port_needs_a_host_whatever_the_disk_is_called() -> None:
    """Without one, the library would drop the port and find another server on this machine."""
    with pytest.raises(errors.ParameterError, match="which host"):
        nbd_connection.NbdConnection("nbd://:10999/x", device="v")


@pytest.mark.parametrize(
    ("uri", "host"),
    [
        ("nbd://Some.Host:1/x", "some.host"),
        ("nbds://[::1]/", "::1"),
        ("nbd:///x", None),
        ("nbd+unix:///?socket=s", None),
        ("nbds+unix://user@/?socket=s", None),
        ("nbds+vsock://2:1/", None),
    ],
)
def test_host(uri: str, host: str | None) -> None:
    assert nbd_uri.host_of(uri) == host


@pytest.mark.parametrize(
    ("uri", "name"),
    [("nbd://h/vda", "vda"), ("nbd://h/", "nbd"), ("nbd://h", "nbd"), ("nbd+unix:///a%2Fb?socket=s", "b")],
)
def test_default_name(uri: str, name: str) -> None:
    assert nbd.default_name(uri) == name


@pytest.mark.parametrize(
    ("text", "described"),
    [
        ("vda.raw", {"path": "vda.raw"}),
        ("a,,b.raw", {"path": "a,b.raw"}),
        ("v,format=qcow2,base=b,,c,base-format=qcow2", {"path": "v", "format": "qcow2", "base": "b,c",
                                                        "base_format": "qcow2"}),
        ("v,direct=on,locking=off,format=raw", {"path": "v", "direct": True, "locking": False, "format": "raw"}),
    ],
)  # fmt: skip
def test_described(text: str, described: dict[str, object]) -> None:
    assert opening.describe(text) == opening.FileDescription(**described)  # type: ignore[arg-type]


REFUSED = ["", ",format=raw", "v,b", "v,format=", "v,direct=yes", "v,size=3", "v,base-format=qcow2", "v,"]
REFUSED += ["v,format=qcow2,format=raw", "v,base=a,base=b"]


@pytest.mark.parametrize("text", REFUSED)
def test_description_refused(text: str) -> None:
    with pytest.raises(errors.ParameterError):
        opening.describe(text)


def test_existing_path_is_no_description(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a,format=qcow2"
    path.write_bytes(bytes(512))
    assert opening.describe(str(path)).path == str(path)
    assert opening.describe(path).path == str(path)
    with opening.open_disk(str(path)) as disk:
        assert disk.size == 512


@pytest.mark.parametrize("suffix", [".qcow2", ".VMDK", ".vhd"])
def test_new_target_by_suffix(tmp_path: pathlib.Path, suffix: str) -> None:
    path = tmp_path / f"new{suffix}"
    with pytest.raises(errors.ParameterError, match="say format="):
        targetfile.TargetFile(str(path), label="disk").prepare()
    assert list(tmp_path.iterdir()) == []
    target = targetfile.TargetFile(f"{path},format=raw", label="disk")
    target.prepare()
    with target.open("disk", 1 << 20) as disk:
        assert disk.size == 1 << 20
    assert target.discard(withdraw=False)
    assert list(tmp_path.iterdir()) == []


def test_new_image_needs_a_size(tmp_path: pathlib.Path) -> None:
    target = targetfile.TargetFile(f"{tmp_path}/new.vmdk,format=vmdk", label="disk")
    target.prepare()
    with pytest.raises(errors.ParameterError, match="size"):
        target.check_size_is_known(None)
    target.discard(withdraw=False)


@pytest.mark.parametrize("text", ["qemu:/nowhere", "dirtymap:/nowhere,disk=x,hold=x,release=x"])
def test_live_source_is_no_target(text: str) -> None:
    with pytest.raises(errors.ParameterError, match="source"):
        targetfile.TargetFile(text, label="disk")


def test_one_disk_of_a_live_source() -> None:
    with pytest.raises(errors.ParameterError, match="must be dirtymap:"):
        opening.open_disk("dirtymap:/nowhere")
    with pytest.raises(errors.DeviceError):
        opening.open_disk("qemu:/nowhere")
