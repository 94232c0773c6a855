# SPDX-License-Identifier: GPL-2.0-or-later
"""Put the sides of a comparison together: prepare the target, run, compare the contents; skip what is not installed."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence

from blkmig import gates

from . import images, jobs, peers, tools


@dataclasses.dataclass(frozen=True)
class Arena:
    """The place where the sides meet: a folder for images, compiled tools.

    `rivals`: the only ones, where named. `shared`: others use this machine, so whole copies tell nothing.
    """

    folder: pathlib.Path
    tools: tools.Tools
    quick: bool
    rivals: frozenset[str] = frozenset()
    shared: bool = False

    def job(self, source: pathlib.Path, **options: object) -> jobs.Job:
        """Return the job of copying `source` to the one target that all sides share."""
        return jobs.Job(source, self.folder / "target.raw", self.tools, self.folder, **options)  # type: ignore[arg-type]

    def prepare(self, job: jobs.Job) -> None:
        """Bring the target into the state in which every run finds it."""
        if job.fresh:
            images.renew(job.target, job.size)
        else:
            images.stamp(job.target)

    def side(self, name: str, job: jobs.Job) -> gates.Side:
        """Return a side that prepares, runs and verifies `job`.

        Its first run is compared byte for byte, later ones in every block, which is what takes a reasonable time.
        """
        return self.side_of(job, functools.partial(peers.SIDES[name][0], job))

    def side_of(self, job: jobs.Job, run: Callable[[], jobs.Figures]) -> gates.Side:
        """Return a side that does `job` by `run`."""
        samples = itertools.chain([images.MiB], itertools.repeat(4096))
        same = self.tools.program("same")

        def verify() -> None:
            images.require_same(same, job.source, job.target, sample=next(samples))

        return gates.Side(run, setup=functools.partial(self.prepare, job), check=verify)

    def sides(self, names: Sequence[str], job: jobs.Job) -> tuple[dict[str, gates.Side], dict[str, str]]:
        """Return the sides that can run here, the first always, and the reasons why the others cannot."""
        skipped = {name: reason for name in names if (reason := peers.missing(name))}
        if self.rivals:
            skipped |= {name: "not asked for" for name in names[1:] if name not in self.rivals}
        return {name: self.side(name, job) for name in names if name not in skipped}, skipped

    def create_target(self, job: jobs.Job) -> None:
        """Make the existing target: as large as the source, other data in the page cache."""
        if not job.fresh:
            self._require_room(job.size)
            images.create_rotated(job.target, job.source)

    def _require_room(self, nbytes: int) -> None:
        if self.shared and not self.quick:
            raise images.CannotRunHere("whole copies are for machines that nobody else uses")
        images.require_space(self.folder, nbytes)

    def random_image(self, size: int) -> pathlib.Path:
        """Return an image of random data; it is made once."""
        path = self.folder / f"random-{size}.raw"
        if not path.exists():
            self._require_room(size)
            images.create_random(path, size)
        images.warm(path)
        return path

    def text_image(self, size: int, *, every: int) -> pathlib.Path:
        """Return an image whose blocks are text that zstd halves, or one of `every` so many; it is made once."""
        path = self.folder / f"text-{size}-{every}.raw"
        if not path.exists():
            self._require_room(size)
            images.create_text(path, size, every)
        images.warm(path)
        return path

    def sparse_image(self, size: int, data: int, *, piece: int) -> pathlib.Path:
        """Return an image with `data` bytes scattered in pieces; it is made once."""
        path = self.folder / f"sparse-{size}-{data}.raw"
        if not path.exists():
            self._require_room(2 * data)
            images.create_sparse(path, size, data, piece=piece)
        images.warm(path)
        return path
