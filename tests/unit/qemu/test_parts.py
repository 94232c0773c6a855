# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a QEMU disk that need no QEMU: addresses, the block graph, export names, limits, dirty areas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from blkmig import errors
from blkmig.qemu import address, exportnames, graph, leftovers, server, tracking, vocabulary

# -- addresses -------------------------------------------------------------------------------------------------------


def test_an_address_with_everything() -> None:
    text = "qemu:/run/a,,b.sock,device=vda,device=vdb,node=x,nbd=unix:/run/n bd,export=w,read=nbd"
    assert address.parse(text) == address.QemuAddress(
        path="/run/a,b.sock",
        devices=("vda", "vdb"),
        nodes=("x",),
        nbd="nbd+unix:///?socket=/run/n%20bd",
        exports=("w",),
        read="nbd",
    )
    assert address.parse("qemu:q").nbd is None
    assert address.parse("qemu:q").read == address.parse("qemu:q,read=auto").read == "auto"


@pytest.mark.parametrize(
    "text", ["", "/run/qmp", "qemu:", "qemu:,device=a", "qemu:q,foo=1", "qemu:q,device", "qemu:q,device=",
             "qemu:q,nbd=/run/nbd", "qemu:q,nbd=unix:/a,nbd=unix:/b", "qemu:q,read=file", "qemu:q,nbd=nbd://h:ten"]
)  # fmt: skip
def test_addresses_that_make_no_sense(text: str) -> None:
    with pytest.raises(errors.ParameterError):
        address.parse(text)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("nbd+unix:///?socket=/run/n%20bd", {"type": "unix", "data": {"path": "/run/n bd"}}),
        ("nbd://host", {"type": "inet", "data": {"host": "host", "port": "10809"}}),
        ("nbd://[::1]:99/x", {"type": "inet", "data": {"host": "::1", "port": "99"}}),
        ("nbds://host", None),
        ("nbd+unix:///", None),
    ],
)
def test_where_a_server_can_be_started(uri: str, expected: dict[str, Any] | None) -> None:
    assert address.socket_address(uri) == expected


def test_a_socket_beside_the_monitor_has_a_path_that_fits() -> None:
    assert server.default_socket("/run/vm.qmp", "blkmig-12-") == "/run/vm.qmp.blkmig-12.nbd"
    with pytest.raises(errors.ParameterError, match="nbd=unix:PATH"):
        server.default_socket("/run/" + "x" * 100, "blkmig-12345678-")


def test_what_belongs_to_one_run() -> None:
    assert leftovers.run_of("blkmig-12ab-d0-b1") == leftovers.run_of("blkmig-12ab-d0") == "blkmig-12ab"


# -- the graph -------------------------------------------------------------------------------------------------------


def make_graph(
    edges: list[tuple[str, str]], writers: Sequence[tuple[str, str]] = (), exports: dict[str, str] | None = None
) -> graph.BlockGraph:
    """Return a graph of (parent, child) nodes, (block backend, node) writers, export id: node; "t..." are filters."""
    names = list(dict.fromkeys(name for edge in edges for name in edge))
    nodes = [{"node-name": name, "drv": "throttle" if name.startswith("t") else "raw", "file": name} for name in names]
    ids = {name: number for number, name in enumerate(names)}
    raw: dict[str, list[dict[str, Any]]] = {
        "nodes": [{"id": number, "name": name, "type": "block-driver"} for name, number in ids.items()],
        "edges": [{"parent": ids[parent], "child": ids[child], "perm": ["write"]} for parent, child in edges],
    }
    for number, (backend, node) in enumerate(writers, 1000):
        raw["nodes"].append({"id": number, "name": backend, "type": "block-backend"})
        raw["edges"].append({"parent": number, "child": ids[node], "perm": ["write", "consistent-read"]})
    listed = [{"id": name, "node-name": node, "type": "nbd"} for name, node in (exports or {}).items()]
    return graph.BlockGraph(nodes, listed, raw)


CHAIN = [("t0", "fmt0"), ("fmt0", "file0"), ("fmt1", "file1")]


def test_ancestors_and_tops() -> None:
    facts = make_graph(CHAIN)
    assert facts.ancestors("fmt0") == {"fmt0", "t0"}
    assert facts.ancestors("file0") == {"file0", "fmt0", "t0"}
    assert facts.ancestors("t0") == {"t0"}
    assert set(facts.tops()) == {"t0", "fmt1"}
    assert facts.below_filters("t0") == "fmt0"
    assert facts.below_filters("fmt1") == "fmt1"


