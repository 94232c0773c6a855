# SPDX-License-Identifier: GPL-2.0-or-later
"""What is here of what blkmig can use. Nothing is opened, changed or connected to."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator

from ..channel import hugepages
from ..nbd import present
from . import parser as parsing

SECONDS = 10.0
"""How long a program may take to say its version."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One part: whether it is here, which one, what it is for, and what to do if it is not here."""

    group: str
    name: str
    found: str
    """A version, or another word for what is here; "" if nothing is."""

    enables: str
    install: str = ""


LIBRARIES = (
    ("numpy", "numpy", "disks in memory", "pip install numpy"),
    ("qemu.qmp", "qemu.qmp", "disks of a running QEMU", "pip install 'blkmig[qemu]'"),
    ("blake3", "blake3", "--verify between two blkmigs, --delta, --in-place, --resume", "pip install 'blkmig[verify]'"),
    ("xxhash", "xxhash", "checksums of payloads between two machines", "pip install 'blkmig[checksums]'"),
    ("backports.zstd", "backports.zstd", "--compress; Python 3.14 has a zstd of its own", "pip install 'blkmig[zstd]'"),
    ("prometheus-client", "prometheus-client", "--metrics, --metrics-listen", "pip install 'blkmig[metrics]'"),
    ("opentelemetry", "opentelemetry-api", "spans, in programs that set a provider", "pip install opentelemetry-sdk"),
    ("rich", "rich", "a live view on a terminal, --progress=live", "pip install 'blkmig[live]'"),
    ("cryptography", "cryptography", "tls: with a token, --token", "pip install 'blkmig[tls]'"),
    ("shtab", "shtab", "blkmig completion", "pip install 'blkmig[completion]'"),
)
"""Each with its distribution, what it enables, and what to install."""

PROGRAMS = (
    ("qemu-nbd", "images of other formats, such as qcow2", "apt-get install qemu-utils"),
    ("qemu-img", "new targets of other formats", "apt-get install qemu-utils"),
    ("qemu-storage-daemon", "blkmig serve", "apt-get install qemu-system-common"),
    ("qemu-system-x86_64", "a QEMU at either end, of this section up to 9.0", "apt-get install qemu-system-x86"),
    ("ssh", "exec:ssh HOST blkmig receive -", "apt-get install openssh-client"),
)


def findings() -> Iterator[Finding]:
    """Yield what is here, and what is not."""
    yield Finding("blkmig", "blkmig", parsing.version(), "this command")
    yield Finding("blkmig", "Python", platform.python_version(), "from 3.11 on")
    for name, distribution, enables, install in LIBRARIES:
        yield Finding("Python libraries", name, _version(distribution), enables, install)
    for name, enables, install in PROGRAMS:
        yield Finding("programs", name, program_version(name), enables, install)
    yield Finding("libraries", "libnbd", present.version(), "NBD disks: nbd://, and images of other formats",
                  "apt-get install libnbd0")  # fmt: skip
    yield Finding("libraries", "OpenSSL", _openssl(), "tls:, a stream that is encrypted", "a Python with ssl")
    yield from kernel()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def program_version(name: str) -> str:
    """Return the version that a program says; "" if it is not here, "yes" if it says none."""
    path = shutil.which(name)
    if path is None:
        return ""
    option = "-V" if name == "ssh" else "--version"
    try:
        said = subprocess.run([path, option], capture_output=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return "broken"
    number = re.search(r"\d+(\.\d+)+\w*", (said.stdout + said.stderr).decode(errors="replace"))
    return number[0] if number else "yes"


def kernel() -> Iterator[Finding]:
    """Yield what the kernel and the limits of this process give."""
    group = "kernel"
    yield Finding(group, "Linux", platform.release(), "the page cache's and the disks' own calls")
    huge = "on demand" if hugepages.are_had() else ""
    yield Finding(group, "huge pages", huge, "a sender gives a pipe pages, and copies less: exec:, fd:, -",
                  "echo madvise >/sys/kernel/mm/transparent_hugepage/enabled")  # fmt: skip
    yield Finding(group, "pipes", _read("/proc/sys/fs/pipe-max-size"), "bytes that a pipe may hold: exec:, fd:, -")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Finding(group, "open files", f"{soft} of {hard}", "a few for each disk, more for an NBD server")
    yield Finding(group, "processors", str(len(os.sched_getaffinity(0))), "two are enough for each migration")


def _openssl() -> str:
    try:
        import ssl
    except ImportError:
        return ""
    return ssl.OPENSSL_VERSION.split()[1]


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text().strip()
    except OSError:
        return ""
