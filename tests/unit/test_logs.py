# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said reaches the loggers of `logging`, as if they had been asked."""

from __future__ import annotations

import logging

import pytest

from blkmig import logs

SAID = logs.Logger("blkmig.said")


@pytest.mark.parametrize("level", ["debug", "info", "warning"])
def test_a_record_is_what_logging_makes(level: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    getattr(SAID, level)("disk %r has %d bytes", "vda", 512)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("blkmig.said", level.upper())
    assert record.getMessage() == "disk 'vda' has 512 bytes"
    assert (record.filename, record.funcName) == ("test_logs.py", "test_a_record_is_what_logging_makes")


def test_a_level_that_is_off_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    SAID.info("hidden")
    SAID.warning("%s seen")
    assert [record.getMessage() for record in caplog.records] == ["%s seen"]
