# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs and capabilities that some tests need: absent, the test is skipped with a reason, in CI it fails."""

from __future__ import annotations

import os
import shutil

import pytest

REQUIRED = os.environ.get("BLKMIG_REQUIRE_PEERS") == "1"


def require(*programs: str) -> None:
    """Skip the calling test (or module, at import) unless all `programs` are on the PATH."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        lacking(f"{', '.join(missing)} not installed (Debian: qemu-system-x86 qemu-utils nbdkit libnbd-bin fio)")


def lacking(reason: str) -> None:
    """Skip for a missing capability, or fail where BLKMIG_REQUIRE_PEERS=1 says that it must be there."""
    if REQUIRED:
        pytest.fail(f"required here: {reason}", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
