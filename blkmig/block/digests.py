# SPDX-License-Identifier: GPL-2.0-or-later
"""Digests of blocks, of disks, and of all disks of a stream.

A disk has its digest in one of two forms. The flat one is the hash of all digests of its blocks, one after the other:
every blkmig reads it, and after a change all of it is hashed again, 16 MiB for each TiB. The tree is for a move, which
ends with the writers held, where nothing may grow with the disk::

    root                                        a disk of 1 TiB has 3 levels
    ├─ node  ... of 256 nodes
    │   ├─ node  ... of the digests of 256 blocks
    │   │   ├─ digest of a block of 1 MiB

A block that is sent makes the nodes above it stale, and these are hashed again when a section ends. So what is hashed
in the pause grows with what is sent in the pause, and not with the disk.
"""

from __future__ import annotations

from collections.abc import Iterable

DIGEST_SIZE = 16
NODE_SIZE = 32
FANOUT = 256

DIGEST_ALGORITHM = "blake2b-256 of the blake2b-128 of each block"
STREAM_DIGEST_ALGORITHM = "blake2b-256 of lines: the number of disks; size, digest and name of each, as UTF-8 in hex"
TREE_ALGORITHM = "tree of 256: nodes are blake2b-256 with the level as its person, leaves the blake2b-128 of each block"

ZERO_DIGEST = bytes.fromhex("94fbbab57175d86b0850cd927f454f98")
"""What `digest_of` says of a block of zeros."""


def digest_of(payload: memoryview) -> bytes:
    """Return the digest of one block: BLAKE2b of its whole MiB, zeros behind the end of a smaller disk included."""
    import hashlib  # where it is used: importing it takes 3 ms, and a migration without digests needs none

    return hashlib.blake2b(payload, digest_size=DIGEST_SIZE).digest()


def combine_digests(digests: bytes | bytearray) -> str:
    """Return the flat digest of a disk from those of its blocks; all zeros stands for a block that was not sent."""
    import hashlib

    return hashlib.blake2b(digests, digest_size=2 * DIGEST_SIZE).hexdigest()


def combine_disks(disks: Iterable[tuple[str, int, str]]) -> str:
    """Return the digest of all disks of a stream, each given as name, exact size in bytes, and digest, in any order."""
    import hashlib

    lines = sorted(f"{size} {digest} {name.encode('utf-8', 'surrogateescape').hex()}" for name, size, digest in disks)
    return hashlib.blake2b("\n".join([str(len(lines)), *lines]).encode(), digest_size=2 * DIGEST_SIZE).hexdigest()


def tree_of(digests: bytes | bytearray) -> str:
    """Return the root of the tree over the digests of a disk's blocks."""
    leaves = bytearray(len(digests))
    tree = DigestTree(leaves)
    leaves[:] = digests
    tree.changed(0, len(digests) // DIGEST_SIZE)
    return tree.root()


class DigestTree:
    """The tree over `leaves`, the digests of a disk's blocks, which somebody else writes and then calls `changed`."""

    def __init__(self, leaves: bytearray) -> None:
        """Begin with `leaves` that are all zeros."""
        self._levels = [leaves]
        self._stale: set[int] = set()
        """Nodes of the first level of which a leaf has changed."""

        count = len(leaves) // DIGEST_SIZE
        while count > 1 or len(self._levels) == 1:
            count = max(1, -(-count // FANOUT))
            self._levels.append(bytearray(count * NODE_SIZE))
        self._hash_all_zeros()

    def changed(self, block: int, count: int = 1) -> None:
        """Take note that the leaves of so many blocks from `block` on are others now."""
        if count:
            self._stale.update(range(block // FANOUT, (block + count - 1) // FANOUT + 1))

    def settle(self) -> None:
        """Hash what is stale: for each leaf that has changed, a node of each level."""
        stale, self._stale = self._stale, set()
        for level in range(1, len(self._levels)):
            for node in stale:
                self._hash(level, node)
            stale = {node // FANOUT for node in stale}

    def root(self) -> str:
        """Return the digest of all leaves, as text."""
        self.settle()
        return self._levels[-1].hex()

    def _hash(self, level: int, node: int) -> None:
        self._levels[level][node * NODE_SIZE : (node + 1) * NODE_SIZE] = self._node(level, node)

    def _node(self, level: int, node: int) -> bytes:
        import hashlib

        size = FANOUT * (DIGEST_SIZE if level == 1 else NODE_SIZE)
        below = memoryview(self._levels[level - 1])[node * size : (node + 1) * size]
        return hashlib.blake2b(below, digest_size=NODE_SIZE, person=b"blkmig level %d" % level).digest()

    def _hash_all_zeros(self) -> None:
        """Hash all nodes; those of a level are alike then, but for the last one, which may have less below it."""
        for level in range(1, len(self._levels)):
            nodes = self._levels[level]
            last = len(nodes) // NODE_SIZE - 1
            nodes[:-NODE_SIZE] = (self._node(level, 0) if last else b"") * last
            self._hash(level, last)
