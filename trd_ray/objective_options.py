"""From a method to what the learner computes: the objective's options, and the targets it needs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trd_ray.choices import (
    Clip,
    Divergence,
    Estimator,
    Reward,
    ScoreMethod,
    Support,
    TeacherWeights,
    TokenGate,
)
from trd_ray.config import LoraConfig, MethodConfig
from trd_ray.custom_functions import divergence_function
from trd_ray.losses.options import DivergenceOptions, GateOptions, ObjectiveOptions, RewardOptions


class TargetKind(StrEnum):
    """What the samples of a batch bring along as the teacher's side."""

    NONE = "no target"
    HIDDEN = "TeacherHidden"
    TOP_K = "TopKTargets"
    DEFERRED = "DeferredTarget"


class TeacherPlace(StrEnum):
    """Where the learner finds the teacher of samples that it scores itself."""

    NONE = "none"
    """It scores none."""
    ADAPTERS_OFF = "adapters_off"
    """Its own model without its adapters: the student's initial weights."""
    COPY = "copy"
    """A frozen model beside the student."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveNeeds:
    """What a micro-batch must bring along for a method."""

    target: TargetKind
    top_k: int
    """K of `TopKTargets`."""
    rollout_logprobs: bool
    """The behaviour policy's log-probabilities, for a clipped ratio."""
    advantages: bool


def objective_options(method: MethodConfig) -> ObjectiveOptions:
    """The options of `losses.chunked_objective` for a method."""
    return ObjectiveOptions(
        divergence=_divergence_options(method),
        gate=None
        if method.gate.kind is TokenGate.NONE
        else GateOptions(threshold=method.gate.threshold, coef=method.gate.coef, top_k=method.gate.top_k),
        reward=None
        if method.reward.kind is Reward.NONE
        else RewardOptions(coef=method.reward.coef, clip=method.reward.clip),
    )


def objective_needs(method: MethodConfig, score: ScoreMethod) -> ObjectiveNeeds:
    """What each sample must hold if the teacher scores by `score`."""
    by_ratio = (
        method.divergence is Divergence.REVERSE_KL
        and method.support is Support.SAMPLED
        and method.estimator is Estimator.POLICY_GRADIENT
    )
    rewarded = method.reward.kind is not Reward.NONE
    return ObjectiveNeeds(
        target=_target_kind(method, score),
        top_k=method.num_targets,
        rollout_logprobs=by_ratio or rewarded,
        advantages=rewarded,
    )


def teacher_place(method: MethodConfig, score: ScoreMethod, lora: LoraConfig) -> TeacherPlace:
    """Which model computes the hidden states of samples that the learner scores."""
    if _target_kind(method, score) is not TargetKind.DEFERRED:
        return TeacherPlace.NONE
    if method.teacher_weights is TeacherWeights.INITIAL and lora.rank > 0:
        return TeacherPlace.ADAPTERS_OFF
    return TeacherPlace.COPY


def _target_kind(method: MethodConfig, score: ScoreMethod) -> TargetKind:
    if not method.scores:
        return TargetKind.NONE
    return {
        ScoreMethod.HIDDEN: TargetKind.HIDDEN,
        ScoreMethod.FUSED: TargetKind.TOP_K,
        ScoreMethod.PREFILL: TargetKind.TOP_K,
        ScoreMethod.LEARNER: TargetKind.DEFERRED,
    }[score]


def _divergence_options(method: MethodConfig) -> DivergenceOptions:
    clips = method.clip is not Clip.NONE
    return DivergenceOptions(
        divergence=method.divergence.value,
        function=divergence_function(method.divergence_function)
        if method.divergence is Divergence.CUSTOM
        else None,
        beta=method.beta,
        support=method.support.value,
        top_k=method.top_k if method.support is Support.TOP_K else None,
        renormalize=method.renormalize.value,
        tail=method.tail.value,
        clip=method.clip.value if clips else None,
        clip_max=method.clip_max if clips else None,
        estimator=method.estimator.value,
        ratio_clip=method.ratio_clip,
    )
