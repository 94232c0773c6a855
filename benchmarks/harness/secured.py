# SPDX-License-Identifier: GPL-2.0-or-later
"""The sides of the comparisons over TLS: each end has a certificate, and checks the other's."""

from __future__ import annotations

import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import tls

from . import jobs, processes

Run: TypeAlias = Callable[[jobs.Job, pathlib.Path], jobs.Figures]


def make_certificates(folder: pathlib.Path) -> pathlib.Path:
    """Return a folder of certificates for this machine; it is made once."""
    made = folder / "pki"
    return made if made.exists() else tls.make_certificates(made, host="localhost")


def run_blkmig(job: jobs.Job, certificates: pathlib.Path) -> jobs.Figures:
    """``blkmig.send`` and ``blkmig.receive`` over tls:, in two processes that have imported blkmig already."""
    trust = {"tls": str(certificates)}
    with jobs.started(job, (f"drive0={job.source}", trust), (f"drive0={job.target}", trust)) as ends:
        return ends.run()


def run_openssl(job: jobs.Job, certificates: pathlib.Path) -> jobs.Figures:
    """``openssl s_client`` reads the source and sends it, ``openssl s_server`` writes it into the target."""

    def receiver(link: processes.Link) -> jobs.Command:
        port = link.address.rpartition(":")[2]
        words = f"-quiet -naccept 1 -accept 127.0.0.1:{port} -Verify 1 -verify_return_error {files('server')}"
        # Its input must not end: it would close the connection.
        return ["sh", "-c", f"tail -f /dev/null --pid=$$ | exec openssl s_server {words} 1<>{job.target}"]

    def sender(link: processes.Link) -> jobs.Command:
        words = f"-quiet -no_ign_eof -nocommands -connect {link.address} -verify_return_error {files('client')}"
        return ["sh", "-c", f"exec openssl s_client {words} <{job.source} 2>&1"]

    def files(end: str) -> str:
        where = certificates
        return f"-CAfile {where}/ca-cert.pem -cert {where}/{end}-cert.pem -key {where}/{end}-key.pem"

    return jobs.transfer(job, receiver, sender)


def run_nbdcopy(job: jobs.Job, certificates: pathlib.Path) -> jobs.Figures:
    """``nbdcopy`` to nbdkit with TLS."""
    with processes.open_link("tcp", job.folder) as link:
        host, _, port = link.address.rpartition(":")
        secured = ["--tls=require", f"--tls-certificates={certificates}", "--tls-verify-peer"]
        with job.start("nbdkit", "-f", "-i", host, "-p", port, *secured, "file", job.target) as server:
            link.wait_listening(server)
            start = time.perf_counter()
            uri = f"nbds://localhost:{port}/?tls-certificates={certificates}"
            with job.start("nbdcopy", job.source, uri) as client:
                sent = client.wait()
            return processes.figures(time.perf_counter() - start, sent, server.terminate())


SIDES: Mapping[str, tuple[Run, Sequence[str]]] = {
    "blkmig": (run_blkmig, ("openssl",)),
    "openssl": (run_openssl, ("openssl",)),
    "nbdcopy": (run_nbdcopy, ("openssl", "nbdcopy", "nbdkit")),
}


def missing(name: str) -> str | None:
    """Return why a side cannot run here, None if it can."""
    absent = [program for program in SIDES[name][1] if shutil.which(program) is None]
    return f"{' and '.join(absent)} not installed" if absent else None
