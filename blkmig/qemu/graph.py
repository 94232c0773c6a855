# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's block nodes at one moment: which node stands on which, and who may write.

::

    device (virtio-blk, ...)   export "e0"            block backends: the users of a node; an export's has no name
              └──────┬─────────────┘
              throttle filter "t0"                    ancestors of "fmt0": fmt0, t0
                     │
              format node "fmt0"   ◄── bitmap, and the export that blkmig reads from
                     │ file
              protocol node "file0"

The marks in a bitmap of "fmt0" are complete as long as all writes come through "fmt0". A snapshot puts a new node
above it, or moves the users of "t0" to a new node. Both change the ancestors, or the node that an export stands on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import qmp

Json = Mapping[str, Any]

PASS_THROUGH = frozenset({"throttle"})
"""Filters that change neither contents nor offsets. Bitmaps are put below them, so that blkmig's reads are not
slowed."""


class BlockGraph:
    """The nodes by name, their parents, and the exports. Everything is read once; nothing here asks QEMU again.

    `edges` is ``x-debug-query-block-graph``, None where QEMU has no such command: then `ancestors` knows of nothing
    above a node.
    """

    __slots__ = ("_parents", "_writers", "exports", "knows_parents", "nodes")

    def __init__(self, nodes: Sequence[Json], exports: Sequence[Json], edges: Json | None) -> None:
        self.nodes: dict[str, Json] = {node["node-name"]: node for node in nodes if node.get("node-name")}
        self.exports: dict[str, Json] = {export["id"]: export for export in exports}
        self.knows_parents = edges is not None
        self._parents: dict[str, set[str]] = {}
        self._writers: dict[str, int] = {}
        self._read_edges(edges or {"nodes": [], "edges": []})

    @classmethod
    def ask(
        cls, connection: qmp.QmpConnection, commands: frozenset[str], *, exports: bool = True
    ) -> Callable[..., BlockGraph]:
        """Ask QEMU; three commands, about 1 ms. Return a function that waits for the answers and returns the graph.

        The function's argument is how many seconds it may wait for each answer. Without `exports` asking takes a third
        less, but exports are asked about anyway if nothing else would tell of snapshots.
        """
        knows = "x-debug-query-block-graph" in commands
        nodes = connection.start("query-named-block-nodes", {"flat": True})
        exported = connection.start("query-block-exports") if exports or not knows else None
        edges = connection.start("x-debug-query-block-graph") if knows else None
        return lambda wait=None: cls(
            nodes.result(wait), exported.result(wait) if exported else [], edges.result(wait) if edges else None
        )

    def _read_edges(self, edges: Json) -> None:
        users = {node["id"]: node for node in edges["nodes"]}
        for edge in edges["edges"]:
            parent, child = users[edge["parent"]], users[edge["child"]]["name"]
            if parent["type"] == "block-driver":
                self._parents.setdefault(child, set()).add(parent["name"])
            elif parent["type"] == "block-backend" and not parent["name"] and "write" in edge["perm"]:
                self._writers[child] = self._writers.get(child, 0) + 1

    def ancestors(self, node: str) -> frozenset[str]:
        """Return `node` and every node above it."""
        found, waiting = {node}, [node]
        while waiting:
            new = self._parents.get(waiting.pop(), set()) - found
            found |= new
            waiting += new
        return frozenset(found)

    def tops(self) -> list[str]:
        """Return the nodes that no other node stands on; if that is not known, the exported nodes.

        The oldest node comes first. QEMU lists the newest one first.
        """
        if not self.knows_parents:
            return list(dict.fromkeys(export["node-name"] for export in reversed(self.exports.values())))
        return [name for name in reversed(self.nodes) if not self._parents.get(name)]

    def below_filters(self, node: str) -> str:
        """Return the node that `node` is a pass-through filter of, or `node` itself."""
        while self.nodes[node]["drv"] in PASS_THROUGH and self.knows_parents:
            node = self.children(node)[0]
        return node

    def children(self, node: str) -> list[str]:
        """Return the nodes that `node` stands on; none if QEMU does not say."""
        return [name for name, parents in self._parents.items() if node in parents]

    def image_names(self, node: str) -> list[str]:
        """Return the names of the files and devices that `node` stands on; if that is not known, of all nodes."""
        return [
            str(entry["file"])
            for name, entry in self.nodes.items()
            if entry["drv"] in ("file", "host_device") and (not self.knows_parents or node in self.ancestors(name))
        ]

    def exports_of(self, node: str, *, but: str) -> list[str]:
        """Return the ids of the exports of `node` and of the nodes above it, without those that start with `but`."""
        above = self.ancestors(node)
        return [
            name
            for name, export in self.exports.items()
            if export["node-name"] in above and not name.startswith(but)
        ]

    def writing_exports(self, node: str) -> int | None:
        """Return how many exports of `node` and of the nodes above it may write; None if QEMU does not say."""
        if not self.knows_parents:
            return None
        return sum(self._writers.get(name, 0) for name in self.ancestors(node))

    def bitmap(self, node: str, name: str) -> Json | None:
        """Return what QEMU says about a dirty bitmap, None if there is none of that name."""
        bitmaps = self.nodes.get(node, {}).get("dirty-bitmaps", ())
        return next((bitmap for bitmap in bitmaps if bitmap.get("name") == name), None)

    def throttle_group(self, node: str) -> str | None:
        """Return the throttle group of the first throttle filter at or above `node`, None if there is none."""
        for name in sorted(self.ancestors(node)):
            if self.nodes.get(name, {}).get("drv") == "throttle":
                return throttle_group_of(self.nodes[name])
        return None


def throttle_group_of(node: Json) -> str | None:
    """Return the group that a throttle node belongs to; QEMU tells it in the node's file name only."""
    text = node["file"]
    if not text.startswith("json:"):
        return None
    group = json.loads(text.removeprefix("json:")).get("throttle-group")
    return group if isinstance(group, str) else None
