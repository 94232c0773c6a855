# SPDX-License-Identifier: GPL-2.0-or-later
"""Either end is cancelled, or a disk of it fails, at any call: both end soon, say what is so, and leave nothing behind.

Runs for a few seconds, with ``--long`` for ten minutes and with seeds of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import stop_runs
import tls
import tls_links

import blkmig

SECONDS, LONG_SECONDS = 6.0, 600.0


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the two ends are told."""

    uri: str = "unix:{0}/s"
    send: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    receive: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_compared: bool = False
    """The target begins with an old copy of each disk."""


PROVEN: dict[str, Any] = {"send": {"digests": True}, "receive": {"verify": True}}
KINDS = {
    "plain": Kind(),
    "tcp": Kind("tcp:127.0.0.1:0"),
    "several connections": Kind(send={"connections": 3}),
    "a token": Kind("tls:127.0.0.1:0"),
    "several with a token": Kind("tls:127.0.0.1:0", send={"connections": 3}),
    "certificates": Kind("tls:127.0.0.1:0", receive={"tls": True}),
    "old copies": Kind(is_compared=True),
    "in place": Kind(is_compared=True, receive={"in_place": True}),
    "proven": Kind(**PROVEN),
    "several, proven": Kind(send={"digests": True, "connections": 2}, receive={"verify": True}),
    "no session": Kind(send={"reconnect": 0, "connections": 2}),
    "compressed": Kind(send={"compress": "zstd"}),
    "the first edition": Kind(send={"format": "block"}),
    "the first edition, verified": Kind(send={"format": "block", "digests": True}, receive={"verify": True}),
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> blkmig.TlsParameters:
    """Return what both ends trust."""
    return tls_links.trusting(tls.make_certificates(tmp_path_factory.mktemp("certificates") / "pki", host="localhost"))


def test_stops_at_any_call(tmp_path: Path, certificates: blkmig.TlsParameters, is_long: bool) -> None:
    stop_runs.play(
        tmp_path,
        lambda folder, seed: Run(folder, seed, certificates),
        seconds=LONG_SECONDS if is_long else SECONDS,
        first=stop_runs.first_seed(is_long=is_long),
    )


class Run(stop_runs.Run):
    """One migration of a kind."""

    def __init__(self, folder: Path, seed: int, certificates: blkmig.TlsParameters) -> None:
        name = list(KINDS)[seed % len(KINDS)]
        super().__init__(folder, seed, name)
        self._kind = KINDS[name]
        self._certificates = certificates
        self.is_in_place = "in_place" in self._kind.receive

    def open(self, stack: contextlib.ExitStack) -> None:
        """Make disks in files."""
        self.make_sources(stack)
        receive, olds = dict(self._kind.receive), {}
        for name, content in self.contents.items() if self._kind.is_compared and not self.targets else ():
            where = "into" if "in_place" in receive else "from"
            olds[name] = self.folder / where / f"{name}{'' if where == 'into' else '.old'}.raw"
            olds[name].write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
        if olds and "in_place" not in receive:
            receive["delta"] = {name: str(path) for name, path in olds.items()}
        if "tls" in receive:
            receive["tls"] = self._certificates
        targets: Mapping[str, Any] = self.targets or {name: self.target(name) for name in self.contents}
        self.incoming = stack.enter_context(
            blkmig.IncomingMigration(
                self._kind.uri.format(self.folder), targets, blkmig.IncomingParameters(accept_timeout=60, **receive)
            )
        )
        uri, send = tls_links.named(self.incoming.uri), dict(self._kind.send)
        if uri.startswith("tls:"):
            send["tls"] = receive.get("tls") or blkmig.TlsParameters(token=self.incoming.token)
        self.migration = blkmig.outgoing(
            self.sources, uri, blkmig.MigrationParameters(writers_after="refuse" if self.moves else "release", **send)
        )
