# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that parses what others have written, each as a function of bytes, with seeds to begin from.

A target raises nothing but for a fault: an error of the tree is an answer. ``tests/fuzz/run.py`` runs them by the hour,
with atheris where it is installed; ``tests/fuzz/test_targets.py`` for a moment each.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import savevm_streams as streams

import blkmig
from blkmig import block, channel, errors, migration, savevm, sources, units, zstd
from blkmig.block import TableDisk, askwords, proofwords, table, zeropieces
from blkmig.channel import token
from blkmig.disk import BlockGeometry
from blkmig.files import dirtymap, folder, sessionfile
from blkmig.nbd import uri as nbd_uri
from blkmig.qemu import address
from blkmig.savevm import handover, return_path, sessions, vmdescription, words

SIZE = (1 << 20) + 1000
GUARD = b"\xa5" * 4096
DISKS = [TableDisk(b"a", 5 << 20, 4096), TableDisk(b"b", 1000, 4096)]
SHAPES = [BlockGeometry(disk.size) for disk in DISKS]
BEGINNINGS = ("", "tcp:h:1", "tcp:[::1]:0", "unix:/s", "exec:cat", "fd:3", "file:/f,offset=4K", "tls:h:1", "-")


@contextlib.contextmanager
def address_of(data: bytes) -> Iterator[str]:
    """Give the address of a descriptor from which `data` can be read."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        yield f"fd:{fd}"
    finally:
        os.close(fd)


@contextlib.contextmanager
def stream_of(data: bytes) -> Iterator[channel.InputQEMUFile]:
    """Give a stream that holds `data`."""
    with address_of(data) as uri, channel.listen(uri) as listener:
        f = listener.accept(timeout=None)
        try:
            yield f
        finally:
            f.abort()


# -- streams ---------------------------------------------------------------------------------------------------------


def load(data: bytes) -> None:
    """Receive a whole stream, whichever section it has; nothing is written outside of the target."""
    whole = bytearray(GUARD + bytes(SIZE) + GUARD)
    with blkmig.MemoryBackend(memoryview(whole)[len(GUARD) : -len(GUARD)], name="d") as target:
        with address_of(data) as uri, contextlib.suppress(errors.MigrationError):
            blkmig.receive(uri, {"d": target}, verify=bool(len(data) % 2))
    assert whole.startswith(GUARD)
    assert whole.endswith(GUARD)


def inspect(data: bytes) -> None:
    """Look into a stream."""
    with stream_of(data) as f, contextlib.suppress(errors.MigrationError):
        migration.as_json(migration.inspect(f))


def extras(data: bytes) -> None:
    """Load one section ``blkmig``, with every kind of EXTRA that somebody listens to."""

    def open_target(name: str, position: int) -> block.BlkLoadDevice:
        raise errors.UnknownDevice("no disk has a target", device=name, position=position)

    handlers = block.BlockLoadHandlers(open_target)
    handlers.on_extra = {kind: lambda body, position: None for kind in (1, 2, 8)}
    handlers.load_start("blkmig", 0)
    with stream_of(data) as f, contextlib.suppress(errors.MigrationError):
        handlers.load_state(f, 1)


def frames(data: bytes) -> None:
    """Decompress a frame; the first two bytes say how many it is of."""
    nbytes = int.from_bytes(data[:2], "big")
    with contextlib.suppress(zstd.FrameError):
        assert len(zstd.decompress(data[2:], nbytes)) == nbytes


def return_path_words(data: bytes) -> None:
    """Read messages until one makes no sense."""
    with stream_of(data) as f, contextlib.suppress(errors.MigrationError):
        while True:
            savevm.read_message(f)


# -- bodies of EXTRAs ------------------------------------------------------------------------------------------------


def zero_pieces(body: bytes) -> None:
    """Take a ZEROS of some pack: what is there lies in its payload, piece by piece."""
    coming, extents = zeropieces.Coming(), [(512, 9000 // 512 * 512), (40960, 4096), (50176, 512)]
    coming.take(body, 0)
    runs = coming.runs(extents, 0)
    assert runs is not None
    assert all(0 <= start < stop <= sum(nbytes for _, nbytes in extents) for start, stop in runs)


PARSERS: list[Callable[[bytes], object]] = [
    lambda body: sessions.parse_session(body, 0),
    lambda body: zero_pieces(body),
    lambda body: sessions.parse_resumed(body[:5].ljust(5), 0),
    lambda body: handover.parse_end(body, 0),
    lambda body: handover.parse_commit(body, 0),
    lambda body: proofwords.decode(body, SHAPES, 0),
    lambda body: proofwords.decode_proven(body, 0),
    lambda body: askwords.parse_ask(body, DISKS, 0),
    lambda body: askwords.parse_same(body, DISKS, 0),
]


def bodies(data: bytes) -> None:
    """Parse what stands in an EXTRA; the first byte says as which."""
    if data:
        with contextlib.suppress(errors.MigrationError):
            PARSERS[data[0] % len(PARSERS)](data[1:])


def description(data: bytes) -> None:
    """Parse a description, sealed by somebody who lies, too."""
    for text in (data, vmdescription.seal(data) if data.endswith(b"}") else data):
        _, found = vmdescription.parse_vmdescription(text)
        if found is not None:
            vmdescription.described_nbytes(found, has_footers=bool(len(data) % 2))
    finder = vmdescription.TailFinder(has_footers=bool(len(data) % 2))
    for start in range(0, len(data), 100):
        finder.feed(data[start : start + 100])
        finder.find_here()


# -- files -----------------------------------------------------------------------------------------------------------


def session_file(data: bytes) -> None:
    """Open a session file that holds `data`, and one whose slot is whole and holds it as text."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        place = folder.Folder(name)
        stack.callback(place.close)
        path = Path(name) / sessionfile.session_name("d")
        text = data[:4000]
        checksum = zlib.crc32(text, zlib.crc32((1).to_bytes(8, "big")))
        slot = struct.pack(">8sQII", sessionfile.MAGIC, 1, len(text), checksum) + text
        for content in (data, data.ljust(2 * sessionfile.PAGE, b"\0"), slot.ljust(2 * sessionfile.PAGE, b"\0")):
            path.write_bytes(content)
            with contextlib.suppress(errors.MigrationError, OSError):
                sessionfile.SessionFile(place, "d", device="d", create=False).close()


