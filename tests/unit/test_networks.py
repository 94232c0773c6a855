# SPDX-License-Identifier: GPL-2.0-or-later
"""Networks that connections may come from."""

from __future__ import annotations

import ipaddress
import random

import pytest

from blkmig import errors, networks


@pytest.mark.parametrize(
    ("texts", "host", "admitted"),
    [
        ([], "192.0.2.1", True),
        ([], "", True),
        (["10.0.0.0/8"], "10.1.2.3", True),
        (["10.0.0.0/8"], "11.1.2.3", False),
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),
        (["::ffff:10.0.0.0/104"], "10.1.2.3", True),
        (["::ffff:10.0.0.0/104"], "11.1.2.3", False),
        (["::ffff:10.1.2.3"], "10.1.2.3", True),
        (["192.0.2.1"], "192.0.2.1", True),
        (["192.0.2.1"], "192.0.2.2", False),
        (["10.0.0.0/8", "2001:db8::/32"], "2001:db8::7", True),
        (["10.0.0.0/8", "2001:db8::/32"], "2001:db9::7", False),
        (["fe80::/10"], "fe80::1%eth0", True),
        (["::/0"], "10.1.2.3", False),  # that is every IPv6 address
        (["0.0.0.0/0"], "2001:db8::7", False),
        (["10.0.0.0/8"], "", False),
        (["10.0.0.0/8"], "no address", False),
    ],
)
def test_who_may_come(texts: list[str], host: str, admitted: bool) -> None:
    assert networks.admits(networks.parse(texts), host) is admitted


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "10.0.0.0/33", "example.org", "10.0.0.0-9", "tcp:10.0.0.0", "1"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(errors.ParameterError, match="is no network"):
        networks.parse([text])


@pytest.mark.parametrize("seed", range(50))
def test_against_the_bits(seed: int) -> None:
    """The oracle compares the first bits, one by one."""
    rng = random.Random(seed)
    prefix = rng.randrange(33)
    address = rng.getrandbits(32)
    network = address >> (32 - prefix) << (32 - prefix)
    other = address ^ (1 << rng.randrange(32))
    same = f"{address:032b}"[:prefix] == f"{other:032b}"[:prefix]
    text = f"{ipaddress.IPv4Address(network)}/{prefix}"
    for host in (str(ipaddress.IPv4Address(other)), f"::ffff:{ipaddress.IPv4Address(other)}"):
        assert networks.admits(networks.parse([text]), host) is same, f"seed {seed}"


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("2001:db8:0:1::", "2001:db8:0:1::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("fe80::1", "fe80::1"),
        ("", ""),
        ("nowhere", "nowhere"),
    ],
)
def test_the_place_of_an_address(host: str, place: str) -> None:
    assert networks.place_of(host) == place
