"""What a run leaves behind whose own records fail: a checkpoint that fits together, if the disk takes one."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_pipeline import Run, make_run
from trd_ray.config import RunConfig
from trd_ray.disk import writing
from trd_ray.errors import DiskError
from trd_ray.token_values import TokenValues
from trd_ray.types import LearnerStep, TrainingBatch, Trajectory


def run_of_three(tmp_path: Path, *, checkpoint_every: int) -> Run:
    """Only the newest checkpoint is kept: a wrong one would cost the run."""
    return make_run(
        tmp_path,
        run=RunConfig(
            dir=str(tmp_path / "run"), num_steps=3, checkpoint_every=checkpoint_every, keep_checkpoints=1
        ),
    )


async def test_a_record_of_a_step_that_cannot_be_made_does_not_tear_its_checkpoint(tmp_path: Path):
    run = run_of_three(tmp_path, checkpoint_every=1)
    learn = run.learner.learn
    one = np.ones(1, dtype=np.float16)

    async def learn_with_values(batch: TrainingBatch) -> LearnerStep:
        step = await learn(batch)
        wrong = TokenValues(divergence=one, student_logprobs=one)
        return replace(step, token_values=wrong if batch.learner_step == 2 else None)

    run.learner.learn = learn_with_values  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="1 tokens for samples of"):
        await run.pipeline.run()
    checkpoint = run.folder.latest_checkpoint()
    assert checkpoint is not None and checkpoint.learner_step == 2
    again = make_run(tmp_path, open_existing=True)
    assert (await again.pipeline.run(resume_from=checkpoint.path)).learner_step == 3


@pytest.mark.parametrize(("number", "last_step"), [(errno.EIO, 1), (errno.ENOSPC, None)])
async def test_only_a_disk_that_refuses_everything_costs_the_last_checkpoint(
    tmp_path: Path, number: int, last_step: int | None
):
    run = run_of_three(tmp_path, checkpoint_every=0)
    recorder = run.pipeline._recorder
    write = recorder.trajectories

    async def failing(trajectories: tuple[Trajectory, ...], *, learner_step: int) -> None:
        with writing(run.folder.trajectories):
            if learner_step == 2:
                raise OSError(number, "no")
            await write(trajectories, learner_step=learner_step)

    recorder.trajectories = failing  # type: ignore[method-assign]
    with pytest.raises(DiskError):
        await run.pipeline.run()
    checkpoint = run.folder.latest_checkpoint()
    assert (checkpoint and checkpoint.learner_step) == last_step
