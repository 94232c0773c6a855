# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of which the target holds old copies: what the two ends agree on, and what compares them at each.

::

    receive --delta, --in-place    HELLO: DELTA ─► send, unless --no-delta    the bulk phase sends what differs
    receive                        HELLO: RESUME ─► send --resume: TABLE says so        ... also here

A target offers it for all of its disks or for none. One that holds nothing answers that it is zeros.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from .. import block, errors, logs, params, savevm, stats
from ..block import ExtraKind

if TYPE_CHECKING:
    from . import questions

logger = logs.Logger(__name__)

EXPOSED = (
    "the old copies were not compared, because anybody could have asked what they hold: say --allow NET, tls:, or "
    "--insecure"
)


# -- the sending side ------------------------------------------------------------------------------------------------


def agree(
    parameters: params.MigrationParameters, asked: questions.Questions, handlers: block.BlockSaveHandlers
) -> None:
    """Have only what differs be sent, if the target offers that, and nothing stands against it. Before setup."""
    if savevm.Ability.DELTA not in handlers.abilities:
        if parameters.resume and savevm.Ability.RESUME in handlers.abilities:
            handlers.resumes = True
            _compare(asked, handlers)
        return
    why_not = _why_not(parameters)
    if why_not:
        logger.warning("the target offers to compare old copies that it holds, and all is sent: %s", why_not)
    else:
        _compare(asked, handlers)


NOT_OFFERED = (
    "nothing can be resumed: the target does not offer to compare what it holds: it is a QEMU, an older "
    "blkmig, or one without blkmig[verify], a channel without an answer, it was told --incremental, or anybody "
    "can reach it (receive --allow NET); send without --resume"
)


def check_resumes(parameters: params.MigrationParameters, handlers: block.BlockSaveHandlers) -> None:
    """Raise :class:`~blkmig.errors.ParameterError` if the target was to go on where an earlier migration has ended,
    and cannot. Nothing was opened there."""
    if parameters.resume and handlers.take_answer is None:
        raise errors.ParameterError(NOT_OFFERED)


def _compare(asked: questions.Questions, handlers: block.BlockSaveHandlers) -> None:
    asked.digests.is_expected = True
    handlers.take_answer = asked.digests.take


def _why_not(parameters: params.MigrationParameters) -> str:
    if not parameters.delta:
        return "--no-delta was said"
    if parameters.shared_base:
        return "with --incremental only what the top layers hold is sent"
    return "" if block.can_hash() else block.MISSING


# -- the receiving side ----------------------------------------------------------------------------------------------


def abilities(parameters: params.IncomingParameters, is_exposed: bool) -> savevm.Ability:
    """Return what HELLO offers: to compare at once, or if the source resumes; nothing of that to who may be anybody."""
    if is_exposed:
        return savevm.OURS & ~(savevm.Ability.DELTA | savevm.Ability.RESUME)
    if parameters.compares:
        return savevm.OURS & ~savevm.Ability.RESUME
    return savevm.OURS & ~(savevm.Ability.DELTA | (savevm.Ability.RESUME if parameters.incremental else 0))


def why_not_resumed(parameters: params.IncomingParameters, is_exposed: bool) -> str:
    """Return why a receiver offers nothing to a source that resumes; "" if it does."""
    if abilities(parameters, is_exposed) & (savevm.Ability.DELTA | savevm.Ability.RESUME) and block.can_hash():
        return ""
    return (
        "nothing can be resumed here: anybody can reach this receiver (--allow NET), it was told --incremental, or it "
        "lacks blkmig[verify]"
    )


class Answering:
    """What answers the questions of one stream: nothing, until somebody asks for it."""

    def __init__(self, loader: savevm.LoadVM) -> None:
        self._loader = loader
        self._answers: block.Answers | None = None

    def open(self) -> block.Answers:
        """Return what answers from now on; call it once."""
        self._answers = block.Answers(self._loader.way_back.digest)
        return self._answers

    def link_lost(self) -> None:
        """Have nothing be said of what was asked on a link that was lost. Blocks for one block that is read."""
        if self._answers is not None:
            self._answers.link_lost()

    def stop(self) -> None:
        """Answer nothing any more, nor what was asked. Blocks for one block that is read. Twice does no harm."""
        if self._answers is not None:
            self._answers.stop()

    def close(self) -> None:
        """Answer what was asked, and nothing any more. Blocks. Twice does no harm."""
        if self._answers is not None:
            self._answers.close()


def answering(loader: savevm.LoadVM) -> contextlib.closing[Answering]:
    """Have the questions of a stream be answered while it is loaded, from `begin` on."""
    return contextlib.closing(Answering(loader))


def check_table(
    parameters: params.IncomingParameters, table: Sequence[block.TableDisk], position: int, is_exposed: bool
) -> bool:
    """Return whether the disks of a table are resumed. Raises StreamError if that was not offered."""
    resumes = any(entry.resumes for entry in table)
    if resumes and savevm.Ability.RESUME not in abilities(parameters, is_exposed):
        raise errors.StreamError("the table resumes disks, which nobody has offered", position=position)
    if resumes and not block.can_hash():
        raise errors.ParameterError(f"what is left of the disks cannot be compared: {block.MISSING}")
    return resumes


def begin(
    answers: Answering | None,
    parameters: params.IncomingParameters,
    handlers: block.BlockLoadHandlers,
    table: Sequence[block.TableDisk],
    devices: Mapping[bytes, block.BlkLoadDevice],
    has_come: Callable[[], None],
) -> None:
    """Compare the disks of a table, if there are old copies, or they are resumed; `devices` are where they go.

    `has_come` is told of each question: nothing else comes of disks that are equal.
    """

    def counted(take: block.OnExtra) -> block.OnExtra:
        def take_and_count(body: bytes, position: int) -> None:
            take(body, position)
            has_come()

        return take_and_count

    if answers is not None and (parameters.compares or any(entry.resumes for entry in table)):
        found = answers.open()
        handlers.on_extra |= {ExtraKind.ASK: counted(found.ask), ExtraKind.SAME: counted(found.same)}
        found.begin(table, devices)


def link_lost(answers: Answering | None) -> None:
    """Forget what was asked on a link that was lost, before anything else is said to the source. Blocks shortly."""
    if answers is not None:
        answers.link_lost()


def stop(answers: Answering | None) -> None:
    """Answer nothing any more, nor what was asked: the disks are closed. Blocks shortly."""
    if answers is not None:
        answers.stop()


def end(answers: Answering | None) -> None:
    """Answer nothing any more: nothing is compared behind the bulk phase, and the disks may be let go. Blocks."""
    if answers is not None:
        answers.close()


def note_what_was_not(
    parameters: params.IncomingParameters, statistics: stats.IncomingStatistics, is_exposed: bool
) -> None:
    """Say that all of the disks came although there are old copies, if it is so."""
    if parameters.compares and is_exposed:
        statistics.notes.append(EXPOSED)
    elif parameters.compares and not any(disk.same_bytes for disk in statistics.disks.values()):
        statistics.notes.append("nothing was the same as in the old copies, or the source did not compare: all came")
