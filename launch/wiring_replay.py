"""The learner ranks alone as Ray actors: for a replay, which needs no other role."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.learner_group import RayLearner
from launch.wiring_ray import ray_groups
from trd_ray.activity import RoleActivity
from trd_ray.config import TrdConfig
from trd_ray.placement_plan import PlacementPlan
from trd_ray.replay_plan import ModelPaths


@asynccontextmanager
async def ray_learner(
    config: TrdConfig, models: ModelPaths, plan: PlacementPlan
) -> AsyncIterator[RayLearner]:
    """The group of learner ranks of a plan; nothing is left running afterwards.

    Raises `PlacementError`, or what a rank raises while it starts.
    """
    async with ray_groups(config, models, plan, RoleActivity()) as groups:
        learner = groups.learner
        assert learner is not None  # ranks are what is asked for
        await learner.setup()
        yield learner
