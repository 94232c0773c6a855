# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of which the target holds old copies: what the two ends agree on, and what compares them at each.

::

    receive --delta, --in-place    HELLO: DELTA ─► send, unless --no-delta    the bulk phase sends what differs

A target offers it for all of its disks or for none. One that holds nothing answers that it is zeros.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence

from .. import block, channel, params, savevm, stats
from ..block import ExtraKind
from . import questions

logger = logging.getLogger(__name__)


# -- the sending side ------------------------------------------------------------------------------------------------


def agree(
    parameters: params.MigrationParameters, asked: questions.Questions, handlers: block.BlockSaveHandlers
) -> None:
    """Have only what differs be sent, if the target offers that, and nothing stands against it. Before setup."""
    if savevm.Ability.DELTA not in handlers.abilities:
        return
    why_not = _why_not(parameters)
    if why_not:
        logger.warning("the target offers to compare old copies that it holds, and all is sent: %s", why_not)
    else:
        asked.digests.is_expected = True
        handlers.take_answer = asked.digests.take


def _why_not(parameters: params.MigrationParameters) -> str:
    if not parameters.delta:
        return "--no-delta was said"
    if parameters.shared_base:
        return "with --incremental only what the top layers hold is sent"
    return "" if block.can_hash() else block.MISSING


# -- the receiving side ----------------------------------------------------------------------------------------------


def abilities(parameters: params.IncomingParameters) -> savevm.Ability:
    """Return what HELLO offers."""
    return savevm.OURS if parameters.compares else savevm.OURS & ~savevm.Ability.DELTA


@contextlib.contextmanager
def answering(
    parameters: params.IncomingParameters,
    handlers: block.BlockLoadHandlers,
    loader: savevm.LoadVM,
    f: channel.InputQEMUFile,
) -> Iterator[block.Answers]:
    """Have the questions of a stream be answered while it is loaded, if old copies are compared."""
    answers = block.Answers(loader.way_back.digest)

    def counted(take: block.OnExtra) -> block.OnExtra:
        def take_and_count(body: bytes, position: int) -> None:
            take(body, position)
            f.payload_came()  # nothing else comes of disks that are equal

        return take_and_count

    if parameters.compares:
        handlers.on_extra |= {ExtraKind.ASK: counted(answers.ask), ExtraKind.SAME: counted(answers.same)}
    with contextlib.closing(answers):
        yield answers


def begin(
    answers: block.Answers | None,
    parameters: params.IncomingParameters,
    table: Sequence[block.TableDisk],
    devices: Mapping[bytes, block.BlkLoadDevice],
) -> None:
    """Compare the disks of a table, if there are old copies; `devices` are where they go, by name."""
    if answers is not None and parameters.compares:
        answers.begin(table, devices)


def end(answers: block.Answers | None) -> None:
    """Answer nothing any more: nothing is compared behind the bulk phase, and the disks may be let go. Blocks."""
    if answers is not None:
        answers.close()


def note_what_was_not(parameters: params.IncomingParameters, statistics: stats.IncomingStatistics) -> None:
    """Say that all of the disks came although there are old copies, if it is so."""
    if parameters.compares and not any(disk.same_bytes for disk in statistics.disks.values()):
        statistics.notes.append("nothing was the same as in the old copies, or the source did not compare: all came")