def test_exports_and_those_who_write() -> None:
    facts = make_graph(
        CHAIN,
        writers=[("", "t0"), ("drive0", "fmt0"), ("", "fmt1")],
        exports={"w": "t0", "reader": "fmt0", "blkmig-1-d0": "fmt0", "other": "fmt1"},
    )
    assert facts.exports_of("fmt0", but="blkmig-") == ["w", "reader"]
    assert facts.writing_exports("fmt0") == 1
    assert facts.writing_exports("fmt1") == 1
    assert graph.BlockGraph([], [], None).writing_exports("fmt0") is None


def test_a_throttle_group_is_found_in_the_file_name() -> None:
    file = 'json:{"throttle-group": "tg0", "driver": "throttle", "file": {}}'
    assert graph.throttle_group_of({"file": file}) == "tg0"
    assert graph.throttle_group_of({"file": "a.raw"}) is None


# -- export names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["disk", "backup", "blkmig-1-d0"], {"w": "disk", "r": "backup", "blkmig-1-d0": "blkmig-1-d0"}),
        (["disk", "blkmig-1-d0", "backup"], {}),
        (["disk", "backup"], {}),
        (["disk", "backup", "blkmig-1-d0", "more"], {}),
    ],
)
def test_export_names_are_matched_by_order(names: list[str], expected: dict[str, str]) -> None:
    facts = make_graph(CHAIN, exports={"blkmig-1-d0": "fmt0", "r": "fmt0", "w": "t0"})  # the latest first
    assert exportnames.match(facts, names, own="blkmig-1-") == expected


# -- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"bps": 0, "bps_wr": 0}, {"bps": 0, "bps_wr": 100}),
        ({"bps": 0, "bps_wr": 50}, {"bps": 0, "bps_wr": 50}),
        ({"bps": 0, "bps_wr": 500, "bps_wr_max": 9, "bps_wr_max_length": 4},
         {"bps": 0, "bps_wr": 100, "bps_wr_max": 0, "bps_wr_max_length": 1}),
        ({"bps": 300, "bps_rd": 0, "bps_wr": 0, "bps_max": 400, "bps_rd_max": 0},
         {"bps": 0, "bps_rd": 300, "bps_wr": 100, "bps_max": 0, "bps_rd_max": 400}),
        ({"bps": 30, "bps_rd": 0, "bps_wr": 0}, {"bps": 0, "bps_rd": 30, "bps_wr": 30}),
    ],
)  # fmt: skip
def test_a_limit_for_a_guest_keeps_what_the_user_limits(limits: dict[str, int], expected: dict[str, int]) -> None:
    assert vocabulary.lower_write_limit(limits, 100, "bps_wr") == expected


def test_a_limit_for_a_group() -> None:
    limits = {"bps-total": 300, "bps-total-max": 7, "bps-total-max-length": 3, "bps-read": 0, "bps-read-max": 0,
              "bps-read-max-length": 1, "bps-write": 0, "bps-write-max": 0, "bps-write-max-length": 1,
              "iops-total": 5}  # fmt: skip
    assert vocabulary.lower_write_limit(limits, 100, "bps-write") == {
        "bps-total": 0, "bps-total-max": 0, "bps-total-max-length": 1, "bps-read": 300, "bps-read-max": 7,
        "bps-read-max-length": 3, "bps-write": 100, "bps-write-max": 0, "bps-write-max-length": 1, "iops-total": 5,
    }  # fmt: skip


def test_the_limits_of_a_guest_are_what_query_block_says() -> None:
    inserted = {"node-name": "x", "bps": 1, "bps_rd": 2, "bps_wr": 3, "iops": 4, "iops_rd": 5, "iops_wr": 6,
                "bps_max": 7, "bps_max_length": 8, "iops_size": 9, "group": "g"}  # fmt: skip
    assert vocabulary.guest_limits(inserted) == {key: value for key, value in inserted.items() if key != "node-name"}


def test_limits_in_both_vocabularies() -> None:
    assert vocabulary.GROUP_NAMES["bps"] == "bps-total"
    assert vocabulary.GROUP_NAMES["iops_wr"] == "iops-write"
    assert vocabulary.GROUP_NAMES["bps_max"] == "bps-total-max"
    assert vocabulary.GROUP_NAMES["iops_rd_max_length"] == "iops-read-max-length"
    assert vocabulary.GROUP_NAMES["iops_size"] == "iops-size"
    guest = {name: number for number, name in enumerate(vocabulary.GROUP_NAMES)}
    assert len(set(vocabulary.GROUP_NAMES.values())) == len(guest) == 19
    assert vocabulary.as_guest_limits(vocabulary.as_group_limits(guest | {"group": "g"})) == guest


# -- lists of dirty extents ------------------------------------------------------------------------------------------


def test_dirty_areas() -> None:
    assert list(tracking.dirty_areas([(10, 0), (5, 1), (7, 0), (3, 1)])) == [(10, 5), (22, 3)]
    assert list(tracking.dirty_areas([])) == []
