# SPDX-License-Identifier: GPL-2.0-or-later
"""A job that every side does, and how two processes do it: a sender and a receiver with a link between them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import blkmig

from . import processes, tools

Figures: TypeAlias = Mapping[str, float]
Command: TypeAlias = Sequence[str | pathlib.Path]


@dataclasses.dataclass(frozen=True)
class Job:
    """Copy the image `source` to `target` over a link of kind tcp, far, unix or pipe.

    `fresh`: the target holds nothing yet.

    `preload`: a library for every side (see c/unflushed.c); `flush`: what arrived must be on stable storage at the end.
    """

    source: pathlib.Path
    target: pathlib.Path
    tools: tools.Tools
    folder: pathlib.Path
    link: str = "tcp"
    fresh: bool = False
    flush: bool = False

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self.source.stat().st_size

    def start(self, *command: str | pathlib.Path, fds: Sequence[int] = ()) -> processes.Measured:
        """Start a measured process of this job."""
        preload = None if self.flush else self.tools.library("unflushed")
        measured = self.tools.program("measured")
        return processes.Measured(measured, command, folder=self.folder, preload=preload, pass_fds=fds)


EndOf: TypeAlias = Callable[[processes.Link], Command]


def transfer(job: Job, receiver: EndOf, sender: EndOf) -> Figures:
    """Run a receiver that serves one stream and a sender; both have ended in the end."""
    with (
        processes.open_link(job.link, job.folder) as link,
        job.start(*receiver(link), fds=link.receiver_fds) as receiving,
    ):
        link.close(link.receiver_fds)
        link.wait_listening(receiving)
        start = time.perf_counter()
        with job.start(*sender(link), fds=link.sender_fds) as sending:
            link.close(link.sender_fds)
            sent, received = sending.wait(), receiving.wait()
        wall = time.perf_counter() - start
    return processes.figures(wall, sent, received)


def python(job: Job, *arguments: str | pathlib.Path) -> Command:
    """Return the command of a Python that finds blkmig and keeps its bytecode, as an installed one does."""
    root = pathlib.Path(blkmig.__file__).parents[1]
    settings = [f"PYTHONPATH={root}", f"PYTHONPYCACHEPREFIX={job.folder / 'bytecode'}"]
    return ["env", "-u", "PYTHONDONTWRITEBYTECODE", *settings, sys.executable, *arguments]


@dataclasses.dataclass
class Ends:
    """Both ends of a migration by blkmig, in processes that have imported it and wait."""

    link: processes.Link
    sending: processes.Measured
    receiving: processes.Measured
    to_sender: processes.Control
    to_receiver: processes.Control
    # Of time.monotonic().
    began_at: float = 0.0
    complete_at: float = 0.0
    """When both ends knew that the disks are complete, if both note that; else when they were done."""

    def run(self) -> Figures:
        """Migrate; the clock runs until both ends are done, not until their processes have ended."""
        self.to_receiver.go()
        self.link.wait_listening(self.receiving)
        self.began_at = time.monotonic()
        self.to_sender.go()
        cpu_sender, known_at, sent_at = self.to_sender.wait_done(self.sending)
        cpu_receiver, complete_at, received_at = self.to_receiver.wait_done(self.receiving)
        self.complete_at = max(known_at, complete_at)
        sent = dataclasses.replace(self.sending.wait(), cpu=cpu_sender)
        received = dataclasses.replace(self.receiving.wait(), cpu=cpu_receiver)
        return processes.figures(max(sent_at, received_at) - self.began_at, sent, received)


End: TypeAlias = tuple[str, Mapping[str, object]]  # a disk as started.py takes it, and the parameters of this end


@contextlib.contextmanager
def started(job: Job, sender: End, receiver: End) -> Iterator[Ends]:
    """Start both ends over a link of the job's kind."""
    script = pathlib.Path(__file__).with_name("started.py")
    with (
        processes.open_link(job.link, job.folder) as link,
        processes.Control() as to_receiver,
        processes.Control() as to_sender,
    ):
        send = ["send", to_sender.fd, sender[0], link.sender_uri, json.dumps(sender[1])]
        receive = ["receive", to_receiver.fd, receiver[0], link.receiver_uri, json.dumps(receiver[1])]
        with (
            job.start(*python(job, script, *receive), fds=[*link.receiver_fds, int(to_receiver.fd)]) as receiving,
            job.start(*python(job, script, *send), fds=[*link.sender_fds, int(to_sender.fd)]) as sending,
        ):
            link.close([*link.receiver_fds, *link.sender_fds])
            to_receiver.wait_ready(receiving)
            to_sender.wait_ready(sending)
            yield Ends(link, sending, receiving, to_sender, to_receiver)
