# SPDX-License-Identifier: GPL-2.0-or-later
"""What the first send and the first receive of a process load: only what a plain copy of files needs.

Each module takes about 0.15 ms, each generated class 0.4 ms, and a migration of a small disk is over in less than all
of them together. See docs/decisions/loaded-when-used.md.
"""

from __future__ import annotations

import ast
import functools
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "blkmig"

RECEIVE = """
import json, sys, blkmig
before = {*sys.modules}
with blkmig.incoming("tcp:127.0.0.1:0", {"vda": sys.argv[1]}) as migration:
    listening = {*sys.modules}
    print(migration.uri, flush=True)
    migration.run()
print(json.dumps([sorted(listening - before), sorted({*sys.modules} - listening)]))
"""

SEND = """
import json, sys, blkmig
before = {*sys.modules}
with blkmig.FileBackend(sys.argv[1], name="vda") as disk:
    blkmig.send([disk], sys.argv[2])
print(json.dumps(sorted({*sys.modules} - before)))
"""

ELSEWHERE = {
    "blkmig.nbd": "exports, and images of other formats",
    "blkmig.qemu": "disks of a running QEMU",
    "blkmig.cli": "the command",
    "blkmig.events": "somebody who listens",
    "blkmig.credentials": "TLS",
    "blkmig.channel.tls": "TLS",
    "blkmig.channel.secured": "TLS",
    "blkmig.children": "commands",
    "blkmig.block.answering": "old copies",
    "blkmig.block.compare": "old copies",
    "blkmig.files.copying": "old copies",
    "blkmig.files.inplace": "old copies",
    "blkmig.block.proofs": "proofs",
    "blkmig.block.proving": "proofs",
    "blkmig.migration.basecheck": "a shared base",
    "blkmig.migration.autoconverge": "writers that are slowed down",
    "blkmig.migration.forecasting": "a forecast",
    "blkmig.migration.inspection": "what is in a stream",
    "hashlib": "digests and long names",
    "ctypes": "what Python has no call for",
    "subprocess": "commands",
    "logging": "what there is to say",
    "tempfile": "tables of hashes",
    "ssl": "TLS",
    "uuid": "a VM's",
    "numpy": "dirty maps of others",
}
"""What is loaded for something else, with its reason. A room that is left out is left out with all of its files."""

OF_THE_OTHER_END = {
    "send": {"block.load", "block.target", "channel.listener", "migration.incomingmigration", "migration.targets"},
    "receive": {"block.save", "block.bulk", "channel.open", "migration.outgoingmigration", "migration.figures"},
}

MOST = {"send": 165, "receive": 165}
"""Modules of the package, about ten more than there are now."""


@functools.cache
def loaded(side: str) -> frozenset[str]:
    """Return what one end has loaded when a copy of one file over TCP is done."""
    sent, listening, running = ends()
    return {"send": sent, "receive": listening | running}[side]


@functools.cache
def ends() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Copy a file from a process to another one, and return what was loaded: by the sender, by the receiver before it
    waited, and by the receiver since then."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "vda.raw")
        source.write_bytes(b"x" * (3 << 20))
        with subprocess.Popen(
            [sys.executable, "-c", RECEIVE, str(Path(folder, "copy.raw"))], stdout=subprocess.PIPE, text=True
        ) as receiver:
            assert receiver.stdout is not None
            uri = receiver.stdout.readline().strip()
            sent = subprocess.run(
                [sys.executable, "-c", SEND, str(source), uri], stdout=subprocess.PIPE, check=True, timeout=60
            )
            received, _ = receiver.communicate(timeout=60)
    return frozenset(json.loads(sent.stdout)), *map(frozenset, json.loads(received))


@pytest.mark.parametrize("side", ["send", "receive"])
@pytest.mark.parametrize("module", ELSEWHERE)
def test_a_plain_copy_does_without(side: str, module: str) -> None:
    found = sorted(name for name in loaded(side) if name == module or name.startswith(f"{module}."))
    assert not found, f"{found} is for {ELSEWHERE[module]}: load it where that begins"


@pytest.mark.parametrize("side", ["send", "receive"])
def test_an_end_loads_nothing_of_the_other_one(side: str) -> None:
    assert sorted(OF_THE_OTHER_END[side] & {name.removeprefix("blkmig.") for name in loaded(side)}) == []


@pytest.mark.parametrize("side", ["send", "receive"])
def test_few_modules_are_loaded(side: str) -> None:
    ours = [name for name in loaded(side) if name.startswith("blkmig.")]
    assert MOST[side] * 3 // 4 < len(ours) <= MOST[side], ours


def test_a_receiver_has_loaded_what_it_needs_before_its_source_comes() -> None:
    """Otherwise the source waits for it."""
    assert ends()[2] == frozenset()


ROOMS = sorted(
    path.relative_to(PACKAGE)
    for path in PACKAGE.rglob("*.py")
    if "later.opener(" in path.read_text() and path.stem != "later"
)


@pytest.mark.parametrize("path", ROOMS, ids=str)
def test_a_room_opens_what_type_checkers_see(path: Path) -> None:
    """Each name that is only declared can be had, and no name is that of a file, which would take its place."""
    tree = ast.parse((PACKAGE / path).read_text())
    declared = {
        alias.asname or alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    parts = path.with_suffix("").parts
    module = importlib.import_module(".".join(("blkmig", *(parts[:-1] if parts[-1] == "__init__" else parts))))
    package = module.__name__ if parts[-1] == "__init__" else "blkmig"
    said = {
        name: keyword.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "later.opener"
        for keyword in node.keywords
        for name in ast.literal_eval(keyword.value).split()
    }
    assert said == declared
    for name, file in declared.items():
        assert getattr(module, name) is getattr(importlib.import_module(f"{package}.{file}"), name)
    folder = PACKAGE if package == "blkmig" else (PACKAGE / path).parent
    assert not [name for name in declared if (folder / f"{name}.py").exists() or (folder / name).is_dir()]
