# SPDX-License-Identifier: GPL-2.0-or-later
"""The limits of a throttle under QEMU's two sets of names: those of throttle groups, and those of a guest's disk."""

from __future__ import annotations

from typing import Any

GUEST_LIMITS = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
GUEST_EXTRAS = (*(f"{name}{suffix}" for name in GUEST_LIMITS for suffix in ("_max", "_max_length")), "iops_size")
GUEST_GROUP = "group"


def _group_name(guest: str) -> str:
    """Return the name that a limit has in a throttle group: ``bps-write-max-length`` for ``bps_wr_max_length``."""
    unit, *rest = guest.split("_")
    words = {"rd": "read", "wr": "write"}
    which = [words[rest.pop(0)]] if rest and rest[0] in words else ["total"] if rest != ["size"] else []
    return "-".join([unit, *which, *rest])


GROUP_NAMES = {guest: _group_name(guest) for guest in (*GUEST_LIMITS, *GUEST_EXTRAS)}


def as_group_limits(limits: dict[str, Any]) -> dict[str, Any]:
    """Return limits, of a guest's disk or of a group, in the words of a group."""
    return {GROUP_NAMES.get(name, name): value for name, value in limits.items() if name != GUEST_GROUP}


def as_guest_limits(limits: dict[str, Any]) -> dict[str, Any]:
    """Return the limits of a group in the words of ``block_set_io_throttle``."""
    return {guest: limits[name] for guest, name in GROUP_NAMES.items() if name in limits}


def guest_limits(inserted: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``block_set_io_throttle`` that describe the limits of a ``query-block`` entry."""
    limits = {name: inserted.get(name, 0) for name in GUEST_LIMITS}
    limits |= {name: inserted[name] for name in GUEST_EXTRAS if name in inserted}
    if GUEST_GROUP in inserted:
        limits[GUEST_GROUP] = inserted[GUEST_GROUP]
    return limits


def lower_write_limit(limits: dict[str, Any], limit: int, key: str) -> dict[str, Any]:
    """Return `limits` with writes at most `limit` bytes per second; `key` is bps_wr or bps-write.

    QEMU takes either one common limit for reads and writes, or one for each; so a common limit becomes one for each. A
    burst allowance is removed, because it would let the writer exceed the new limit.
    """
    common = {"bps_wr": "bps", "bps-write": "bps-total"}[key]
    reads = {"bps_wr": "bps_rd", "bps-write": "bps-read"}[key]
    sep = key[3]
    lowered = dict(limits)
    total, own = lowered.get(common, 0), lowered.get(key, 0)
    if total:
        for suffix in ("", f"{sep}max", f"{sep}max{sep}length"):
            if f"{common}{suffix}" in lowered:
                lowered[f"{reads}{suffix}"] = lowered[f"{common}{suffix}"]
                lowered[f"{common}{suffix}"] = 1 if suffix.endswith("length") else 0
    lowered[key] = min(value for value in (limit, own, total) if value)
    if f"{key}{sep}max" in lowered:
        lowered[f"{key}{sep}max"] = 0
    if f"{key}{sep}max{sep}length" in lowered:
        lowered[f"{key}{sep}max{sep}length"] = 1
    return lowered


def is_limited(limits: dict[str, Any]) -> bool:
    """Return whether the limits of a group limit anything."""
    return any(value for name, value in limits.items() if not name.endswith(("-length", "-size")))


def unlimited(limits: dict[str, Any]) -> dict[str, Any]:
    """Return the limits of a group with nothing limited."""
    return {name: int(name.endswith("-length")) for name in limits}
