"""Exactly once: what the ledger refuses."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.trajectory_records import trajectory
from trd_ray.ledger import PromptCount, PromptLedger
from trd_ray.outcomes import Outcome, RejectReason


def numbered(index: int, *, consumed: bool = True):
    made = trajectory(correct=True)
    if not consumed:
        made = dataclasses.replace(made, outcome=Outcome.REJECTED, reason=RejectReason.EMPTY, target=None)
    return dataclasses.replace(made, prompt=dataclasses.replace(made.prompt, sample_index=index))


def test_each_prompt_is_consumed_or_rejected_or_pending():
    ledger = PromptLedger()
    made = [numbered(0), numbered(1, consumed=False), numbered(2)]
    ledger.admit(t.prompt for t in made)
    ledger.end(made[:2])
    assert ledger.count == PromptCount(num_in=3, num_consumed=1, num_rejected=1, num_pending=1)
    assert [p.sample_index for p in ledger.pending] == [2]


def test_a_prompt_that_ends_twice_is_an_error():
    ledger = PromptLedger()
    ledger.admit([numbered(0).prompt])
    ledger.end([numbered(0)])
    with pytest.raises(ValueError, match="ended before or was never drawn"):
        ledger.end([numbered(0)])


def test_a_prompt_that_is_drawn_while_it_is_pending_is_an_error():
    ledger = PromptLedger()
    ledger.admit([numbered(0).prompt])
    with pytest.raises(ValueError, match="drawn again"):
        ledger.admit([numbered(0).prompt])


def test_trajectories_are_ordered_as_their_prompts_were_drawn():
    ledger = PromptLedger()
    ledger.admit(numbered(i).prompt for i in (2, 0, 1))
    assert [t.prompt.sample_index for t in ledger.order([numbered(i) for i in range(3)])] == [2, 0, 1]


def test_a_restored_count_must_agree_with_the_pending_prompts():
    ledger = PromptLedger()
    ledger.restore(PromptCount(num_in=4, num_consumed=2, num_rejected=0, num_pending=2))
    ledger.admit_again(numbered(0).prompt)
    with pytest.raises(ValueError, match="lost or counted twice"):
        ledger.end([numbered(0)])
