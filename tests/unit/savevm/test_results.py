# SPDX-License-Identifier: GPL-2.0-or-later
"""What a receiver says of the proofs, read as it was said, and nothing else."""

from __future__ import annotations

import pytest
import savevm_streams as streams

from blkmig import errors
from blkmig.savevm import Outcome, ProofResult, return_path
from blkmig.savevm.results import MAX_TEXT, MIG_RP_MSG_PROOF_RESULT


def message(data: bytes) -> bytes:
    return MIG_RP_MSG_PROOF_RESULT.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data


@pytest.mark.parametrize(
    "said",
    [
        ProofResult(Outcome.UNDER_WAY, 7, 3),
        ProofResult(Outcome.EQUAL),
        ProofResult(Outcome.DIFFERS, 0, 0, 255, (1 << 63) - 512, 512),
        ProofResult(Outcome.FAILED, text="no such luck"),
    ],
)
def test_round_trip(said: ProofResult) -> None:
    with streams.reading(message(said.encode())) as f:
        assert return_path.read_message(f) == (MIG_RP_MSG_PROOF_RESULT, said)


def test_long_texts_are_cut() -> None:
    with streams.reading(message(ProofResult(Outcome.FAILED, text="x" * 5000).encode())) as f:
        _, said = return_path.read_message(f)
    assert isinstance(said, ProofResult)
    assert said.text == "x" * MAX_TEXT


@pytest.mark.parametrize(
    "data",
    [
        ProofResult(Outcome.EQUAL).encode()[:-1],
        ProofResult(Outcome.EQUAL).encode() + b"x",
        b"\4" + ProofResult(Outcome.EQUAL).encode()[1:],
        ProofResult(Outcome.FAILED, text="x" * MAX_TEXT).encode() + b"x",
    ],
)
def test_what_no_receiver_says(data: bytes) -> None:
    with streams.reading(message(data)) as f, pytest.raises(errors.StreamError):
        return_path.read_message(f)
