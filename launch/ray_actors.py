"""How each role's actor is made: its options, its place, its resources. Made again after a failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.placement_group import PlacementGroup

from actors.engine import EngineOptions
from actors.generator import GeneratorActor
from actors.learner import LearnerRankActor
from actors.members import NamedActor
from actors.placement import actor_options
from actors.teacher import ScorerOptions, TeacherActor
from trd_ray.assembly import RunInputs
from trd_ray.choices import Device
from trd_ray.config import EngineConfig, TrdConfig
from trd_ray.placement_plan import PlacementPlan
from trd_ray.replay_plan import ModelPaths
from trd_ray.roles import Role

# More than a step ever has in flight; the pipeline bounds the number of requests, not the actor.
_CONCURRENT_CALLS = 100_000


@dataclass(frozen=True, kw_only=True)
class ActorClasses:
    """Ray's class of each role's actors. Others take their place where a failure is rehearsed."""

    # Ray generates the types of its classes at run time.
    generator: Any = GeneratorActor
    teacher: Any = TeacherActor
    learner: Any = LearnerRankActor


REAL_ACTORS = ActorClasses()


class ActorMaker:
    """Makes the actors of a run, each by its role and its index."""

    def __init__(
        self,
        config: TrdConfig,
        inputs: RunInputs | ModelPaths,
        plan: PlacementPlan,
        placement: PlacementGroup,
        *,
        gpus: Mapping[int, Sequence[str]],
        classes: ActorClasses = REAL_ACTORS,
    ) -> None:
        """
        Args:
            gpus: of `gpu_ids`.
        """
        self._config = config
        self._inputs = inputs
        self._plan = plan
        self._placement = placement
        self._gpus = gpus
        self._classes = classes

    @property
    def shares_devices(self) -> bool:
        """Roles take turns on the same devices."""
        return any(bundle.shared for bundle in self._plan.bundles)

    def of_role(self, role: Role) -> tuple[NamedActor, ...]:
        """All actors of a role that the run has a seat for."""
        return tuple(self.make(role, seat.index) for seat in self._plan.seats if seat.role is role)

    def maker(self, role: Role) -> Callable[[int], NamedActor]:
        """Makes the actor of an index anew, in its old seat."""
        return lambda index: self.make(role, index)

    def make(self, role: Role, index: int) -> NamedActor:
        seat = next(seat for seat in self._plan.seats if (seat.role, seat.index) == (role, index))
        make, threads = {
            Role.LEARNER: (self._learner, self._config.learner.threads),
            Role.GENERATOR: (self._generator, self._config.generator.engine.threads),
            Role.TEACHER: (self._teacher, self._config.teacher.engine.threads),
        }[role]
        options = actor_options(seat, self._placement, gpus=self._gpus, threads=threads)
        return NamedActor(name=seat.name, handle=make(index, options))

    def _learner(self, index: int, options: dict[str, Any]) -> Any:  # noqa: ANN401 - Ray's handles have no type
        config, inputs = self._config, self._inputs
        return self._classes.learner.options(**options).remote(
            config.learner,
            student=inputs.student_path.resolve(),
            teacher=inputs.teacher_path.resolve(),
            method=config.method,
            score=config.teacher.score,
            rank=index,
            world_size=config.learner.num_ranks,
            num_steps=config.run.num_steps,
            seed=config.run.seed,
            timeout_s=config.timeouts.learn_s,
        )

    def _generator(self, index: int, options: dict[str, Any]) -> Any:  # noqa: ANN401 - likewise
        return self._classes.generator.options(**options, max_concurrency=_CONCURRENT_CALLS).remote(
            _generator_engine(self._config, self._inputs, index=index)
        )

    def _teacher(self, index: int, options: dict[str, Any]) -> Any:  # noqa: ANN401 - likewise
        return self._classes.teacher.options(**options, max_concurrency=_CONCURRENT_CALLS).remote(
            model=self._inputs.teacher_path.resolve(),
            engine=_teacher_engine(self._config, self._inputs, index=index),
            scorer=_scorer(self._config),
            top_k=self._config.method.num_targets,
        )


def engine_options(
    engine: EngineConfig,
    *,
    name: str,
    model: str,
    seed: int,
    weight_transfer: str | None,
    takes_turns: bool = False,
) -> EngineOptions:
    """A role's engine block as the engine takes it."""
    return EngineOptions(
        name=name,
        model=model,
        dtype=engine.dtype.value,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens or None,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        kv_cache_gib=engine.kv_cache_gib,
        threads=engine.threads,
        enforce_eager=engine.enforce_eager,
        tensor_parallel_size=engine.tensor_parallel_size,
        device=engine.device.value,
        seed=seed,
        prefix_caching=engine.prefix_caching,
        weight_transfer_backend=weight_transfer,
        sleep_mode=takes_turns and engine.device is Device.CUDA,
    )


def _generator_engine(config: TrdConfig, inputs: RunInputs | ModelPaths, *, index: int) -> EngineOptions:
    return engine_options(
        config.generator.engine,
        name=f"{Role.GENERATOR}-{index}",
        model=str(inputs.student_path.resolve()),
        seed=config.run.seed + index,
        weight_transfer=config.weight_sync.backend.value,
        takes_turns=config.colocated,
    )


def _teacher_engine(config: TrdConfig, inputs: RunInputs | ModelPaths, *, index: int) -> EngineOptions | None:
    if not config.teacher_engine:
        return None
    return engine_options(
        config.teacher.engine,
        name=f"{Role.TEACHER}-{index}",
        model=str(inputs.teacher_path.resolve()),
        seed=config.run.seed + index,
        weight_transfer=config.weight_sync.backend.value if config.pushes_teacher else None,
        takes_turns=config.colocated,
    )


def _scorer(config: TrdConfig) -> ScorerOptions | None:
    if not config.teacher_scorer:
        return None
    return ScorerOptions(
        score_dtype=config.teacher.score_dtype,
        hidden_dtype=config.teacher.hidden_dtype,
        batch_tokens=config.teacher.score_batch_tokens,
        threads=config.teacher.engine.threads,
        device=config.teacher.engine.device,
    )
