"""How much of a step may be rejected before the run ends."""

from __future__ import annotations

from collections.abc import Sequence

from trd_ray.config import PipelineConfig
from trd_ray.errors import RunFailedError, describe
from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.refine_gate import REFUSED_BY_DESIGN
from trd_ray.types import Trajectory

# No fault of teacher or student: by the gate's design, or because the learner was slow to come.
_NOT_BROKEN = REFUSED_BY_DESIGN | {RejectReason.STALE}


def is_broken(trajectories: Sequence[Trajectory], pipeline: PipelineConfig) -> bool:
    """More of a step are rejected than the run puts up with; refusals by design are none of those."""
    share = _broken_share(trajectories)
    return share == 1.0 or share > pipeline.max_rejected_share


def require_enough(
    trajectories: Sequence[Trajectory], pipeline: PipelineConfig, *, learner_step: int
) -> None:
    """Raises `RunFailedError` if too little of a step is left to learn from."""
    num_consumed = sum(t.outcome is Outcome.CONSUMED for t in trajectories)
    broken = is_broken(trajectories, pipeline)
    if num_consumed and not broken:
        return
    reasons = sorted({t.reason.value for t in trajectories if t.outcome is Outcome.REJECTED})
    what = "too many trajectories of one step were rejected"
    remedy = "more teacher.sampling.max_tokens or a larger teacher.engine.max_model_len against truncation"
    if not broken:
        what = "the refinement gate leaves nothing to learn from"
        remedy = "method.refine_gate.on_refusal=rollout or another method.refine_gate.kind"
    raise RunFailedError(
        describe(
            what,
            where=f"step {learner_step}, {len(trajectories)} trajectories",
            got=f"{_broken_share(trajectories):.0%} rejected, {num_consumed} left ({', '.join(reasons)})",
            expected=f"at most {pipeline.max_rejected_share:.0%}, and one to learn from",
            remedy=f"read the step's trajectories/*.parquet, then --resume: {remedy}",
        )
    )


def _broken_share(trajectories: Sequence[Trajectory]) -> float:
    """Of what is rejected, or whose refinement is, for another reason than the gate's design or staleness.
    A refused refinement counts although its rollout may be trained on: a teacher that cannot rewrite must
    not go unnoticed."""
    reasons = [t.gate_reason or t.reason for t in trajectories if t.reason is not RejectReason.STALE]
    return sum(bool(reason) and reason not in _NOT_BROKEN for reason in reasons) / max(1, len(reasons))
