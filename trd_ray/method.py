"""Which points of the algorithm matrix make sense, and how a point is said in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trd_ray.checks import require
from trd_ray.choices import (
    Clip,
    Divergence,
    Estimator,
    Locator,
    OnRefusal,
    RefineGate,
    Renormalize,
    Reward,
    ScoreMethod,
    Support,
    Tail,
    TeacherWeights,
    TokenGate,
)
from trd_ray.types import TeacherContext, TrajectorySource

if TYPE_CHECKING:
    from trd_ray.config import MethodConfig, TrdConfig

_TEACHERS_OWN = (TrajectorySource.REFINED, TrajectorySource.TEACHER)


def check_method(method: MethodConfig) -> None:
    """Raise `ConfigError` if the choices of a method contradict each other."""
    _check_context(method)
    _check_divergence(method)
    _check_custom(method)
    _check_sampled(method)
    _check_reward(method)
    if not method.refines:
        require(
            method.refine_gate.kind is RefineGate.ALL,
            "method.refine_gate.kind", method.refine_gate.kind.value,
            f"all, because method.trajectory is {method.trajectory.value} and nothing is refined",
            "set method.refine_gate.kind=all, or method.trajectory=refined",
        )  # fmt: skip
    require(
        method.refine_gate.kind is not RefineGate.ALL or method.refine_gate.on_refusal is OnRefusal.NOTHING,
        "method.refine_gate.on_refusal", method.refine_gate.on_refusal.value,
        "nothing, because the gate `all` refuses no refinement",
        "set method.refine_gate.on_refusal=nothing, or choose another method.refine_gate.kind",
    )  # fmt: skip


def _check_context(method: MethodConfig) -> None:
    if method.teacher_context is TeacherContext.REFINE and method.scores:
        require(
            method.refines,
            "method.teacher_context", method.teacher_context.value,
            f"prompt or privileged, because method.trajectory is {method.trajectory.value} and there is "
            "no refinement",
            "set method.teacher_context=prompt, or method.trajectory=refined",
        )  # fmt: skip
    if method.teacher_context is TeacherContext.PRIVILEGED:
        require(
            method.privileged,
            "method.teacher_context", method.teacher_context.value,
            "prompt or refine, because method.privileged is false",
            "set method.privileged=true to show the teacher the reference solution",
        )  # fmt: skip


def _check_divergence(method: MethodConfig) -> None:
    if not method.scores:
        for key, got, plain in (
            ("support", method.support, Support.FULL),
            ("clip", method.clip, Clip.NONE),
            ("gate.kind", method.gate.kind, TokenGate.NONE),
        ):
            require(
                got is plain,
                f"method.{key}", got.value,
                f"{plain.value}, because method.divergence={method.divergence.value} uses no teacher "
                "distribution",
                f"set method.{key}={plain.value}, or another method.divergence",
            )  # fmt: skip
    if method.divergence is Divergence.NLL and method.refines:
        _require_no_rollouts(method, "nll would train the student to repeat rollouts that were refused")
    require(
        method.divergence is not Divergence.NONE or method.reward.kind is not Reward.NONE,
        "method.divergence", method.divergence.value,
        "a divergence, because there is no reward term either",
        "set method.divergence=forward_kl, or method.reward.kind=grpo",
    )  # fmt: skip


def _check_custom(method: MethodConfig) -> None:
    """A function gives one value a token: it has no entries to clip and no estimate from one token."""
    if method.divergence is not Divergence.CUSTOM:
        return
    require(
        method.support is not Support.SAMPLED,
        "method.support", method.support.value, "full or top_k for a custom divergence",
        "set method.support=full",
    )  # fmt: skip
    require(
        method.clip is not Clip.ENTRY,
        "method.clip", method.clip.value, "none or token, because a custom divergence has no entries",
        "set method.clip=token",
    )  # fmt: skip


def _check_sampled(method: MethodConfig) -> None:
    """A sampled estimate is one of an expectation; the token must come from that distribution."""
    if method.support is not Support.SAMPLED:
        return
    require(
        method.divergence is not Divergence.JSD,
        "method.support", method.support.value, "full or top_k for jsd, which has no sampled form",
        "set method.support=full, or method.divergence=forward_kl or reverse_kl",
    )  # fmt: skip
    require(
        method.clip is not Clip.ENTRY,
        "method.clip", method.clip.value, "none or token, because a sampled estimate has no entries",
        "set method.clip=token",
    )  # fmt: skip
    if method.divergence is Divergence.REVERSE_KL:
        require(
            method.trajectory is TrajectorySource.ROLLOUT,
            "method.trajectory", method.trajectory.value,
            "rollout, because a sampled reverse_kl is a mean over the student's own tokens",
            "set method.trajectory=rollout, or method.support=full",
        )  # fmt: skip
    else:
        require(
            method.trajectory in _TEACHERS_OWN,
            "method.trajectory", method.trajectory.value,
            "refined or teacher, because a sampled forward_kl is a mean over the teacher's tokens",
            "set method.trajectory=refined, or method.support=full",
        )  # fmt: skip
        _require_no_rollouts(method, "a sampled forward_kl is a mean over the teacher's tokens")


def _require_no_rollouts(method: MethodConfig, because: str) -> None:
    require(
        method.refine_gate.on_refusal is OnRefusal.NOTHING,
        "method.refine_gate.on_refusal", method.refine_gate.on_refusal.value,
        f"nothing, because {because}",
        "set method.refine_gate.on_refusal=nothing",
    )  # fmt: skip


def _check_reward(method: MethodConfig) -> None:
    if method.reward.kind is Reward.GRPO:
        require(
            method.trajectory is TrajectorySource.ROLLOUT,
            "method.reward.kind", method.reward.kind.value,
            f"none, because method.trajectory is {method.trajectory.value}; a policy gradient needs the "
            "student's own tokens",
            "set method.trajectory=rollout, or method.reward.kind=none",
        )  # fmt: skip


def check_scoring(config: TrdConfig) -> None:
    """Raise `ConfigError` if the teacher cannot score in the way that the method needs."""
    method, score = config.method, config.teacher.score
    require(
        method.reward.kind is Reward.NONE or config.pipeline.rollouts_per_prompt >= 2,
        "pipeline.rollouts_per_prompt", config.pipeline.rollouts_per_prompt,
        "2 or more, because grpo compares the rollouts of one problem",
        "set pipeline.rollouts_per_prompt=8",
    )  # fmt: skip
    if not method.scores:
        return
    if score.by_engine:
        require(
            method.support is not Support.FULL and method.gate.kind is TokenGate.NONE,
            "teacher.score", score.value,
            "hidden or learner, because vLLM gives log-probabilities of a few tokens only, and the method "
            "needs the whole vocabulary",
            "set teacher.score=hidden, or method.support=top_k (and no method.gate)",
        )  # fmt: skip
    if score is ScoreMethod.FUSED:
        refined = method.trajectory is TrajectorySource.REFINED
        answered = method.trajectory is TrajectorySource.TEACHER
        require(
            (refined and method.teacher_context is TeacherContext.REFINE)
            or (answered and method.teacher_context is method.refused_context),
            "teacher.score", score.value,
            "prefill, because the trajectory is not generated in the context that it is scored under",
            "set teacher.score=prefill, or method.teacher_context=refine with method.trajectory=refined",
        )  # fmt: skip
    if score is ScoreMethod.HIDDEN:
        require(
            not method.teacher_moves,
            "teacher.score", score.value,
            f"learner, because teacher_weights={method.teacher_weights.value} change during the run and the "
            "learner holds them",
            "set teacher.score=learner",
        )  # fmt: skip


def method_sentence(method: MethodConfig) -> str:
    """The method in one sentence."""
    loss = _loss_words(method)
    if method.reward.kind is Reward.GRPO:
        grpo = "group-relative policy gradient (GRPO)"
        loss = grpo if method.divergence is Divergence.NONE else f"{loss}, plus {grpo}"
    parts = [loss, f"on {_trajectory_words(method)}"]
    if method.scores:
        context = {
            TeacherContext.PROMPT: "the student's prompt",
            TeacherContext.PRIVILEGED: "the prompt with the reference solution",
            TeacherContext.REFINE: "the refinement prompt",
        }[method.teacher_context]
        parts.append(f"scored under {context}")
    if method.scores or method.teacher_generates:
        parts.append(f"teacher: {_teacher_words(method)}")
    sentence = ", ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _loss_words(method: MethodConfig) -> str:
    if method.divergence is Divergence.NLL:
        return "negative log-likelihood"
    name = {
        Divergence.FORWARD_KL: "forward KL",
        Divergence.REVERSE_KL: "reverse KL",
        Divergence.JSD: f"Jensen-Shannon divergence (beta {method.beta:g})",
        Divergence.CUSTOM: f"custom divergence {method.divergence_function}",
        Divergence.NONE: "",
    }[method.divergence]
    words = [name, _support_words(method)]
    if method.clip is not Clip.NONE:
        words.append(f"each {method.clip.value} clipped at {method.clip_max:g}")
    if method.gate.kind is TokenGate.ENTROPY:
        words.append(
            f"plus {method.gate.coef:g} x forward KL over the teacher's top {method.gate.top_k} where its "
            f"entropy is above {method.gate.threshold:g}"
        )
    return ", ".join(words)


def _support_words(method: MethodConfig) -> str:
    if method.support is Support.FULL:
        return "full vocabulary"
    if method.support is Support.SAMPLED:
        if method.divergence is Divergence.FORWARD_KL:
            return "sampled tokens"
        estimator = {
            Estimator.K1: "k1 estimate",
            Estimator.K3: "k3 estimate",
            Estimator.POLICY_GRADIENT: "policy gradient",
        }[method.estimator]
        return f"sampled tokens ({estimator})"
    renormalized = {
        Renormalize.TEACHER: "teacher renormalised",
        Renormalize.BOTH: "both renormalised",
        Renormalize.NONE: "not renormalised",
    }[method.renormalize]
    how = "the rest in one bucket" if method.tail is Tail.BUCKET else renormalized
    return f"the teacher's top {method.top_k} ({how})"


def _trajectory_words(method: MethodConfig) -> str:
    if method.trajectory is TrajectorySource.SPLICED:
        where = {
            Locator.GRADER: "the first wrong step",
            Locator.TEACHER_PROBABILITY: "the first token below teacher probability "
            f"{method.splice.threshold:g}",
            Locator.FIRST_DIFFERENCE: "the first difference of its rewrite",
        }[method.splice.locator]
        words = f"rollouts rewritten from {where} on"
    else:
        words = {
            TrajectorySource.ROLLOUT: "rollouts",
            TrajectorySource.REFINED: "refinements of every rollout",
            TrajectorySource.SPECULATIVE: f"drafts in blocks of {method.speculative.block_tokens}, tokens "
            f"outside the teacher's top {method.speculative.top_k} replaced",
            TrajectorySource.TEACHER: "the teacher's answers",
            TrajectorySource.REFERENCE: "reference solutions",
        }[method.trajectory]
    gate = {
        RefineGate.ALL: "",
        RefineGate.FAILED_ONLY: "of wrong rollouts only",
        RefineGate.ACCEPT_CORRECT: "right ones only",
        RefineGate.ACCEPT_NOT_WORSE: "unless it breaks a right rollout",
        RefineGate.CUSTOM: f"that {method.refine_gate.function} accepts",
        RefineGate.MIN_SUPPORT: f"within {method.refine_gate.min_support:g} nats of the rollout's support",
    }[method.refine_gate.kind]
    if not gate:
        return words
    words = words.replace("refinements of every rollout", "refinements")
    instead = " (else the rollout)" if method.refine_gate.on_refusal is OnRefusal.ROLLOUT else ""
    return f"{words} {gate}{instead}"


def _teacher_words(method: MethodConfig) -> str:
    words = {
        TeacherWeights.EXTERNAL: "an external model",
        TeacherWeights.INITIAL: "the student's initial weights",
        TeacherWeights.EMA: f"a moving average of the student (decay {method.ema_decay:g})",
        TeacherWeights.PERIODIC: f"the student of every {method.periodic_every} steps",
    }[method.teacher_weights]
    return f"{words} shown the reference solution" if method.privileged else words
