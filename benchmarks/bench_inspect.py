# SPDX-License-Identifier: GPL-2.0-or-later
"""``blkmig inspect`` on a large stream in the page cache: at the speed at which it can be read, in constant memory."""

import subprocess
import sys

from harness import images

import blkmig

LIMIT = 60 * images.MiB
PEAK = """
import sys
from blkmig import cli
assert cli.main(["inspect", sys.argv[1]]) in (0, 3)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
"""


def test_inspect(ratio, arena):
    """A stream of 10 GiB against ``cat`` of the same file."""
    size = 64 * images.MiB if arena.quick else 10 * images.GiB
    images.require_space(arena.folder, size)
    stream = arena.folder / "stream"
    blkmig.send([arena.random_image(64 * images.MiB if arena.quick else 2 * images.GiB)], f"file:{stream}")
    repeat(stream, size)
    # The blocks that came are not those that the stream says of itself: 3, once all of it was read.
    inspect = ["sh", "-c", f"'{sys.executable}' -m blkmig inspect '{stream}' || test $? = 3"]
    try:
        sides = {"blkmig inspect": inspect, "cat": ["sh", "-c", f"cat '{stream}' > /dev/null"]}
        ratio(sides, group="inspect a stream of 10 GiB", min_rounds=3, max_rounds=5, max_time=60)
        done = subprocess.run([sys.executable, "-c", PEAK, str(stream)], check=True, capture_output=True, text=True)
        peak = int(done.stderr) * 1024
        assert peak <= LIMIT, f"peak RSS {peak / images.MiB:.0f} MiB"
    finally:
        stream.unlink()


def repeat(stream, size):
    """Make the stream `size` bytes long: its parts come again and again, as in dirty rounds.

    But for the first two, which say how large the disk is; nothing else is in them.
    """
    data, part, end_part = stream.read_bytes(), b"\x02\0\0\0\x01", b"\x03\0\0\0\x01"
    start, end = 0, data.rindex(end_part)
    for _ in range(3):
        start = data.index(part, start + 1)
    with stream.open("wb") as file, memoryview(data) as view:
        file.write(view[:start])
        while file.tell() < size:
            file.write(view[start:end])
        file.write(view[end:])
