# SPDX-License-Identifier: GPL-2.0-or-later
"""What a source says of a target that has failed: what it has been told, and nothing that it cannot know."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import scripted
from return_paths import SHUT, linked, message, no_blocks

from blkmig import errors, savevm
from blkmig.migration import questions
from blkmig.savevm import words

FAILURE = scripted.message(words.MIG_RP_MSG_ERROR, words.Failure("disk 'v': cannot write", 28, 4096, "v").encode())


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (1, "it does not say why"),
        (errno.EFBIG, "a disk is larger than its target there is, or may become"),
        (errno.ENOSPC, "No space left on device"),
    ],
)
def test_a_status_when_everything_was_sent(status: int, why: str) -> None:
    """What the target had received by then, or written, a SHUT does not say: it may have refused the disk at once."""
    with linked() as (link, target):
        target.sendall(message(SHUT, status))
        with pytest.raises(errors.TargetFailed) as caught:
            link.await_target(goes_on=False)
    assert str(caught.value) == (
        f"the target said, when everything was sent, that it has failed: {why} (status {status}); look at its messages"
    )


def test_its_own_words_when_everything_was_sent() -> None:
    state: Any = savevm.SaveState()
    state.register_savevm_live("blkmig", 0, 1, savevm.SaveVMHandlers())
    with linked("blkmig") as (link, target):
        asked = questions.Questions(link, no_blocks("blkmig"))
        asked.begin_end(state, {})
        target.sendall(FAILURE)
        with pytest.raises(errors.TargetFailed) as caught:
            asked.end_barrier(all_is_sent=True)
    assert str(caught.value) == (
        "the target said, when everything was sent, that it has failed: disk 'v': cannot write"
    )
    assert (caught.value.device, caught.value.offset, caught.value.errno) == ("v", 4096, errno.ENOSPC)
