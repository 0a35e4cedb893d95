"""What `--local` makes of a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.amounts import total_request
from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.errors import ConfigError
from trd_ray.local_mode import local_mode
from trd_ray.placement_plan import placement_plan
from trd_ray.resume import differences

CONFIGS = Path(__file__).parents[2] / "configs/experiment"
EXPERIMENTS = sorted(path for path in CONFIGS.glob("*.yaml") if path.stem != "testbed")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_method_fits_on_one_core_with_one_actor_a_role(path: Path):
    config = local_mode(load_config(path))
    plan = placement_plan(config)
    assert len({seat.name.rpartition("-")[0] for seat in plan.seats}) == len(plan.seats)
    assert total_request(plan)["CPU"] <= 1
    assert config.pipeline.trajectories_per_step <= 8
    assert config.faults.max_attempts == 1
    assert config.faults.max_restarts == 0


@pytest.mark.parametrize("path", sorted((CONFIGS / "qwen3").glob("*_8b.yaml")), ids=lambda p: p.stem)
def test_recipes_for_gpus_keep_one_gpu_an_actor(path: Path):
    config = local_mode(load_config(path))
    assert config.generator.resources.gpus == config.teacher.resources.gpus == 1
    assert config.generator.engine.tensor_parallel_size == 1


def test_it_is_what_it_says_for_the_defaults():
    changed = {change.key: change.after for change in differences(TrdConfig(), local_mode(TrdConfig()))}
    assert changed == {
        "run.num_steps": 2,
        "data.eval_problems": 4,
        "generator.resources.cpus": 0.25,
        "generator.engine.threads": 1,
        "teacher.resources.cpus": 0.25,
        "teacher.engine.threads": 1,
        "learner.resources.cpus": 0.25,
        "learner.threads": 1,
        "pipeline.prompts_per_step": 4,
        "pipeline.max_rejected_share": 1.0,
        "eval.num_samples": 2,
        "weight_sync.verify_every": 1,
        "ray.actor_logs": True,
        "faults.max_attempts": 1,
        "faults.max_restarts": 0,
        "faults.max_nonsense": 1,
    }


def test_twice_is_once_and_smaller_stays():
    config = load_config(CONFIGS / "grpo.yaml", ["run.num_steps=1", "pipeline.prompts_per_step=3"])
    once = local_mode(config)
    assert local_mode(once) == once
    assert (once.run.num_steps, once.pipeline.prompts_per_step) == (1, 3)


def test_what_is_kept_is_kept():
    config = load_config(
        CONFIGS / "trd_opd.yaml",
        ["run.num_steps=50", "pipeline.max_staleness=1", "pipeline.stage_barrier=false"],
    )
    local = local_mode(config, keep=["run.num_steps", "pipeline.max_staleness"])
    assert local.run.num_steps == 50
    assert local.pipeline.max_staleness == 1
    assert not local.pipeline.stage_barrier
    assert local.pipeline.prompts_per_step == 4


def test_what_contradicts_is_refused():
    with pytest.raises(ConfigError, match=r"generator\.sampling\.max_tokens"):
        load_config(CONFIGS / "trd_opd.yaml", ["generator.sampling.max_tokens=600"])
