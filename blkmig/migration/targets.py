# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the disks of an incoming stream go: by name, by order of appearance, or all into one folder.

Targets that somebody named are compared with the stream's file and with each other, opened and checked before anybody
can connect; a stream does not say which disks it holds before their first blocks come. What does not exist is made
under a hidden name, and gets its own name when everything is complete: see `sources/targetfile.py`. An existing target
keeps its size; an empty file counts as one that does not exist.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from types import TracebackType

from .. import block, disk, errors, params, sources, stats
from . import afterwards, asked, beside, endpoints, fitting, leaving, made, naming, room, sessions

Target = disk.BlockBackend | str | os.PathLike[str]


class TargetSet(contextlib.AbstractContextManager["TargetSet"]):
    """Opens the target of each disk, and closes those that it opened.

    `targets` maps names to paths or to backends (these stay open); `by_index` maps the order of appearance, from 0,
    to paths, for disks without a name of their own; `into` is a folder that takes every other disk. ::

        prepare ─ { open, blocks come }* ─ check_all_came ─ check_sizes ─ publish ─ (the source is told) ─ confirm
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        parameters: params.IncomingParameters,
        statistics: stats.IncomingStatistics,
        *,
        into: str | os.PathLike[str] | None = None,
        by_index: Mapping[int, Target] | None = None,
    ) -> None:
        asked.check_targets(targets, by_index, into)
        if parameters.overwrite and into is None:
            statistics.notes.append("overwrite does nothing: it is for files of a folder, and none was said (--into)")
        asked.check_old_copies(parameters, targets, into)
        self._parameters = parameters
        self._statistics = statistics
        wanted: list[tuple[str | int, Target]] = [*targets.items(), *(by_index or {}).items()]
        self._targets: dict[str | int, disk.BlockBackend | sources.TargetFile] = {
            key: target if isinstance(target, disk.BlockBackend) else self._target_file(target, key)
            for key, target in wanted
        }
        self._into = None if into is None else pathlib.Path(into)
        self._takes_unnamed = into is not None or bool(by_index)
        self._endpoints: endpoints.Targets | None = None
        self._stack = contextlib.ExitStack()
        self._used: set[str | int] = set()
        self._made, self._room = made.MadeTargets(), room.Room()
        self.session = sessions.SessionFiles("target", parameters.state_dir)  # what was decided, from `begin` on
        self._is_taken = False
        self.came: list[sources.TargetFile | None] = []  # those of `devices`; None: opened by the caller
        self._appeared = 0  # disks that somebody has asked the target of
        self.announced = block.SaidSizes()  # how large the stream says that its disks are, before they come
        self.leaving, self._afterwards = leaving.Leaving(), afterwards.Answering()
        self.beside = beside.Beside()
        self.devices: list[block.BlkLoadDevice] = []

    # -- before somebody connects ------------------------------------------------------------------------------------

    def prepare(self, uri: str) -> None:
        """Compare and open what was named, before the source at `uri` is listened to; nothing is written.

        Raises :class:`~blkmig.errors.ParameterError` for files that are the same, and errors of the disks; then nothing
        stays open, and nothing that was made is left. For disks that have come before, the source may be waited for.
        """
        with self._afterwards.at(uri, self._parameters.tls):
            self._prepare(uri)

    def _prepare(self, uri: str) -> None:
        try:
            self._endpoints = endpoints.Targets(uri)
            for key, target in self._targets.items():
                self._endpoints.add_target(naming.label_of(key), target)
            for key, target in self._targets.items():
                if isinstance(target, sources.TargetFile):
                    self._made.prepare(target)
                    self._endpoints.add(naming.label_of(key), (), target.layers())
                    fitting.check_before(target, self._parameters, key)
            if not self._takes_unnamed:
                naming.check_can_come(self._parameters.sizes, map(str, self._targets))
            if self._into is not None:
                self._made.folders = fitting.check_folder(self._into)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def _target_file(
        self, text: str | os.PathLike[str], key: str | int, *, into: pathlib.Path | None = None
    ) -> sources.TargetFile:
        return sources.TargetFile(
            text,
            label=key if isinstance(key, str) and key else f"number {key}",
            into=into,
            overwrite=self._parameters.overwrite,
            incremental=self._parameters.incremental,
            direct=self._parameters.direct,
            old=self._parameters.delta.get(key) if isinstance(key, str) else None,
            in_place=self._parameters.in_place,
            idle_timeout=self._parameters.idle_timeout,
            state_dir=self._parameters.state_dir,
        )

    # -- while the disks come ----------------------------------------------------------------------------------------

    def open(self, name: str, position: int) -> block.BlkLoadDevice:
        """Return the target of the disk called `name`, whose first block is at `position` of the stream.

        Raises :class:`~blkmig.errors.UnknownDevice` if nobody said where it goes, and errors of the disk.
        """
        target = self._find(name, position)
        if not name and self._parameters.incremental:
            raise errors.UnsupportedStream(
                "an incremental stream holds a disk without a name, and a second one would not be noticed: "
                "give the source's disk a name, as in -drive id=NAME",
                position=position,
            )
        said, announced = self._parameters.size_of(name), self.announced.of(name)
        size = announced if said is None else said
        statistics = stats.DiskStatistics(name)
        fitting.check_known_size(target, self._parameters, name, announced=announced)
        if isinstance(target, disk.BlockBackend):
            backend = target
        else:
            if size is not None and announced is None:
                self._room.want_for(target, size)
                self._room.warn()
            opened = target.open(name or f"number {len(self.devices)}", size, resumes=self.leaving.resumes)
            backend = self._stack.enter_context(opened)
        if backend.is_read_only:
            raise errors.DeviceError("cannot be a target", device=name, cause="it is read-only")
        if backend.is_growable and self._parameters.incremental:
            raise errors.DeviceError("cannot be a target", device=name, cause="it is new, and does not hold the base")
        self._stack.enter_context(backend.block_use("a migration that writes it"))
        is_new = isinstance(target, sources.TargetFile) and target.is_new
        device = block.BlkLoadDevice(backend, statistics, size=size, is_size_sure=said is not None, is_new=is_new)
        self._statistics.disks[name] = statistics
        self.devices.append(device)
        self.came.append(target if isinstance(target, sources.TargetFile) else None)
        return device

    def begin(self, *, is_awaited: bool) -> None:
        """Note beside the disks that are open that they are about to be written. Blocks."""
        if is_awaited:
            self.session.begin(self._made.abouts())
        for target in filter(None, self.came):
            target.reuse.begin()

    def is_wanted(self, name: str) -> bool:
        """Return whether somebody has said where the disk called `name` goes, if it is the next that appears."""
        return name in self._targets or self._appeared in self._targets or self._into is not None

    def check_counts(self, disks: int, empty: int, *, position: int) -> None:
        """Raise as early as can be if a stream of so many disks, and `empty` more, does not fit what was asked for."""
        naming.check_counts(disks, empty, list(self._targets), takes_others=self._into is not None, position=position)

    def check_announced(self, announced: block.SaidSizes) -> None:
        """Refuse what must fail by the sizes that the stream says before anything is written; warn of little room."""
        self.announced = announced
        self.check_names()
        fitting.check_said_sizes(self._parameters, announced)
        for key in self._names():
            fitting.check_known_size(self._targets[key], self._parameters, key, announced=announced.of(key))
        self.want_room()

    def check_names(self) -> None:
        """Raise :class:`~blkmig.errors.IncompleteMigration` for what was asked for and is not `announced`."""
        known = list(filter(self.announced.has, dict.fromkeys((*self._parameters.sizes, *self._names()))))
        naming.check_have_come(self._parameters.sizes, known)
        absent = [key for key in self._names() if key not in known]
        if known or self._takes_unnamed:  # else the first disk that comes is unknown, and says its name
            naming.check_targets_come(absent, known, "disks of other names")
        if self._parameters.incremental:
            return  # those of its disks in which nothing has changed do not appear
        for name in known:
            number = self.announced.number_of(name)
            if number is not None:
                naming.check_is_said_once(name, number, self._targets)

    def want_room(self) -> None:
        """Warn if a file system has less room than the disks that are `announced` may take of it."""
        unnamed = self.announced.total
        for key in self._names():
            target, size = self._targets[key], self.announced.of(key)
            unnamed -= size or 0
            if size is not None and isinstance(target, sources.TargetFile):
                self._room.want_for(target, size)
        if self._into is not None:
            self._room.want(self._into, unnamed)
        self._room.warn()

    def _names(self) -> list[str]:
        return [key for key in self._targets if isinstance(key, str)]

    def _find(self, name: str, position: int) -> disk.BlockBackend | sources.TargetFile:
        """Return where the disk called `name` goes."""
        index, self._appeared = self._appeared, self._appeared + 1
        naming.check_is_said_once(name, index, self._targets)
        for key in (name, index):  # the name first: whoever says both means this disk
            if key in self._targets:
                self._used.add(key)
                return self._targets[key]
        if self._into is not None:
            return self._target_in_folder(self._into, name, index)
        raise errors.UnknownDevice(naming.unknown_device(name, index, self._names()), device=name, position=position)

    def _target_in_folder(self, into: pathlib.Path, name: str, index: int) -> sources.TargetFile:
        """Return the file for a disk in the folder; a name from the stream must not lead out of it."""
        target = self._target_file(naming.file_name(name, index), name, into=into)
        assert self._endpoints is not None
        self._endpoints.add(naming.label_of(name), list(target.files()), mark=target.mark())
        self._made.prepare(target)
        return target

    # -- when all have come ------------------------------------------------------------------------------------------

    def check_all_came(self) -> None:
        """Raise :class:`~blkmig.errors.IncompleteMigration` if a disk that was asked for is not in the stream."""
        absent = (key for key in self._targets if key not in self._used)
        naming.check_targets_come(absent, self._statistics.disks, "no disks")
        naming.check_have_come(self._parameters.sizes, self._statistics.disks)

    def check_sizes(self) -> None:
        """Refuse, or take note of, targets that are larger than their disks; call it when the sizes are settled."""
        for device in self.devices:
            fitting.check_settled_size(device, self._parameters, self._statistics)

    def cancel(self) -> None:
        """Have whatever waits in a disk raise Cancelled, and no source be waited for. From any thread."""
        self._afterwards.cancel()
        for device in list(self.devices):
            device.backend.cancel()

    def close(self) -> None:
        """Close the disks that were opened here, once nobody else uses them. Blocks shortly. Twice does no harm."""
        errors.each([self.beside.end, self._stack.close])

    def check_takeable(self) -> None:
        """Raise :class:`~blkmig.errors.DeviceError` if a disk is not where it was, or could not get its name now."""
        for device in self.devices:
            fitting.check_is_named(device.backend)
        self._made.check()

    def take(self, number: int) -> dict[str, errors.MigrationError]:
        """Make the disks of END `number` this host's own, for good, and give what was made its name.

        Returns why those disks that did not get theirs did not, by what messages call them. Raises
        :class:`~blkmig.errors.DeviceError` if nobody can know, before a restart, whether that is on stable storage.
        """
        self._is_taken = True  # before: it may be on stable storage whatever is raised
        self._made.keep()
        self.session.store("committing", number)
        return self._made.give_names()

    def publish(self) -> None:
        """Give what was made its name; all of it is on stable storage when this returns.

        Call it when everything was flushed, and before the source is told. All targets are looked at before the first
        one gets its name. Raises :class:`~blkmig.errors.DeviceError` if one is not where it was.
        """
        self.check_takeable()
        self._made.publish()

    def sync(self) -> None:
        """Return when the names that were given, and those that were removed, are so on stable storage. Blocks."""
        self._made.sync()

    def confirm(self) -> None:
        """Take note that the source was told: whatever happens from now on, the targets stay."""
        self._made.confirm()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what was opened here and say what is left; what fails then is a note to the body's error.

        If the link refused the word, the source does not have it, and targets that got their names are taken back.
        After any other end, as by a signal, nobody knows whether the source has the word, and the targets stay.
        """
        is_left = not self._is_taken and self.session.state is not None and self.leaving.is_left(exc, self.devices)
        if is_left:
            self._made.leave()
        calls: list[Callable[[], object]] = [self.beside.end, lambda: self._stack.__exit__(exc_type, exc, traceback)]
        if isinstance(exc, Exception) and not self._made.is_whole:
            calls.append(functools.partial(leaving.say_what_is_broken, exc, self.devices, self.came))
        calls.append(lambda: self._made.discard(exc, dict(zip(self.came, self.devices, strict=True))))
        with errors.keeping(exc):
            errors.each([*calls, self.session.close if self._is_taken or is_left else self.session.remove])
