# SPDX-License-Identifier: GPL-2.0-or-later
"""One end of a migration in a process that is up already: started.py send|receive CONTROL_FD DISK URI.

It imports, writes "ready", waits for "go", migrates through the Python API, and writes the CPU seconds that this took.
So a comparison with servers that run already does not count an interpreter's start.
"""

import os
import sys

import blkmig


def main() -> None:
    """Take part in the protocol above."""
    verb, control, disk, uri = sys.argv[1:]
    fd = int(control)
    os.write(fd, b"ready\n")
    if os.read(fd, 3) != b"go\n":
        return
    before = os.times()
    if verb == "send":
        with blkmig.FileBackend(disk, name="drive0", writable=False) as source:
            blkmig.send([source], uri)
    else:
        blkmig.receive(uri, {"drive0": disk})
    after = os.times()
    os.write(fd, f"{after.user + after.system - before.user - before.system}\n".encode())


if __name__ == "__main__":
    main()
