"""Which methods contradict themselves, and what a method is called."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from trd_ray.choices import (
    Clip,
    Divergence,
    Estimator,
    OnRefusal,
    RefineGate,
    Reward,
    ScoreMethod,
    Support,
    TeacherWeights,
    TokenGate,
)
from trd_ray.config import (
    MethodConfig,
    PipelineConfig,
    RefineGateConfig,
    RewardConfig,
    TeacherConfig,
    TokenGateConfig,
    TrdConfig,
)
from trd_ray.errors import ConfigError
from trd_ray.types import TeacherContext, TrajectorySource

ROLLOUT = MethodConfig(trajectory=TrajectorySource.ROLLOUT, teacher_context=TeacherContext.PROMPT)
GRPO = RewardConfig(kind=Reward.GRPO)
INSTEAD = RefineGateConfig(kind=RefineGate.ACCEPT_CORRECT, on_refusal=OnRefusal.ROLLOUT)

CONTRADICTIONS: list[tuple[str, Callable[[], object]]] = [
    ("method.teacher_context", lambda: replace(ROLLOUT, teacher_context=TeacherContext.REFINE)),
    ("method.teacher_context", lambda: replace(ROLLOUT, teacher_context=TeacherContext.PRIVILEGED)),
    ("method.clip", lambda: replace(ROLLOUT, divergence=Divergence.NLL, clip=Clip.TOKEN)),
    ("method.support", lambda: replace(ROLLOUT, divergence=Divergence.NLL, support=Support.TOP_K)),
    (
        "method.gate.kind",
        lambda: replace(ROLLOUT, divergence=Divergence.NLL, gate=TokenGateConfig(kind=TokenGate.ENTROPY)),
    ),
    ("method.divergence", lambda: replace(ROLLOUT, divergence=Divergence.NONE)),
    ("method.reward.kind", lambda: MethodConfig(reward=GRPO)),
    ("method.support", lambda: replace(ROLLOUT, divergence=Divergence.JSD, support=Support.SAMPLED)),
    ("method.trajectory", lambda: MethodConfig(divergence=Divergence.REVERSE_KL, support=Support.SAMPLED)),
    ("method.trajectory", lambda: replace(ROLLOUT, support=Support.SAMPLED)),
    ("method.clip", lambda: MethodConfig(support=Support.SAMPLED, clip=Clip.ENTRY)),
    (
        "method.trajectory",
        lambda: MethodConfig(trajectory=TrajectorySource.SPLICED, support=Support.SAMPLED),
    ),
    ("method.refine_gate.on_refusal", lambda: MethodConfig(support=Support.SAMPLED, refine_gate=INSTEAD)),
    ("method.refine_gate.on_refusal", lambda: MethodConfig(divergence=Divergence.NLL, refine_gate=INSTEAD)),
    (
        "method.refine_gate.kind",
        lambda: replace(ROLLOUT, refine_gate=RefineGateConfig(kind=RefineGate.FAILED_ONLY)),
    ),
    (
        "method.refine_gate.on_refusal",
        lambda: MethodConfig(refine_gate=RefineGateConfig(on_refusal=OnRefusal.ROLLOUT)),
    ),
    ("pipeline.rollouts_per_prompt", lambda: TrdConfig(method=replace(ROLLOUT, reward=GRPO))),
    ("teacher.score", lambda: TrdConfig(teacher=TeacherConfig(score=ScoreMethod.FUSED))),
    (
        "teacher.score",
        lambda: TrdConfig(
            method=replace(ROLLOUT, support=Support.TOP_K), teacher=TeacherConfig(score=ScoreMethod.FUSED)
        ),
    ),
    (
        "teacher.score",
        lambda: TrdConfig(
            method=MethodConfig(support=Support.TOP_K, gate=TokenGateConfig(kind=TokenGate.ENTROPY)),
            teacher=TeacherConfig(score=ScoreMethod.PREFILL),
        ),
    ),
    ("teacher.score", lambda: TrdConfig(method=MethodConfig(teacher_weights=TeacherWeights.EMA))),
]


@pytest.mark.parametrize(("key", "make"), CONTRADICTIONS)
def test_contradictions_are_named_by_their_key_and_remedied(key: str, make: Callable[[], object]):
    with pytest.raises(ConfigError) as error:
        make()
    assert re.search(rf"where: +{re.escape(key)}\n", str(error.value))
    assert "remedy" in str(error.value)


def test_grpo_beside_a_divergence_is_a_method():
    method = replace(ROLLOUT, reward=GRPO)
    config = TrdConfig(method=method, pipeline=PipelineConfig(rollouts_per_prompt=4))
    assert config.method.scores
    assert "plus group-relative policy gradient (GRPO)" in method.sentence()


def test_sentences():
    assert MethodConfig().sentence() == (
        "Forward KL, full vocabulary, on refinements of every rollout, scored under the refinement prompt, "
        "teacher: an external model."
    )
    sampled = replace(
        ROLLOUT, divergence=Divergence.REVERSE_KL, support=Support.SAMPLED, estimator=Estimator.K3
    )
    assert sampled.sentence().startswith("Reverse KL, sampled tokens (k3 estimate), on rollouts, ")
    sft = replace(ROLLOUT, trajectory=TrajectorySource.REFERENCE, divergence=Divergence.NLL)
    assert sft.sentence() == "Negative log-likelihood, on reference solutions."


def test_who_is_needed_follows_from_the_method():
    sft = TrdConfig(method=replace(ROLLOUT, trajectory=TrajectorySource.REFERENCE, divergence=Divergence.NLL))
    assert (sft.teacher_group, sft.needs_reference) == (False, True)
    prefill = TrdConfig(
        method=replace(ROLLOUT, support=Support.TOP_K), teacher=TeacherConfig(score=ScoreMethod.PREFILL)
    )
    assert (prefill.teacher_engine, prefill.teacher_scorer) == (True, False)
    moving = TrdConfig(
        method=MethodConfig(teacher_weights=TeacherWeights.EMA),
        teacher=TeacherConfig(score=ScoreMethod.LEARNER),
    )
    assert (moving.pushes_teacher, moving.teacher_scorer) == (True, False)
    assert moving.teacher_model == moving.student.model


def test_a_method_without_a_teacher_does_not_look_for_its_model():
    grpo = TrdConfig(
        method=replace(ROLLOUT, reward=GRPO, divergence=Divergence.NONE),
        teacher=TeacherConfig(model="/nowhere"),
        pipeline=PipelineConfig(rollouts_per_prompt=2),
    )
    assert grpo.teacher_model == grpo.student.model
