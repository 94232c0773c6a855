# SPDX-License-Identifier: GPL-2.0-or-later
"""The addresses of streams, as QEMU spells them."""

from __future__ import annotations

import pytest

from blkmig import errors
from blkmig.channel import uri

GOOD = [
    ("tcp:host:4444", uri.TcpAddress("host", 4444)),
    ("tcp:10.0.0.1:1", uri.TcpAddress("10.0.0.1", 1)),
    ("tcp:[::1]:4444", uri.TcpAddress("::1", 4444)),
    ("tcp:[fe80::1%eth0]:65535", uri.TcpAddress("fe80::1%eth0", 65535)),
    ("tcp::4444", uri.TcpAddress("", 4444)),
    ("tcp::0", uri.TcpAddress("", 0)),
    ("unix:/run/a b,c.sock", uri.UnixAddress("/run/a b,c.sock")),
    ("unix:relative", uri.UnixAddress("relative")),
    ("exec:gzip -c > a:b,c", uri.ExecAddress("gzip -c > a:b,c")),
    ("fd:0", uri.FdAddress(0)),
    ("fd:17", uri.FdAddress(17)),
    ("file:/tmp/x", uri.FileAddress("/tmp/x")),
    ("file:a:b", uri.FileAddress("a:b")),
    ("file:/tmp/x,offset=4096", uri.FileAddress("/tmp/x", 4096)),
    ("file:a,,b,,offset=1,offset=0x10", uri.FileAddress("a,b,offset=1", 16)),
    ("file:x,,", uri.FileAddress("x,")),
    ("file:x,offset=1M", uri.FileAddress("x", 1 << 20)),
    ("-", uri.StdioAddress()),
]

BAD = [
    "",
    "tcp",
    "tcp:",
    "tcp:host",
    "tcp:host:",
    "tcp:host:port",
    "tcp:host:65536",
    "tcp:host:-1",
    "tcp:host:1,ipv4=on",
    "tcp:::1:4444",
    "tcp:[]:1",
    "tcp:[::1]4444",
    "tcp:host:\u0661",
    "TCP:host:1",
    "unix",
    "unix:",
    "unix:" + "x" * 108,
    "unix:a\0b",
    "exec:",
    "exec:  ",
    "fd:",
    "fd:-1",
    "fd:x",
    "fd:\u00b2",
    "fd:2147483648",
    "file:",
    "file:,offset=1",
    "file:a,b",
    "file:a,offset",
    "file:a,offset=",
    "file:a,offset=-1",
    "file:a,offset=1,offset=2",
    "file:a,,,b",
    "http://host/",
    "/dev/null",
    "--",
]


@pytest.mark.parametrize(("text", "address"), GOOD)
def test_parses(text: str, address: uri.Address) -> None:
    assert uri.parse_uri(text) == address


@pytest.mark.parametrize(("text", "address"), GOOD)
def test_prints_what_it_parses(text: str, address: uri.Address) -> None:
    assert uri.parse_uri(str(address)) == address


@pytest.mark.parametrize("text", BAD)
def test_refuses(text: str) -> None:
    with pytest.raises(errors.ParameterError):
        uri.parse_uri(text)


@pytest.mark.parametrize("text", ["", "ftp:x", "tcp:host", "unix:", "fd:x", "file:"])
def test_a_refusal_names_the_forms(text: str) -> None:
    with pytest.raises(errors.ParameterError) as caught:
        uri.parse_uri(text)
    for form in ("tcp:HOST:PORT", "unix:PATH", "exec:COMMAND", "fd:N", "file:PATH[,offset=N]"):
        assert form in str(caught.value)


def test_tells_how_to_write_ipv6() -> None:
    with pytest.raises(errors.ParameterError, match="brackets"):
        uri.parse_uri("tcp:fe80::1:4444")


def test_a_socket_path_may_fill_the_address_exactly() -> None:
    path = "x" * 107
    assert uri.parse_uri(f"unix:{path}") == uri.UnixAddress(path)
    with pytest.raises(errors.ParameterError, match="107"):
        uri.parse_uri("unix:" + "ä" * 54)


def test_addresses_are_frozen() -> None:
    with pytest.raises(AttributeError):
        uri.FileAddress("x").offset = 1  # type: ignore[misc]
