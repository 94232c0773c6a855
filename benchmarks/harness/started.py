# SPDX-License-Identifier: GPL-2.0-or-later
"""One end of a migration in a process that is up already: started.py send|receive CONTROL_FD DISK URI.

It imports, writes "ready", waits for "go", migrates through the Python API, and writes the CPU seconds that this took.
So a comparison with servers that run already does not count an interpreter's start.
"""

import os
import resource
import sys

import blkmig


def main() -> None:
    """Take part in the protocol above."""
    verb, control, disk, uri = sys.argv[1:]
    fd = int(control)
    os.write(fd, b"ready\n")
    if os.read(fd, 3) != b"go\n":
        return
    before = cpu_seconds()
    if verb == "send":
        with blkmig.FileBackend(disk, name="drive0", writable=False) as source:
            blkmig.send([source], uri)
    else:
        blkmig.receive(uri, {"drive0": disk})
    os.write(fd, f"{cpu_seconds() - before}\n".encode())


def cpu_seconds() -> float:
    """Return the CPU time of this process; os.times() counts in hundredths."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
