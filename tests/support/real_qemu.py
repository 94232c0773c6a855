# SPDX-License-Identifier: GPL-2.0-or-later
"""A real QEMU as a peer: start it under TCG, talk QMP to it, migrate from it and into it, and stop it again.

::

    with Qemu("-drive", "file=a.raw,format=raw,id=drive0,if=none", folder=tmp_path) as vm:
        vm.set_parameters(downtime_limit=0)          # without it QEMU 7.2 to 9.0 lose blocks
        vm.migrate("exec:cat > stream", blk=True)
        assert vm.wait_migration() == "completed"

The guest does not run (``-S``) and has an empty firmware, unless `running` is said: then SeaBIOS boots whatever the
first disk holds, for instance :func:`guest_disk`, a boot sector that writes numbered blocks for ever.

QMP goes over an inherited socket pair, so there is no path, no port and no waiting for a server to come up.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import platform
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

TIMEOUT = 60.0
"""Seconds after which a silent QEMU is a failed test; nothing here takes more than a few."""

MiB = 1 << 20
FIRMWARE_SIZE = 64 << 10
FINAL = ("completed", "failed", "cancelled")


class QmpError(Exception):
    """QEMU answered a command with an error; ``args`` is its class and its text."""


class QemuGoneError(Exception):
    """QEMU ended; the message carries its exit code and what it wrote to stderr."""


class Qmp:
    """A blocking QMP client over a connected socket. Events that come between answers are kept in `events`."""

    def __init__(self, sock: socket.socket) -> None:
        """Read the greeting and leave the negotiation mode."""
        sock.settimeout(TIMEOUT)
        self._sock = sock
        self._file = sock.makefile("rb")
        self.events: collections.deque[dict[str, Any]] = collections.deque()
        self._receive()
        self.execute("qmp_capabilities")

    def execute(self, command: str, /, **arguments: Any) -> Any:
        """Run `command` (underscores in argument names stand for hyphens) and return its result."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._sock.sendall(json.dumps({"execute": command, "arguments": named}).encode())
        while True:
            message = self._receive()
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise QmpError(message["error"]["class"], message["error"]["desc"])
            else:
                return message["return"]

    def wait_event(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the next event that `wanted` accepts; earlier ones are dropped."""
        while True:
            event = self.events.popleft() if self.events else self._receive()
            if wanted(event):
                return event

    def _receive(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise ConnectionResetError("QMP closed")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Close both ends; QEMU goes on."""
        self._file.close()
        self._sock.close()


class Qemu:
    """A running QEMU with `arguments` after the usual ones; ``with`` ends it, whatever happened."""

    def __init__(
        self,
        *arguments: str,
        folder: pathlib.Path,
        machine: str = "pc",
        memory: str = "4M",
        running: bool = False,
        incoming: bool = False,
        program: str = "qemu-system-x86_64",
    ) -> None:
        """Start it in `folder`, which takes its stderr and the empty firmware."""
        self.command = [program, "-machine", f"{machine},accel=tcg", "-m", memory, "-nodefaults", "-display", "none"]
        if not running:
            firmware = folder / "firmware"
            firmware.write_bytes(bytes(FIRMWARE_SIZE))
            self.command += ["-S", "-bios", str(firmware)]
        if incoming:
            self.command += ["-incoming", "defer"]
        self.command += arguments
        self._log = folder / f"qemu-{time.monotonic_ns()}.log"
        ours, theirs = socket.socketpair()
        with theirs, self._log.open("wb") as log:
            chardev = ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"]
            self.process = subprocess.Popen(
                self.command + chardev,
                cwd=folder,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self.qmp = Qmp(ours)
        except OSError as error:
            self.close()
            raise QemuGoneError(f"QEMU did not start: {self.log}") from error
        self.set_capabilities(events=True)

    # -- what the tests ask for --------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        """What QEMU wrote to stdout and stderr so far."""
        return self._log.read_text(errors="replace")

    def execute(self, command: str, /, **arguments: Any) -> Any:
        """Run a QMP command; :class:`QmpError` is its error, :class:`QemuGoneError` its end."""
        try:
            return self.qmp.execute(command, **arguments)
        except (ConnectionError, BrokenPipeError) as error:
            raise self._gone() from error

    def set_capabilities(self, **states: bool) -> None:
        """Switch migration capabilities; underscores stand for hyphens."""
        listed = [{"capability": name.replace("_", "-"), "state": state} for name, state in states.items()]
        self.execute("migrate-set-capabilities", capabilities=listed)

    def set_parameters(self, **values: int | str) -> None:
        """Set migration parameters, for instance ``max_bandwidth=16 << 20, downtime_limit=0``."""
        self.execute("migrate-set-parameters", **values)

    def migrate(self, uri: str, *, blk: bool = True, inc: bool = False) -> None:
        """Start an outgoing migration, with the disks' contents."""
        self.execute("migrate", uri=uri, blk=blk, inc=inc)

    def listen(self, uri: str = "tcp:127.0.0.1:0") -> str:
        """Start the incoming side and return the URI to send to (a tcp port 0 is resolved)."""
        self.execute("migrate-incoming", uri=uri)
        if not uri.startswith("tcp:"):
            return uri
        address = self.execute("query-migrate")["socket-address"][0]
        return f"tcp:{address['host']}:{address['port']}"

    def wait_migration(self, *statuses: str) -> str:
        """Wait until the migration has one of `statuses` (default: until it has ended) and return it."""
        wanted = statuses or FINAL

        def reached(event: dict[str, Any]) -> bool:
            return event["event"] == "MIGRATION" and event["data"]["status"] in wanted

        try:
            status: str = self.qmp.wait_event(reached)["data"]["status"]
        except (ConnectionError, BrokenPipeError) as error:
            raise self._gone() from error
        return status

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Ask again and again until `condition` holds; QEMU tells some things to those who ask only."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {TIMEOUT:.0f} s for {what}; {self.log}")
            time.sleep(0.01)

    def quit(self) -> None:
        """End QEMU in good order, so that its images are closed; an outgoing migration must be over."""
        with contextlib.suppress(QemuGoneError):
            self.execute("quit")
        returncode = self.process.wait(TIMEOUT)
        if returncode:
            raise QemuGoneError(f"QEMU ended with {returncode}: {self.log}")

    def close(self) -> None:
        """Kill whatever is left of it; safe twice."""
        if hasattr(self, "qmp"):
            self.qmp.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(TIMEOUT)

    def _gone(self) -> QemuGoneError:
        return QemuGoneError(f"QEMU ended with {self.process.wait(TIMEOUT)}: {self.log}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def version_tuple() -> tuple[int, int]:
    """Return major and minor version of the QEMU that is installed."""
    major, minor = version().split(".")[:2]
    return int(major), int(minor)


def has_block_migration() -> bool:
    """Whether this QEMU can still migrate disks: up to 9.0."""
    return version_tuple() <= (9, 0)


# -- disks -----------------------------------------------------------------------------------------------------------


def pattern(nbytes: int, *, seed: str, holes: Callable[[int], bool] = lambda block: False) -> bytes:
    """Return contents that tell each 64 KiB piece from every other one and compress to next to nothing.

    `holes` says which 1 MiB blocks are zero instead.
    """
    pieces = []
    for offset in range(0, nbytes, 64 << 10):
        text = f"<{seed} {offset:010x}>".ljust(32).encode()[:32]
        piece = bytes(64 << 10) if holes(offset // MiB) else text * 2048
        pieces.append(piece[: nbytes - offset])
    return b"".join(pieces)


def create_raw(path: pathlib.Path, contents: bytes) -> pathlib.Path:
    """Write a raw disk, with holes where whole 64 KiB pieces are zero."""
    with path.open("wb") as file:
        file.truncate(len(contents))
        for offset in range(0, len(contents), 64 << 10):
            piece = contents[offset : offset + (64 << 10)]
            if any(piece):
                file.seek(offset)
                file.write(piece)
    return path


def run(*command: str | pathlib.Path) -> str:
    """Run `command`, return what it printed, fail with what it said."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


def qemu_img(*arguments: str | pathlib.Path) -> str:
    """Run ``qemu-img``."""
    return run("qemu-img", *arguments)


def version(program: str = "qemu-system-x86_64") -> str:
    """Return what `program` says about its version, without the rest."""
    return run(program, "--version").splitlines()[0].removeprefix("QEMU emulator version ")


def create_qcow2(path: pathlib.Path, contents: bytes | int, **options: str | int) -> pathlib.Path:
    """Make a qcow2 image with `contents`, or empty and of that size; options as ``cluster_size=512``."""
    size = contents if isinstance(contents, int) else len(contents)
    listed = ",".join(f"{name}={value}" for name, value in options.items())
    qemu_img("create", "-q", "-f", "qcow2", *(["-o", listed] if listed else []), path, str(-(-size // 512) * 512))
    if isinstance(contents, bytes):
        raw = create_raw(path.with_suffix(".contents"), contents)
        qemu_img("convert", "-n", "-f", "raw", "-O", "qcow2", raw, path)
        raw.unlink()
    return path


def compare(left: pathlib.Path, right: pathlib.Path) -> None:
    """Fail unless a guest sees the same in both images, qcow2 by suffix or raw; a longer one must end in zeros."""
    formats = ["qcow2" if path.suffix == ".qcow2" else "raw" for path in (left, right)]
    qemu_img("compare", "-f", formats[0], "-F", formats[1], left, right)


def sha256(contents: bytes) -> str:
    """Return the digest of `contents` in hexadecimal."""
    return hashlib.sha256(contents).hexdigest()


def capture(path: pathlib.Path) -> str:
    """Return a one-way URI that stores the stream in `path`; see :func:`captured`."""
    return f"exec:cat > '{path}'; touch '{path}.end'"


def captured(vm: Qemu, path: pathlib.Path) -> pathlib.Path:
    """Wait until the source has closed a captured stream and all of it is in `path`."""
    vm.wait_until(pathlib.Path(f"{path}.end").exists, "the end of the stream")
    return path


# -- the guest -------------------------------------------------------------------------------------------------------

GUEST_SOURCE = pathlib.Path(__file__).parents[1] / "guest" / "boot.S"
GUEST_BLOCK = 4096
_PARAMETERS = 0x1F2
_FIRST_BLOCK = 8 * 512


@dataclasses.dataclass(frozen=True)
class Guest:
    """What guest/boot.S does to a disk of `size` bytes: write n fills block ``n * stride % area`` with n.

    After `limit` writes it leaves the disk alone and keeps changing memory.
    """

    size: int
    stride: int = 97
    limit: int = 0xFFFFFFFF

    @property
    def area(self) -> int:
        """Blocks of 4 KiB that are written in turn, up to the end of the disk."""
        return (self.size - _FIRST_BLOCK) // GUEST_BLOCK

    def boot_sector(self, folder: pathlib.Path) -> bytes:
        """Assemble it; needs binutils."""
        flat, obj = folder / "boot.bin", folder / "boot.o"
        subprocess.run(["as", "--32", "-o", obj, GUEST_SOURCE], check=True)
        linking = ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", flat, obj]
        subprocess.run(linking, check=True)
        code = bytearray(flat.read_bytes())
        struct.pack_into("<III", code, _PARAMETERS, self.limit, self.area, self.stride)
        return bytes(code)

    def written(self, path: pathlib.Path) -> int:
        """Return how many writes the disk in the raw file `path` says are finished."""
        with path.open("rb") as file:
            file.seek(512)
            return int.from_bytes(file.read(4), "little")

    def check(self, disk: bytes) -> int:
        """Fail unless `disk` holds the writes that it says are finished, and at most one more; return their number.

        An area that was never written must be zero.
        """
        count: int = struct.unpack_from("<I", disk, 512)[0]
        expected = dict.fromkeys(range(self.area), 0)
        expected.update((n % self.area * self.stride % self.area, n) for n in range(count))
        under_way = count % self.area * self.stride % self.area
        for block, number in expected.items():
            offset = _FIRST_BLOCK + block * GUEST_BLOCK
            found = disk[offset : offset + GUEST_BLOCK]
            if block != under_way:
                assert found == struct.pack("<I", number) * 1024, f"block {block} of {count} writes: {found[:4].hex()}"
        return count


@functools.cache
def has_guest_tools() -> bool:
    """Whether the guest can be assembled here."""
    return platform.machine() == "x86_64" and all(shutil.which(tool) for tool in ("as", "ld"))