def dirty_map(data: bytes) -> None:
    """Open a dirty map that holds `data`, and take its marks."""
    size = int.from_bytes(data[16:24], "little") % (1 << 24)
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(errors.MigrationError):
            found = dirtymap.DirtyMap(file.name, size=size, device="d")
            with contextlib.closing(found):
                for offset, nbytes in found.take():
                    assert 0 <= offset < size
                    assert nbytes > 0


# -- what users write --------------------------------------------------------------------------------------------------


def said(data: bytes) -> str:
    return os.fsdecode(data)


def addresses(data: bytes) -> None:
    """Parse the address of a stream, and a token."""
    for parse in (channel.parse_uri, token.Token.parse):
        with contextlib.suppress(errors.MigrationError):
            parse(said(data))


def nbd_addresses(data: bytes) -> None:
    """Parse an NBD URI."""
    with contextlib.suppress(errors.MigrationError):
        nbd_uri.split(said(data))
        nbd_uri.export_of(said(data))
        nbd_uri.host_of(said(data))
        nbd_uri.check_uri(said(data), None)


def disks(data: bytes) -> None:
    """Parse what names a disk, and a size."""
    parsers: list[Callable[[str], object]] = [sources.describe, address.parse, units.parse_size]
    for parse in parsers:
        with contextlib.suppress(errors.MigrationError):
            parse(said(data))


# -- seeds -----------------------------------------------------------------------------------------------------------


