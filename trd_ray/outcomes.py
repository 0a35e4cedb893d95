"""How a prompt of an epoch ends, and why one was not trained on."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """How a prompt of an epoch ended."""

    CONSUMED = "consumed"
    REJECTED = "rejected"


class RejectReason(StrEnum):
    """Why a trajectory was not trained on, or a gate refused a refinement. `NONE` if neither."""

    NONE = ""
    EMPTY = "empty"
    NON_FINITE = "non_finite"
    REFINE_TRUNCATED = "refine_truncated"
    PROMPT_TOO_LONG = "prompt_too_long"
    ABORTED = "aborted"
    UNKNOWN_TOKEN = "unknown_token"
    """An id that the shared tokenizer does not have: a padding row of the model."""
    ROLLOUT_CORRECT = "rollout_correct"
    """Gate `failed_only`: there was nothing to mend."""
    REFINEMENT_WRONG = "refinement_wrong"
    """Gate `accept_correct`."""
    REFINEMENT_WORSE = "refinement_worse"
    """Gate `accept_not_worse`: a right rollout became a wrong refinement."""
    LOW_SUPPORT = "low_support"
    """Gate `min_support`: the student finds the refinement too unlikely."""
    GATE_FUNCTION = "gate_function"
    """Gate `custom`: the user's function refused it."""
    STALE = "stale"
    """Older than `pipeline.max_staleness` when the learner came to it."""
    OVER_LENGTH = "over_length"
    """More tokens than were asked for."""
    ECHO = "echo"
    """The refinement repeats the prompt instead of rewriting the rollout."""
