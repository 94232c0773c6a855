# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a source waits for a target that takes its time and says so."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import scripted
from return_paths import linked, no_blocks

from blkmig import errors
from blkmig.migration import questions
from blkmig.savevm import words

IDLE = 5.0
SECONDS = 4.0
"""What passes between two looks at the clock."""

ALIVE = scripted.message(words.MIG_RP_MSG_ALIVE, words.Alive("the target of disk 'a' is opened").encode())
PONG = scripted.message(2, 7)
TAKEN = scripted.message(words.MIG_RP_MSG_REPLY, words.Reply().encode())


def await_reply(said: bytes) -> None:
    """Wait for a REPLY; a message is read every eight seconds or so."""
    moments = itertools.count(step=SECONDS)
    with linked("blkmig") as (link, target):
        link.return_path.set_idle_timeout(IDLE)  # type: ignore[union-attr]
        asked: Any = questions.Questions(link, no_blocks("blkmig"), clock=lambda: next(moments))
        target.sendall(said)
        asked.await_reply()


def test_signs_of_life_make_the_wait_for_the_disks_longer() -> None:
    await_reply(ALIVE * 4 + TAKEN)


def test_ten_times_as_long_and_no_longer() -> None:
    with pytest.raises(errors.ChannelTimeout, match="within 50 s with signs of life; the last one: the target of"):
        await_reply(ALIVE * 100 + TAKEN)


def test_other_messages_do_not() -> None:
    with pytest.raises(errors.ChannelTimeout, match=r"it has not said within 5 s whether it does \(--idle-timeout\) "):
        await_reply(PONG * 4 + TAKEN)
