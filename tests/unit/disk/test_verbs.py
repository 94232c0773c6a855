# SPDX-License-Identifier: GPL-2.0-or-later
"""C7: an OSError of any verb of any disk, those of other packages included, becomes a DeviceError that names it."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from typing import Any

import lab
import pytest

import blkmig
from blkmig import errors
from blkmig.disk import verbs

MIB = lab.MIB
SOURCE_VERBS = (
    "read_block",
    "next_data",
    "next_allocated",
    "create_dirty_bitmap",
    "release_dirty_bitmap",
    "sync_dirty",
    "check_source",
    "hold_writers",
    "release_writers",
    "about_to_move",
    "throttle_writers",
    "written_bytes",
)
TARGET_VERBS = ("write_block", "write_zeroes", "zeroes_end", "flush", "rest")


def foreign(verb: str, content: bytes, name: str) -> blkmig.BlockBackend:
    """Return a disk of a class that raises an OSError in one verb, after it has undone what it should."""

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        if verb.startswith("release"):
            getattr(super(disk_class, self), verb)(*args, **kwargs)
        raise OSError(errno.EIO, "broken")

    disk_class = type("Foreign", (blkmig.MemoryBackend,), {verb: broken})
    return disk_class(bytearray(content), name=name)


@pytest.mark.parametrize("verb", SOURCE_VERBS)
@pytest.mark.parametrize("writers_after", ["release", "refuse"])
def test_an_oserror_of_a_source(tmp_path: Path, verb: str, writers_after: str) -> None:
    disk: Any = foreign(verb, b"x" * MIB + bytes(MIB), "theirs")
    parameters = {"writers_after": writers_after, "shared_base": verb == "next_allocated", "auto_converge": True}
    migration = blkmig.outgoing([disk], f"file:{tmp_path}/stream", blkmig.MigrationParameters(**parameters))
    is_used = verb not in ("throttle_writers", "about_to_move", "next_allocated") or (
        (verb, writers_after) == ("about_to_move", "refuse")
    )
    with pytest.raises(errors.DeviceError) if is_used else contextlib.nullcontext() as caught, migration:
        migration.run()
    if caught is not None:
        assert (caught.value.device, caught.value.errno) == ("theirs", errno.EIO)
    assert migration.status == ("failed" if is_used else "completed")
    assert not disk.trackers


@pytest.mark.parametrize("verb", TARGET_VERBS)
def test_an_oserror_of_a_target(tmp_path: Path, verb: str) -> None:
    content = b"x" * MIB + bytes(MIB)
    (tmp_path / "stream").write_bytes(lab.record(tmp_path, [blkmig.MemoryBackend(bytearray(content), name="d")]))
    target = foreign(verb, bytes(b"y" * 2 * MIB), "theirs")
    with pytest.raises(errors.DeviceError) if verb != "rest" else contextlib.nullcontext() as caught:
        blkmig.receive(f"file:{tmp_path}/stream", {"d": target})
    if caught is not None:
        assert (caught.value.device, caught.value.errno) == ("theirs", errno.EIO)


def test_every_verb_of_every_disk_is_guarded() -> None:
    for cls in (blkmig.BlockBackend, *_subclasses(blkmig.BlockBackend)):
        for verb in verbs.DOING:
            function = cls.__dict__.get(verb)
            if cls is not blkmig.BlockBackend and function is not None:
                assert hasattr(function, "__wrapped__"), f"{cls.__name__}.{verb}"


def _subclasses(cls: type) -> list[type]:
    return [deeper for child in cls.__subclasses__() for deeper in (child, *_subclasses(child))]


@pytest.mark.parametrize("writers_after", ["release", "refuse"])
def test_a_callback_that_raises_after_the_end_changes_nothing_of_it(tmp_path: Path, writers_after: str) -> None:
    """The disk has moved or was copied, and its writers know; the caller gets the exception."""
    disk = blkmig.MemoryBackend(bytearray(b"x" * MIB), name="d")
    receiver = lab.Receiver(f"unix:{tmp_path}/s", {"d": tmp_path / "t.raw"})

    def on_progress(event: blkmig.stats.Event) -> None:
        if isinstance(event, blkmig.stats.Progressed) and event.phase in ("switchover", "waiting"):
            raise ZeroDivisionError

    parameters = blkmig.MigrationParameters(writers_after=writers_after)
    migration = blkmig.outgoing([disk], receiver.uri, parameters, on_progress=on_progress)
    with pytest.raises(ZeroDivisionError), migration:
        migration.run()
    assert migration.status == "completed"
    receiver.result()
    if writers_after == "refuse":
        with pytest.raises(errors.DeviceError, match="moved"):
            disk.pwrite(b"a", 0)
    else:
        disk.pwrite(b"a", 0)