def recorded(**parameters: Any) -> bytes:
    """Return the stream of a small disk with few bytes that are not zero."""
    content = bytearray(SIZE)
    content[5000:5100] = random.Random(1).randbytes(100)
    with tempfile.TemporaryDirectory() as name:
        with blkmig.MemoryBackend(content, name="d") as disk:
            blkmig.send([disk], f"file:{name}/stream", **parameters)
        return (Path(name) / "stream").read_bytes()


def zeros(**parameters: Any) -> bytes:
    """Return the stream of a disk without data: it is short."""
    with tempfile.TemporaryDirectory() as name:
        with blkmig.MemoryBackend(bytearray(SIZE), name="d") as disk:
            blkmig.send([disk], f"file:{name}/stream", **parameters)
        return (Path(name) / "stream").read_bytes()


def whole_streams() -> list[bytes]:
    kinds: list[Any] = ["block", "blkmig"]
    plain = [zeros(format=kind, digests=digests) for kind in kinds for digests in (False, True)]
    return [*plain, recorded(format="blkmig", compress="zstd")]


def each_frame() -> list[bytes]:
    contents = [bytes(600), random.Random(1).randbytes(300).hex().encode(), b"ab" * 4096]
    made = [zstd.Compressor(1, has_checksum=has_checksum) for has_checksum in (False, True)]
    return [len(data).to_bytes(2, "big") + compressor.frame(data) for data in contents for compressor in made]


def sections() -> list[bytes]:
    bodies = [block.extra(kind, bytes(range(length))) for kind in (1, 2, 8) for length in (0, 30)]
    return [b"".join([table.encode(DISKS), *bodies]) + streams.EOS, table.encode(DISKS) + streams.EOS]


def messages() -> list[bytes]:
    each = [
        (words.MIG_RP_MSG_HELLO, words.Hello(1, 2).encode()),
        (words.MIG_RP_MSG_REPLY, words.Reply((words.Refusal(1, 0, "no"),)).encode()),
        (words.MIG_RP_MSG_ALIVE, words.Alive("flushing").encode()),
        (words.MIG_RP_MSG_READY, struct.pack(">I", 1)),
        (1, bytes(4)),
    ]
    return [b"".join(return_path.encode(kind, body) for kind, body in each)]


def parts() -> list[bytes]:
    return [bytes([index]) + bytes(length) for index in range(len(PARSERS)) for length in (0, 4, 12, 44, 60)]


def descriptions() -> list[bytes]:
    one = {"page_size": 4096, "devices": [{"name": "ram", "instance_id": 0, "size": 8, "fields": []}], "blkmig": {}}
    return [json.dumps(one).encode(), b"\0\6\0\0\0\2{}", b"{}"]


def map_files() -> list[bytes]:
    return [struct.pack("<8sIIQ", b"BLKDIRTY", 1, 65536, 1 << 20).ljust(4096 + 16, b"\1")]


def texts(*each: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in each]


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "load": (load, whole_streams),
    "inspect": (inspect, whole_streams),
    "extras": (extras, sections),
    "frames": (frames, each_frame),
    "return-path": (return_path_words, messages),
    "bodies": (bodies, parts),
    "description": (description, descriptions),
    "session-file": (session_file, lambda: [b'{"role":"target","disks":[]}', b"blkmigS1" + bytes(16)]),
    "dirty-map": (dirty_map, map_files),
    "addresses": (addresses, texts(*BEGINNINGS, token.Token(bytes(32), bytes(32)).text())),
    "nbd-addresses": (nbd_addresses, texts("nbd://h:1/e", "nbds+unix:///e?socket=/s&tls-certificates=/c")),
    "disks": (disks, texts("vda.raw,base=a,,b", "vda.qcow2,format=qcow2", "qemu:s,device=a,read=nbd", "4K", "1.5G")),
}
"""Each target with what makes its seeds."""
