"""Frozen records that cross a boundary between roles.

Only plain Python and numpy live in them, so that each can be pickled by Ray and read in a
debugger. A record checks its own lengths when it is built. Axis letters: T response tokens,
P prompt tokens, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


class StopReason(StrEnum):
    """Why an engine stopped generating."""

    STOP = "stop"
    """An end token was generated; it is the last of `token_ids`."""
    LENGTH = "length"
    """The output budget was used up before an end token."""
    ABORT = "abort"
    """The engine dropped the request."""


class TrajectorySource(StrEnum):
    """Where the tokens that are trained on come from."""

    ROLLOUT = "rollout"
    REFINED = "refined"


class TeacherContext(StrEnum):
    """The tokens before the trajectory when the teacher scores it."""

    PROMPT = "prompt"
    PRIVILEGED = "privileged"
    REFINE = "refine"


class Outcome(StrEnum):
    """How a prompt of an epoch ended."""

    CONSUMED = "consumed"
    REJECTED = "rejected"


class RejectReason(StrEnum):
    """Why a trajectory was not trained on. `NONE` for a consumed one."""

    NONE = ""
    EMPTY = "empty"
    NON_FINITE = "non_finite"
    REFINE_TRUNCATED = "refine_truncated"
    PROMPT_TOO_LONG = "prompt_too_long"
    ABORTED = "aborted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One data row."""

    prompt_id: str
    """Unique within its data set and stable between runs."""
    problem: str
    answer: str
    """The final answer that a grader compares with."""
    reference: str | None = None
    """The reference solution y*; None if the data has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """What a grader says of one solution text."""

    correct: bool
    answer: str | None
    """The final answer found in the text; None if there is none."""
    num_steps: int = 0
    """Steps found in the text; 0 where the task does not know steps."""
    first_wrong_step: int | None = None
    """Index from 0 of the first wrong, malformed or missing step; None if there is none or it
    is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One request for a rollout."""

    problem: Problem
    epoch: int
    sample_index: int
    """Which of the rollouts of this problem in this step, from 0."""
    token_ids: IntArray
    """[P] the student's prompt, chat template applied."""
    seed: int
    """Seed of the sampler for this request, in [0, 2**31)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What an engine generated for one request."""

    token_ids: IntArray
    """[T] as the engine returned them, never re-encoded; ends with the end token on STOP."""
    logprobs: FloatArray
    """[T] log-probability of each token under the distribution it was sampled from the model
    with (temperature 1, before top-p and top-k), <= 0."""
    text: str
    """Decoded without special tokens, for graders and people only."""
    stop_reason: StopReason
    policy_version_min: int
    """Smallest policy version that made a token of this completion."""
    policy_version_max: int

    def __post_init__(self) -> None:
        if self.token_ids.shape != self.logprobs.shape or self.token_ids.ndim != 1:
            raise ValueError(
                f"Completion: token_ids has shape {self.token_ids.shape}, logprobs has shape "
                f"{self.logprobs.shape}; expected one and the same [T]"
            )
        if self.policy_version_min > self.policy_version_max:
            raise ValueError(
                f"Completion: policy_version_min {self.policy_version_min} is above "
                f"policy_version_max {self.policy_version_max}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """The student's own answer y_o."""

    prompt: Prompt
    completion: Completion
    grade: Grade


@dataclass(frozen=True, kw_only=True, slots=True)
class RefinePrompt:
    """The teacher's prompt for rewriting one rollout."""

    token_ids: IntArray
    """[P] chat template applied."""
    num_cut_rollout_tokens: int
    """Tokens cut from the tail of y_o to make the prompt fit."""
    num_cut_reference_tokens: int
    """Tokens cut from the tail of y*, only after all that may be cut of y_o is cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refinement:
    """The teacher's rewrite y_r of one rollout."""

    prompt: RefinePrompt
    completion: Completion
    grade: Grade


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherHidden:
    """The teacher's final hidden states, from which the learner makes exact logits."""

    hidden: npt.NDArray[np.generic]
    """[T, D] state that predicts each response token, after the final norm. float32, or the
    bits of bfloat16 in uint16."""

    def __post_init__(self) -> None:
        if self.hidden.ndim != 2 or self.hidden.dtype not in (np.float32, np.uint16):
            raise ValueError(
                f"TeacherHidden: got shape {self.hidden.shape} and dtype {self.hidden.dtype}; "
                "expected [T, D] in float32, or uint16 holding bfloat16 bits"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """The record of one prompt from rollout to learner. Kept whole whether consumed or not."""

    rollout: Rollout
    refinement: Refinement | None
    """None where the method does not refine."""
    source: TrajectorySource
    token_ids: IntArray
    """[T] the response tokens that are trained on."""
    teacher_context: TeacherContext
    teacher_context_ids: IntArray
    """[P'] the tokens before `token_ids` when the teacher scores."""
    outcome: Outcome
    reason: RejectReason
    teacher_hidden: TeacherHidden | None
    """None until scored, and for a rejected trajectory."""

    def __post_init__(self) -> None:
        if (self.outcome is Outcome.REJECTED) != (self.reason is not RejectReason.NONE):
            raise ValueError(f"Trajectory: outcome {self.outcome!s} does not go with reason {self.reason!s}")
        if self.teacher_hidden is not None and len(self.teacher_hidden.hidden) != len(self.token_ids):
            raise ValueError(
                f"Trajectory: {len(self.teacher_hidden.hidden)} teacher hidden states for "
                f"{len(self.token_ids)} tokens; expected one a token"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSample:
    """What the learner needs of one trajectory."""

    prompt_ids: IntArray
    """[P] the student's prompt."""
    response_ids: IntArray
    """[T] loss tokens: each of them is a target, none of the prompt is."""
    teacher_hidden: TeacherHidden
    policy_version: int
    """Smallest policy version among the rollout's tokens."""

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingBatch:
    """One optimizer step, already split: `micro_batches[rank][i]` are padded together."""

    learner_step: int
    """The step that this batch makes, from 1."""
    micro_batches: tuple[tuple[tuple[TrainingSample, ...], ...], ...]
    """Same number of micro-batches on each rank (a short rank ends with empty ones)."""
    num_loss_tokens: int
    """Response tokens of the whole step over all ranks: the normaliser of the loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerStep:
    """What one optimizer step did."""

    learner_step: int
    policy_version: int
    loss: float
    """Mean divergence per response token over all ranks, in nats."""
    grad_norm: float
    """Global L2 norm before clipping."""
    learning_rate: float
    num_loss_tokens: int
    learn_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncReport:
    """What one push of weights did."""

    policy_version: int
    num_parameters: int
    num_bytes: int
    checksum: str
    """SHA-256 over names, shapes and bytes in order; the same on the learner and each generator."""
    sync_s: float
