# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for all tests."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that lets the attacks of tests/attack run for as long as a person likes to watch."""
    parser.addoption("--long", action="store_true", help="run the attacks in their long form, with seeds of their own")


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether attacks run in their long form."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def no_garbage() -> Iterator[None]:
    """For tests that count frames or memory: nobody finalizes meanwhile what earlier tests have left."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def pytest_configure() -> None:
    """Have what the tests rely on."""
    set_surroundings()


def set_surroundings() -> None:
    """Have what tests rely on, whatever the shell that started them has: D7."""
    # Commands that tests interrupt inherit what is ignored here: SIGINT in the background of a shell without job
    # control, SIGHUP below nohup.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    os.environ["LC_ALL"] = "C.UTF-8"  # what other programs say is compared
    os.environ.pop("LANGUAGE", None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1024 if hard == resource.RLIM_INFINITY else min(1024, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
