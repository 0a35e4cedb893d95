"""How each role's actor is made: its options, its place, its resources. Made again after a failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.engine import EngineOptions
from actors.generator import GeneratorActor
from actors.learner import LearnerRankActor
from actors.members import NamedActor
from actors.placement import ActorRequest
from actors.teacher import ScorerOptions, TeacherActor
from trd_ray.assembly import RunInputs
from trd_ray.config import EngineConfig, TrdConfig
from trd_ray.replay_plan import ModelPaths

# More than a step ever has in flight; the pipeline bounds the number of requests, not the actor.
_CONCURRENT_CALLS = 100_000


class ActorMaker:
    """Makes the actors of a run, each by its role and its index."""

    def __init__(
        self,
        config: TrdConfig,
        inputs: RunInputs | ModelPaths,
        requests: tuple[ActorRequest, ...],
        placement: PlacementGroup,
    ) -> None:
        self._config = config
        self._inputs = inputs
        self._bundles = {request.name: (bundle, request) for bundle, request in enumerate(requests)}
        self._placement = placement

    def of_role(self, role: str) -> tuple[NamedActor, ...]:
        """All actors of a role that the run has a place for."""
        names = [name for name in self._bundles if name.rpartition("-")[0] == role]
        return tuple(self.make(role, index) for index in range(len(names)))

    def maker(self, role: str) -> Callable[[int], NamedActor]:
        """Makes the actor of an index anew, in its old place."""
        return lambda index: self.make(role, index)

    def make(self, role: str, index: int) -> NamedActor:
        name = f"{role}-{index}"
        bundle, request = self._bundles[name]
        make, threads = {
            "learner": (self._learner, self._config.learner.threads),
            "generator": (self._generator, self._config.generator.engine.threads),
            "teacher": (self._teacher, self._config.teacher.engine.threads),
        }[role]
        options = _options(request, self._placement, bundle, threads=threads)
        return NamedActor(name=name, handle=make(index, options))

    def _learner(self, index: int, options: dict[str, Any]) -> Any:  # noqa: ANN401 - Ray's handles have no type
        config, inputs = self._config, self._inputs
        return LearnerRankActor.options(**options).remote(
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
        return GeneratorActor.options(**options, max_concurrency=_CONCURRENT_CALLS).remote(
            _generator_engine(self._config, self._inputs, index=index)
        )

    def _teacher(self, index: int, options: dict[str, Any]) -> Any:  # noqa: ANN401 - likewise
        return TeacherActor.options(**options, max_concurrency=_CONCURRENT_CALLS).remote(
            model=self._inputs.teacher_path.resolve(),
            engine=_teacher_engine(self._config, self._inputs, index=index),
            scorer=_scorer(self._config),
            top_k=self._config.method.num_targets,
        )


def _options(
    request: ActorRequest, placement: PlacementGroup, bundle: int, *, threads: int
) -> dict[str, Any]:
    asked = request.bundle()
    return {
        "num_cpus": asked.get("CPU", 0),
        "num_gpus": asked.get("GPU", 0),
        "memory": asked.get("memory", 0),
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            placement_group=placement, placement_group_bundle_index=bundle
        ),
        # OpenMP reads it when torch is loaded, which is before an actor's own first line.
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
    }


def engine_options(
    engine: EngineConfig, *, model: str, seed: int, weight_transfer: str | None
) -> EngineOptions:
    """A role's engine block as the engine takes it."""
    return EngineOptions(
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
    )


def _generator_engine(config: TrdConfig, inputs: RunInputs | ModelPaths, *, index: int) -> EngineOptions:
    return engine_options(
        config.generator.engine,
        model=str(inputs.student_path.resolve()),
        seed=config.run.seed + index,
        weight_transfer=config.weight_sync.backend.value,
    )


def _teacher_engine(config: TrdConfig, inputs: RunInputs | ModelPaths, *, index: int) -> EngineOptions | None:
    if not config.teacher_engine:
        return None
    return engine_options(
        config.teacher.engine,
        model=str(inputs.teacher_path.resolve()),
        seed=config.run.seed + index,
        weight_transfer=config.weight_sync.backend.value if config.pushes_teacher else None,
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
