"""Frozen records that cross a boundary between roles.

Only plain Python and numpy live in them, so that each can be pickled by Ray and read in a
debugger. A record checks its own lengths when it is built. Axis letters: T response tokens,
P prompt tokens, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from trd_ray.id_packing import PackedIds, pack_ids, unpack_ids
from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.token_values import TokenValues

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
    """The student's own answer y_o."""
    REFINED = "refined"
    """The teacher's rewrite y_r of it."""
    SPLICED = "spliced"
    """The good beginning of y_o, token for token, and the teacher's continuation."""
    SPECULATIVE = "speculative"
    """Drafted by the student in blocks; unlikely tokens replaced by the teacher's (SKD)."""
    TEACHER = "teacher"
    """The teacher's own answer (sequence-level distillation)."""
    REFERENCE = "reference"
    """The reference solution y* of the data (supervised fine-tuning)."""


class TeacherContext(StrEnum):
    """The tokens before the trajectory when the teacher scores it."""

    PROMPT = "prompt"
    PRIVILEGED = "privileged"
    REFINE = "refine"


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
    first_wrong_char: int | None = None
    """Where in the text that step begins, in characters; None where `first_wrong_step` is None."""


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

    @property
    def num_tokens(self) -> int:
        return len(self.hidden)


@dataclass(frozen=True, kw_only=True, slots=True)
class TopKTargets:
    """The teacher's log-probabilities of a few tokens at each position, in flat arrays.

    They are the model's own, over its whole vocabulary: before temperature, top-p and top-k.
    """

    topk_ids: IntArray
    """[T, K] the K most likely tokens of the teacher, most likely first. K may be 0."""
    topk_logprobs: npt.NDArray[np.floating[Any]]
    """[T, K] in nats, <= 0. float32, or float16 as engines send it: off by at most
    `2**-11 |logprob|`, so a KL over them by at most `2**-11` of the teacher's entropy."""
    token_logprobs: FloatArray
    """[T] of the trajectory's own token."""

    def __post_init__(self) -> None:
        shape = self.topk_ids.shape
        if len(shape) != 2 or self.topk_logprobs.shape != shape or self.token_logprobs.shape != shape[:1]:
            raise ValueError(
                f"TopKTargets: topk_ids has shape {shape}, topk_logprobs {self.topk_logprobs.shape}, "
                f"token_logprobs {self.token_logprobs.shape}; expected [T, K], [T, K] and [T]"
            )
        if self.topk_logprobs.dtype not in (np.float16, np.float32):
            raise ValueError(f"TopKTargets: topk_logprobs are {self.topk_logprobs.dtype}, not float16 or 32")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with as few bits an id as the largest needs; nothing is lost."""
        return _unpack_topk, (pack_ids(self.topk_ids), self.topk_logprobs, self.token_logprobs)

    @property
    def num_tokens(self) -> int:
        return len(self.token_logprobs)


def _unpack_topk(ids: PackedIds, topk: npt.NDArray[np.floating[Any]], own: FloatArray) -> TopKTargets:
    return TopKTargets(topk_ids=unpack_ids(ids), topk_logprobs=topk, token_logprobs=own)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeferredTarget:
    """Nothing was computed yet: the learner runs the teacher itself, after these tokens."""

    context_ids: IntArray
    """[P'] at least one."""


Target = TeacherHidden | TopKTargets | DeferredTarget
"""What a trajectory's divergence is computed from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCompletion:
    """What the teacher generated, with its distributions if they were asked for."""

    completion: Completion
    targets: TopKTargets | None = None
    """[T] positions of `completion`; None unless asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftVerdict:
    """The teacher's judgement of a block that the student drafted (speculative distillation)."""

    num_accepted: int
    """First tokens of the draft that are all among the teacher's top k. 0 to the draft's length."""
    replacement: int | None
    """The teacher's own token for the first that is not; None if all are accepted."""
    replacement_ends: bool = False
    """The replacement is an end token of the teacher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """The record of one prompt from its first token to the learner. Kept whole, consumed or not."""

    prompt: Prompt
    rollout: Rollout | None
    """None where the method lets the student answer nothing."""
    refinement: Refinement | None
    """None where the method does not refine. Of a spliced trajectory, what the teacher generated:
    the continuation alone, or with the `first_difference` locator the whole rewrite."""
    source: TrajectorySource
    """Where `token_ids` come from; `rollout` also where a gate refused the refinement."""
    token_ids: IntArray
    """[T] the response tokens that are trained on; [0] if they were never made."""
    text: str
    """`token_ids` decoded, for graders and people only."""
    grade: Grade | None
    """Of `text`; None if the tokens were never made."""
    policy_version_min: int | None
    """Oldest student weights that made a token of the rollout or trajectory; None if none did."""
    policy_version_max: int | None
    num_kept: int = 0
    """Tokens of `token_ids` that the student made: of a spliced one its beginning, of a speculative
    one those that the teacher accepted. Of a rollout in place of a refused splice, what that had kept."""
    teacher_context: TeacherContext
    teacher_context_ids: IntArray
    """[P'] the tokens before `token_ids` when the teacher scores."""
    outcome: Outcome
    reason: RejectReason
    gate_reason: RejectReason = RejectReason.NONE
    """Why the refinement gate refused the refinement; what is trained on then is an option."""
    target: Target | None = None
    """None until scored, for a rejected trajectory, and where no teacher scores."""

    def __post_init__(self) -> None:
        if (self.outcome is Outcome.REJECTED) != (self.reason is not RejectReason.NONE):
            raise ValueError(f"Trajectory: outcome {self.outcome!s} does not go with reason {self.reason!s}")
        _require_one_a_token(self.target, num_tokens=len(self.token_ids), where="Trajectory")


def _require_one_a_token(target: Target | None, *, num_tokens: int, where: str) -> None:
    if isinstance(target, TeacherHidden | TopKTargets) and target.num_tokens != num_tokens:
        raise ValueError(
            f"{where}: {type(target).__name__} has {target.num_tokens} positions for {num_tokens} tokens; "
            "expected one a token"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSample:
    """What the learner needs of one trajectory."""

    prompt_ids: IntArray
    """[P] the student's prompt."""
    response_ids: IntArray
    """[T] loss tokens: each of them is a target, none of the prompt is."""
    target: Target | None
    """None where the loss needs no teacher distribution."""
    rollout_logprobs: FloatArray | None = None
    """[T] log-probability of each response token under the policy that sampled it; None unless the
    student sampled them all."""
    advantage: float = 0.0
    """Of the whole response, for the reward term."""
    index: int = 0
    """Which of the step's samples this is, before they were packed."""

    def __post_init__(self) -> None:
        _require_one_a_token(self.target, num_tokens=len(self.response_ids), where="TrainingSample")
        if self.rollout_logprobs is not None and self.rollout_logprobs.shape != self.response_ids.shape:
            raise ValueError(
                f"TrainingSample: rollout_logprobs has shape {self.rollout_logprobs.shape}, response_ids "
                f"{self.response_ids.shape}; expected one and the same [T]"
            )

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
    """Response tokens of the whole step over all ranks: the normaliser `token`."""
    num_trajectories: int
    """Samples of the whole step over all ranks: the normaliser `trajectory`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerStep:
    """What one optimizer step did."""

    learner_step: int
    policy_version: int
    loss: float
    """The objective of the whole step over all ranks, in nats; a mean over tokens or trajectories."""
    grad_norm: float
    """Global L2 norm before clipping."""
    learning_rate: float
    num_loss_tokens: int
    student_logprob_mean: float | None
    """Mean over samples of the mean student logprob of their tokens, before the step."""
    learn_s: float
    token_values: TokenValues | None = None
    """Of the batch's tokens, in its order; of one rank its own only. None if not recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncReport:
    """What one push of weights did."""

    policy_version: int
    num_parameters: int
    num_bytes: int
    checksum: str
    """Of what was sent, to compare with that of each engine; empty if it is not: see `WeightSender.send`."""
    sync_s: float


def nothing_pushed(policy_version: int) -> SyncReport:
    """Of a step whose weights reached nobody."""
    return SyncReport(policy_version=policy_version, num_parameters=0, num_bytes=0, checksum="", sync_s=0.0)
