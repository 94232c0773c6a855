# SPDX-License-Identifier: GPL-2.0-or-later
"""The migration stream around the disks: registry, sections, configuration, end of file, description.

Knows neither disks nor policy: what a section's payload holds is its handlers' business.
"""

from typing import TYPE_CHECKING

from .. import later

if TYPE_CHECKING:
    from .bundles import ID_NBYTES, MAX_COUNT, MIG_CMD_BUNDLE, PREFACE_NBYTES, Bundle, Bundled
    from .commands import Answer
    from .configuration import Configuration
    from .container import (
        GIVEN_UP,
        NOTHING,
        QEMU_VM_FILE_MAGIC,
        QEMU_VM_SECTION_FOOTER,
        ContainerFormat,
        looks_like_footer,
    )
    from .digestwords import Digest
    from .handlers import SaveVMHandlers
    from .handover import Commit, End, Kind, parse_commit, parse_end
    from .header import HEADER_NBYTES
    from .load import LoadVM
    from .results import Outcome, ProofResult
    from .return_path import (
        DAMAGED,
        MIG_RP_MSG_PONG,
        MIG_RP_MSG_SHUT,
        PATIENCE,
        WRONG_BASE,
        Patience,
        Reason,
        await_shut,
        describe_status,
        find_reason,
        last_words,
        read_message,
        send_word,
    )
    from .savestate import SaveState
    from .sessions import (
        AGAIN_MAGIC,
        AGAIN_NBYTES,
        FIRST_INCARNATION,
        KEY_NBYTES,
        MAX_SECONDS,
        RESUME_MAGIC,
        Resumed,
        Session,
        SessionAnswer,
        Waiting,
        parse_again,
        parse_session,
    )
    from .stream import Behind, LoadedStream, SectionInfo, StreamObserver
    from .words import (
        ASK,
        ASK_ALIVE,
        ASK_TREES,
        KNOWS_TREES,
        MIG_RP_MSG_ACK,
        MIG_RP_MSG_READY,
        OURS,
        Ability,
        Alive,
        Done,
        Failure,
        Hello,
        Refusal,
        Reply,
        Word,
    )

__all__ = [
    "AGAIN_MAGIC",
    "AGAIN_NBYTES",
    "ASK",
    "ASK_ALIVE",
    "ASK_TREES",
    "DAMAGED",
    "FIRST_INCARNATION",
    "GIVEN_UP",
    "HEADER_NBYTES",
    "ID_NBYTES",
    "KEY_NBYTES",
    "KNOWS_TREES",
    "MAX_COUNT",
    "MAX_SECONDS",
    "MIG_CMD_BUNDLE",
    "MIG_RP_MSG_ACK",
    "MIG_RP_MSG_PONG",
    "MIG_RP_MSG_READY",
    "MIG_RP_MSG_SHUT",
    "NOTHING",
    "OURS",
    "PATIENCE",
    "PREFACE_NBYTES",
    "QEMU_VM_FILE_MAGIC",
    "QEMU_VM_SECTION_FOOTER",
    "RESUME_MAGIC",
    "WRONG_BASE",
    "Ability",
    "Alive",
    "Answer",
    "Behind",
    "Bundle",
    "Bundled",
    "Commit",
    "Configuration",
    "ContainerFormat",
    "Digest",
    "Done",
    "End",
    "Failure",
    "Hello",
    "Kind",
    "LoadVM",
    "LoadedStream",
    "Outcome",
    "Patience",
    "ProofResult",
    "Reason",
    "Refusal",
    "Reply",
    "Resumed",
    "SaveState",
    "SaveVMHandlers",
    "SectionInfo",
    "Session",
    "SessionAnswer",
    "StreamObserver",
    "Waiting",
    "Word",
    "await_shut",
    "describe_status",
    "find_reason",
    "last_words",
    "looks_like_footer",
    "parse_again",
    "parse_commit",
    "parse_end",
    "parse_session",
    "read_message",
    "send_word",
]

__getattr__ = later.opener(
    __name__,
    bundles="ID_NBYTES MAX_COUNT MIG_CMD_BUNDLE PREFACE_NBYTES Bundle Bundled",
    commands="Answer",
    configuration="Configuration",
    container="GIVEN_UP NOTHING QEMU_VM_FILE_MAGIC QEMU_VM_SECTION_FOOTER ContainerFormat looks_like_footer",
    digestwords="Digest",
    handlers="SaveVMHandlers",
    handover="Commit End Kind parse_commit parse_end",
    header="HEADER_NBYTES",
    load="LoadVM",
    results="Outcome ProofResult",
    return_path="DAMAGED MIG_RP_MSG_PONG MIG_RP_MSG_SHUT PATIENCE WRONG_BASE Patience Reason await_shut "
                "describe_status find_reason last_words read_message send_word",
    savestate="SaveState",
    sessions="AGAIN_MAGIC AGAIN_NBYTES FIRST_INCARNATION KEY_NBYTES MAX_SECONDS RESUME_MAGIC Resumed Session "
             "SessionAnswer Waiting parse_again parse_session",
    stream="Behind LoadedStream SectionInfo StreamObserver",
    words="ASK ASK_ALIVE ASK_TREES KNOWS_TREES MIG_RP_MSG_ACK MIG_RP_MSG_READY OURS Ability Alive Done Failure "
          "Hello Refusal Reply Word",
)
