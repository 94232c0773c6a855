# SPDX-License-Identifier: GPL-2.0-or-later
"""Networks that a receiver takes connections from: ``10.0.0.0/8``, ``2001:db8::/32``, or one address.

An IPv4 address may come as an IPv6 one, ``::ffff:10.0.0.1``, where a socket hears both; it is the same address here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from . import errors

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def parse(texts: Iterable[str]) -> tuple[Network, ...]:
    """Return the networks that `texts` spell. Raises :class:`~blkmig.errors.ParameterError`."""
    return tuple(map(_parse_one, texts))


def _parse_one(text: object) -> Network:
    if not isinstance(text, str | ipaddress.IPv4Network | ipaddress.IPv6Network):  # ipaddress takes numbers, too
        raise errors.WrongType(f"a network must be a text, as 10.0.0.0/8, not {text!r}")
    try:
        found = ipaddress.ip_network(text)
    except (TypeError, ValueError) as error:
        why = "behind its prefix an address has zeros only" if "host bits" in str(error) else str(error)
        raise errors.ParameterError(
            f"{text!r} is no network: {why}; say one as 10.0.0.0/8 or 2001:db8::/32, or one address"
        ) from error
    if isinstance(found, ipaddress.IPv6Network) and found.subnet_of(MAPPED):
        mapped = found.network_address.ipv4_mapped
        return ipaddress.IPv4Network((int(mapped or 0), found.prefixlen - MAPPED.prefixlen))
    return found


def place_of(host: str) -> str:
    """Return the place of the address `host`: its /64 network, where one host may have as many addresses as it likes.

    For an IPv4 address, and a link-local one, whose network is that of all hosts on the link, it is the address itself.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address) or address.is_link_local:
        return host
    return str(ipaddress.IPv6Network((address.packed[:8] + bytes(8), 64)))


def admits(networks: Sequence[Network], host: str) -> bool:
    """Return whether somebody at the address `host` may connect: anybody may without networks.

    Who has no address, or one that nobody can read, may not.
    """
    if not networks:
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in networks if network.version == address.version)
