# SPDX-License-Identifier: GPL-2.0-or-later
"""Several sources, opened for one migration: the disks of one QEMU share its monitor, which takes one client."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable, Iterable
from typing import Any

from ..disk import backend
from . import opening


def open_sources(
    named: Iterable[tuple[str | None, str | os.PathLike[str]]],
    *,
    connect_timeout: float = opening.CONNECT_SECONDS,
    **options: Any,
) -> list[list[backend.BlockBackend]]:
    """Open what each (name, text) names, as :func:`.opening.open_disks` does; return the disks of each pair.

    If one of them fails, none stays open. Addresses of one monitor share a session, so each of its disks can have a
    name of its own. `options` are those of `open_disks`. Whoever opens the disks closes them.
    """
    texts = list(named)
    found: dict[int, list[backend.BlockBackend]] = {}
    with contextlib.ExitStack() as stack:
        for numbers in _by_monitor(texts):
            if len(numbers) > 1:
                shares = _open_together([texts[number] for number in numbers], connect_timeout, options)
            else:
                name, text = texts[numbers[0]]
                shares = [opening.open_disks(text, name=name, connect_timeout=connect_timeout, **options)]
            for number, disks in zip(numbers, shares, strict=True):
                found[number] = disks
                for disk in disks:
                    stack.callback(disk.close)
        stack.pop_all()
    return [found[number] for number in range(len(texts))]


def _by_monitor(texts: list[tuple[str | None, str | os.PathLike[str]]]) -> list[list[int]]:
    """Return groups of positions in `texts`: those of one group are opened together."""
    groups: dict[Hashable, list[int]] = {}
    for number, (_, text) in enumerate(texts):
        key = _monitor_of(text) if opening.is_qemu(text) else None
        groups.setdefault(number if key is None else key, []).append(number)
    return list(groups.values())


def _monitor_of(text: str | os.PathLike[str]) -> Hashable:
    """Return what identifies the monitor of an address, because different paths may lead to one socket."""
    from .. import qemu

    path = qemu.address.parse(os.fspath(text)).path
    with contextlib.suppress(OSError, ValueError):
        about = os.stat(path)  # noqa: PTH116 - the path is the user's word
        return about.st_dev, about.st_ino
    return os.path.realpath(path)


def _open_together(
    texts: list[tuple[str | None, str | os.PathLike[str]]], connect_timeout: float, options: dict[str, Any]
) -> list[list[backend.BlockBackend]]:
    from .. import qemu

    of_files = {"writable", "direct", "idle_timeout"}
    return [
        list(disks)
        for disks in qemu.open_together(
            [(name, os.fspath(text)) for name, text in texts],
            connect_timeout=min(connect_timeout, qemu.GREETING_SECONDS),
            **{key: value for key, value in options.items() if key not in of_files},
        )
    ]
