# SPDX-License-Identifier: GPL-2.0-or-later
"""Which section carries the disks: ``blkmig`` if the target says that it takes it, else QEMU's ``block``.

::

    source   OPEN_RETURN_PATH ─ PING ──────────────────────── START "blkmig": TABLE ──────────── blocks
    target                          HELLO: versions                            REPLY: refusals

A QEMU, and a blkmig that does not know the question, answer it with PONG, and a program that only listens says nothing:
they get ``block``. The receiver takes either section, so a HELLO that comes late changes nothing.
"""

from __future__ import annotations

from .. import block, errors, params, savevm
from . import comparing, questions

ASK_SECONDS = 10.0
"""How long the target may take to say HELLO; no longer than it may take to answer at first."""


def agree(
    parameters: params.MigrationParameters,
    asked: questions.Questions,
    handlers: block.BlockSaveHandlers,
    state: savevm.SaveState,
    *,
    connect_timeout: float,
) -> block.Format:
    """Choose the section, before setup; the return path is open where there is one. Blocks while the target is asked.

    Raises :class:`~blkmig.errors.ParameterError` if it cannot be the one that was asked for.
    """
    chosen: block.Format = "block"
    if parameters.format != "block" and not parameters.is_for_qemu:
        seconds = min(ASK_SECONDS, connect_timeout)
        why_not = _why_not(parameters, asked, handlers, state, seconds)
        if why_not and parameters.format == "blkmig":
            raise errors.ParameterError(f"the section 'blkmig' cannot be sent: {why_not}; leave --format to 'auto'")
        chosen = "block" if why_not else "blkmig"
    handlers.format = chosen
    _check_compression(parameters, asked, handlers)
    if chosen != "block":
        state.rename_savevm("block", chosen)
    return chosen


def _check_compression(
    parameters: params.MigrationParameters, asked: questions.Questions, handlers: block.BlockSaveHandlers
) -> None:
    """Refuse what was asked for by name and cannot be; where nobody can be asked, the stream is what was asked for."""
    if parameters.compress != "zstd":
        return
    if handlers.format == "block":
        how = "say --format=blkmig" if not asked.is_answered else params.LEAVE_COMPRESS
        raise errors.ParameterError(f"nothing of the section 'block' is compressed: {how}")
    if not asked.is_answered:
        handlers.abilities |= savevm.Ability.ZSTD
    if savevm.Ability.ZSTD not in handlers.abilities:
        raise errors.ParameterError(
            "the target cannot decompress: it is an older blkmig, or has no Python library for zstd (pip install "
            f"'blkmig[zstd]' there); {params.LEAVE_COMPRESS}"
        )


def _why_not(
    parameters: params.MigrationParameters,
    asked: questions.Questions,
    handlers: block.BlockSaveHandlers,
    state: savevm.SaveState,
    seconds: float,
) -> str:
    """Return why it is not ``blkmig``; "" if it is."""
    if not handlers.disks.fits_table():
        return "its table takes 1 to 256 disks that are not read-only"
    hello = asked.ask_for_blkmig(state, seconds) if asked.is_answered else None
    if not asked.is_answered:  # or not any more
        return "" if parameters.format == "blkmig" else "nobody can be asked"
    if hello is None:
        return f"the target has not said within {seconds:g} s that it takes it: it is a QEMU, an older blkmig, or slow"
    if not hello.is_understood:
        return f"the target takes versions {hello.lowest} to {hello.highest} of it, and here is version 1"
    handlers.abilities = hello.common_abilities
    if savevm.Ability.PROOF in handlers.abilities and block.can_hash():
        handlers.prove_beside_stream()
    asked.ask_for_signs_of_life(state)
    comparing.agree(parameters, asked, handlers)
    return ""
