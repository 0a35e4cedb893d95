"""From the trajectories of a step to the batch that the learner gets: the same for a run and its replay."""

from __future__ import annotations

from collections.abc import Sequence

from trd_ray.batching import make_training_batch
from trd_ray.choices import Reward
from trd_ray.config import LearnerConfig, MethodConfig
from trd_ray.rewards import group_advantages
from trd_ray.types import TrainingBatch, TrainingSample, Trajectory, TrajectorySource


def step_batch(
    consumed: Sequence[Trajectory], *, learner_step: int, method: MethodConfig, learner: LearnerConfig
) -> TrainingBatch:
    """The batch of `learner_step`; the same trajectories in the same order give the same batch.

    Raises `ValueError` as `make_training_batch` does.
    """
    advantages = (0.0,) * len(consumed)
    if method.reward.kind is not Reward.NONE:
        advantages = group_advantages(consumed)
    return make_training_batch(
        [
            _training_sample(trajectory, advantage=advantage, index=index)
            for index, (trajectory, advantage) in enumerate(zip(consumed, advantages, strict=True))
        ],
        learner_step=learner_step,
        num_ranks=learner.num_ranks,
        micro_batch_tokens=learner.micro_batch_tokens,
    )


def _training_sample(trajectory: Trajectory, *, advantage: float, index: int) -> TrainingSample:
    sampled = trajectory.rollout if trajectory.source is TrajectorySource.ROLLOUT else None
    return TrainingSample(
        prompt_ids=trajectory.prompt.token_ids,
        response_ids=trajectory.token_ids,
        target=trajectory.target,
        rollout_logprobs=None if sampled is None else sampled.completion.logprobs,
        advantage=advantage,
        index=index,
    )
