# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for all tests."""

from __future__ import annotations

import signal

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that lets the attacks of tests/attack run for as long as a person likes to watch."""
    parser.addoption("--long", action="store_true", help="run the attacks in their long form, with seeds of their own")


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether attacks run in their long form."""
    return bool(request.config.getoption("--long"))


def pytest_configure() -> None:
    """Let Ctrl-C reach the commands that tests start and interrupt.

    What a shell without job control starts in the background ignores SIGINT, and so do all its children.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
