"""Rows of metrics, for the tests of what is done with them."""

from __future__ import annotations

from trd_ray.metrics import StepMetrics


def step(number: int, *, refined: float | None = 0.9, rejected: int = 0, step_s: float = 2.0) -> StepMetrics:
    return StepMetrics(
        learner_step=number, policy_version=number, loss=0.5 / number, grad_norm=1.0, learning_rate=1e-3,
        num_loss_tokens=10, staleness_max=0, rollout_accuracy=0.25, refined_accuracy=refined,
        trajectory_accuracy=refined, refinement_accepted=8 - rejected, refinement_refused_by_reason={},
        edit_distance_mean=None, length_ratio_mean=None, support_mean=None, kept_share_mean=None,
        flips_wrong_to_right=0, flips_right_to_wrong=0, num_trajectories=8, num_consumed=8 - rejected,
        num_rejected=rejected, rejected_by_reason={"empty": rejected} if rejected else {}, rollout_s=step_s,
        refine_s=0.0, score_s=0.0, learn_s=0.0, sync_s=0.0, other_s=0.0, step_s=step_s, num_rollout_tokens=80,
        num_refined_tokens=80, rollout_length_mean=10.0, refined_length_mean=10.0, num_generated_tokens=160,
        tokens_per_s=1234.5,
        prompts_in=8, prompts_pending=0,
    )  # fmt: skip
