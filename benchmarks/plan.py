"""What a run takes on 8 to 1,024 GPUs: a SIMULATION in virtual time, from published figures. Nothing of it
was measured on a GPU by this project.

The driver is the real one (`benchmarks/simulated.py`); an engine is a model of a vLLM engine, in which all
running requests take one decoding step together and a prefill holds them up. Student and teacher are 8B
models on H100 80GB with one engine a GPU, LoRA training, TRD-OPD with the scoring pass (`teacher.score:
prefill`). Each constant names its source; what has none is called an assumption.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.simulated import Answers, Cluster, NullRecorder, Work, simulated_roles, testbed_inputs
from benchmarks.virtual_time import run_virtual
from trd_ray.activity import RoleActivity
from trd_ray.assembly import RunInputs, build_pipeline
from trd_ray.choices import OverStale
from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.metrics import StepMetrics
from trd_ray.run_folder import RunFolder
from trd_ray.types import Grade, Prompt, RefinePrompt, Rollout, TrainingBatch
from trd_ray.watched import watch_roles

_CONFIG = Path(__file__).parents[1] / "configs/experiment/trd_opd.yaml"

# Qwen3-8B, bfloat16, one H100 80GB, vLLM 0.30, outputs of
# https://raw.githubusercontent.com/tgarg01/silybench-data/main/derived/csv/capacity.csv (2026-09-24):
# balanced-2048-2048: 2,814.7 output tokens/s at 40 users; decode-128-1024: 13,322.0 at 396.
_DECODE_POINTS = ((40, 40 / 2_814.7), (396, 396 / 13_322.0))
"""(Running requests, seconds a decoding step.)"""
# The same file, prefill-1024-128: 3,017.7 output tokens/s, hence 8 times as many prompt tokens/s, with 80
# users decoding beside it: a lower bound.
_PREFILL_TOKENS_PER_S = 8 * 3_017.7
# The same file: its KV cache holds 92 requests of 4,096 tokens, or 327 of 1,152: 376,800 tokens.
_KV_TOKENS = 92 * 4_096
# Llama 3.1 8B, 8 H100, FSDP + torch.compile, bfloat16: 6,667 tokens/s a GPU.
# https://github.com/pytorch/torchtitan/blob/main/docs/performance.md, table 1
_TRAIN_TOKENS_PER_S = 6_667.0
# Refinements are about 9 times shorter than rollouts: arXiv 2606.08432.
_REFINEMENT_SHORTER = 9

# Assumptions.
_MEDIAN_TOKENS, _SIGMA, _MOST_TOKENS = 3_500.0, 0.9, 16_384
"""Lengths of rollouts: lognormal, cut at the paper's limit."""
_PROMPT_TOKENS = 200
_INSTRUCTION_TOKENS = 400
_SYNC_S = 3.0
"""16 GB of weights to every generator, with pause and resume."""
_TRAJECTORIES_PER_GPU = 16
"""A step: the paper's 128 on 8 GPUs, and in proportion on more."""
_STEP_OVERHEAD_S = 1.0

_GRAIN = 64
"""Tokens for which the simulation sends one, so that the driver does not carry arrays that nobody reads."""
_NUM_STEPS, _NUM_WARM_UP = 7, 2
_CASES = ((0, OverStale.DROP), (1, OverStale.DROP), (1, OverStale.USE), (2, OverStale.USE))


def decode_step_s(num_running: float) -> float:
    """Seconds of one decoding step of all running requests: a line through the published points."""
    (few, few_s), (many, many_s) = _DECODE_POINTS
    return few_s + (num_running - few) * (many_s - few_s) / (many - few)


@dataclass
class SharedServer:
    """A vLLM engine: running requests take each step together; a prefill stops them while it lasts.

    Time is kept in steps: a request that needs T tokens ends T steps after it began.
    """

    max_running: int
    num_template: int
    """Tokens of a refinement prompt without the rollout, as the driver counts them."""
    busy_s: float = 0.0
    """With at least one request."""
    request_s: float = 0.0
    """Sum over requests of the time that they ran."""
    _steps: float = 0.0
    _seen: float = 0.0
    _prefill_until: float = 0.0
    _running: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _waiting: list[tuple[Work, Callable[[], None]]] = field(default_factory=list)
    _timer: asyncio.TimerHandle | None = None
    _ids: itertools.count[int] = field(default_factory=itertools.count)

    def serve(self, work: Work, done: Callable[[], None]) -> None:
        self._advance()
        self._waiting.append((work, done))
        self._admit()

    def _admit(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._waiting and len(self._running) < self.max_running:
            work, done = self._waiting.pop(0)
            prefill_s = self._prompt_tokens(work) / _PREFILL_TOKENS_PER_S
            self._prefill_until = max(self._prefill_until, now) + prefill_s
            # A score is done with its prefill, which one step stands for.
            end = self._steps + max(1, _GRAIN * work.num_output)
            heapq.heappush(self._running, (end, next(self._ids), done))
        self._set_timer(now)

    def _prompt_tokens(self, work: Work) -> int:
        """What the engine would read. The testbed's own prompts are not in proportion to its answers."""
        if work.stage == "rollout":
            return _PROMPT_TOKENS
        return _PROMPT_TOKENS + _INSTRUCTION_TOKENS + _GRAIN * max(1, work.num_prompt - self.num_template)

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running:
            num_steps = max(0.0, self._running[0][0] - self._steps)
            wait_s = max(0.0, self._prefill_until - now) + num_steps * decode_step_s(len(self._running))
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._due)

    def _advance(self) -> None:
        """Count the steps since the last change."""
        now = asyncio.get_running_loop().time()
        if self._running:
            self.busy_s += now - self._seen
            self.request_s += (now - self._seen) * len(self._running)
            decoding_s = max(0.0, now - max(self._seen, self._prefill_until))
            self._steps += decoding_s / decode_step_s(len(self._running))
        self._seen = now

    def _due(self) -> None:
        self._timer = None
        self._advance()
        while self._running and self._running[0][0] <= self._steps + 1e-6:
            heapq.heappop(self._running)[2]()
        self._admit()


@dataclass(frozen=True, kw_only=True)
class Placement:
    """GPUs of each role."""

    generators: int
    teachers: int
    learners: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Engine seconds of a mean trajectory with full engines."""

    max_running: int
    mean_tokens: float

    @classmethod
    def make(cls) -> Workload:
        rng = random.Random(0)
        mean = sum(draw_tokens(rng) for _ in range(20_000)) / 20_000
        # The KV cache holds this many of which each is half done on average, long ones being more often seen.
        seen = sum(n * n for n in (draw_tokens(rng) for _ in range(20_000))) / 20_000 / mean
        return cls(max_running=int(_KV_TOKENS / (_PROMPT_TOKENS + seen / 2)), mean_tokens=mean)

    def placement(self, num_gpus: int) -> Placement:
        """In proportion to the work, at least one GPU a role."""
        token_s = decode_step_s(self.max_running) / self.max_running
        refined = self.mean_tokens / _REFINEMENT_SHORTER
        read = 2 * (_PROMPT_TOKENS + _INSTRUCTION_TOKENS + self.mean_tokens) + refined
        work = (
            self.mean_tokens * token_s,
            refined * token_s + read / _PREFILL_TOKENS_PER_S,
            (_PROMPT_TOKENS + refined) / _TRAIN_TOKENS_PER_S,
        )
        teachers = max(1, round(num_gpus * work[1] / sum(work)))
        learners = max(1, round(num_gpus * work[2] / sum(work)))
        return Placement(generators=num_gpus - teachers - learners, teachers=teachers, learners=learners)


def draw_tokens(rng: random.Random) -> int:
    """Tokens of one rollout."""
    return max(_GRAIN, min(_MOST_TOKENS, int(_MEDIAN_TOKENS * rng.lognormvariate(0.0, _SIGMA))))


class PlannedAnswers(Answers):
    """Lengths as the plan has them: rollouts at random, refinements in proportion to what they rewrite."""

    def __init__(self, inputs: RunInputs) -> None:
        rng = random.Random(0)
        super().__init__(inputs, num_tokens=lambda: draw_tokens(rng) // _GRAIN)
        self.num_template = self._count_template(inputs)

    def _count_template(self, inputs: RunInputs) -> int:
        (problem, epoch), *_ = inputs.stream.take(1)
        prompt = Prompt(
            problem=problem, epoch=epoch, sample_index=0, token_ids=inputs.prompts.student(problem), seed=0
        )
        rollout = Rollout(
            prompt=prompt,
            completion=self.completion(1, versions=(0, 0)),
            grade=Grade(correct=False, answer=None),
        )
        refine = inputs.prompts.refine(rollout)
        assert isinstance(refine, RefinePrompt)  # the configuration leaves room
        return len(refine.token_ids) - 1

    def refinement_length(self, num_prompt: int) -> int:
        return max(1, round((num_prompt - self.num_template) / _REFINEMENT_SHORTER))


@dataclass
class Marks:
    """When each step ended, and what the engines had done by then."""

    servers: dict[str, list[SharedServer]]
    ends: list[float] = field(default_factory=list)
    work: list[dict[str, tuple[float, float]]] = field(default_factory=list)
    metrics: list[StepMetrics] = field(default_factory=list)

    def on_stage(self, stage: str, done: int, total: int) -> None:
        pass

    def on_eval(self, report: object) -> None:
        pass

    def on_step(self, metrics: StepMetrics) -> None:
        self.ends.append(asyncio.get_running_loop().time())
        self.work.append(
            {
                role: (sum(s.busy_s for s in servers), sum(s.request_s for s in servers))
                for role, servers in self.servers.items()
            }
        )
        self.metrics.append(metrics)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Of the steps after the first few."""

    step_s: float
    generators_busy: float
    """Share of the time in which an engine has a request."""
    generators_full: float
    """Running requests over those that an engine holds."""
    teachers_busy: float
    learner_busy: float
    """Steps and pushes."""
    num_stale: int
    """Dropped as too old."""
    staleness_max: int


async def simulate(config: TrdConfig, inputs: RunInputs, placement: Placement, max_running: int) -> Planned:
    folder = RunFolder.create(config.run.dir)
    answers = PlannedAnswers(inputs)
    servers = {
        "generator": [
            SharedServer(max_running=max_running, num_template=answers.num_template)
            for _ in range(placement.generators)
        ],
        "teacher": [
            SharedServer(max_running=max_running, num_template=answers.num_template)
            for _ in range(placement.teachers)
        ],
    }

    def learn_s(batch: TrainingBatch) -> float:
        samples = (s for rank in batch.micro_batches for micro_batch in rank for s in micro_batch)
        num_tokens = sum(_PROMPT_TOKENS + _GRAIN * len(s.response_ids) for s in samples)
        return _STEP_OVERHEAD_S + num_tokens / (_TRAIN_TOKENS_PER_S * placement.learners)

    cluster = Cluster(
        generators=servers["generator"],
        teachers=servers["teacher"],
        generator_slots=2 * max_running,
        teacher_slots=2 * max_running,
        learn_s=learn_s,
        sync_s=_SYNC_S,
    )
    marks = Marks(servers)
    activity = RoleActivity()
    async with simulated_roles(config, answers, cluster, activity) as simulated:
        pipeline = build_pipeline(
            config,
            roles=watch_roles(simulated.roles, activity, in_process=False, has_teacher=True),
            inputs=inputs,
            folder=folder,
            observer=marks,
            activity=activity,
        )
        pipeline._recorder = NullRecorder()  # type: ignore[assignment]
        await pipeline.run()
    start, end = marks.ends[_NUM_WARM_UP - 1], marks.ends[-1]
    busy = sum(min(b, end) - max(a, start) for a, b in simulated.learner.busy if b > start)
    return _planned(marks, placement, max_running=max_running, learner_busy=busy / (end - start))


def _planned(marks: Marks, placement: Placement, *, max_running: int, learner_busy: float) -> Planned:
    first, last = marks.work[_NUM_WARM_UP - 1], marks.work[-1]
    elapsed = marks.ends[-1] - marks.ends[_NUM_WARM_UP - 1]
    generated = [last["generator"][i] - first["generator"][i] for i in range(2)]
    taught = last["teacher"][0] - first["teacher"][0]
    late = marks.metrics[_NUM_WARM_UP:]
    return Planned(
        step_s=elapsed / len(late),
        generators_busy=generated[0] / (elapsed * placement.generators),
        generators_full=generated[1] / (elapsed * placement.generators * max_running),
        teachers_busy=taught / (elapsed * placement.teachers),
        learner_busy=learner_busy,
        num_stale=sum(m.rejected_by_reason.get("stale", 0) for m in late),
        staleness_max=max(m.staleness_max for m in late),
    )


def _config(folder: Path, *, per_step: int, staleness: int, over_stale: OverStale) -> TrdConfig:
    most = _MOST_TOKENS // _GRAIN
    return load_config(
        str(_CONFIG),
        [
            f"run.dir={folder}", f"run.num_steps={_NUM_STEPS}", "run.trackers=[]", "data.eval=''",
            f"generator.sampling.max_tokens={most}", f"teacher.sampling.max_tokens={most}",
            f"eval.sampling.max_tokens={most}", "generator.engine.max_model_len=2048",
            "teacher.engine.max_model_len=4096", f"pipeline.prompts_per_step={per_step}",
            f"pipeline.max_staleness={staleness}", f"pipeline.over_stale={over_stale}",
            "pipeline.stage_barrier=false", "faults.heartbeat_s=3600", "pipeline.log_targets=false",
        ],
    )  # fmt: skip


def print_plan(sizes: list[int]) -> None:
    """One row a number of GPUs and a bound of staleness."""
    workload = Workload.make()
    print(
        f"SIMULATED, from published figures. Rollouts of {workload.mean_tokens:.0f} tokens on average, "
        f"{workload.max_running} running requests an engine, {_NUM_STEPS - _NUM_WARM_UP} steps."
    )
    print(
        "GPUs  generators+teachers+learners  trajectories a step  max_staleness  s a step  throughput x  "
        "generators busy (full)  teachers busy  learner busy  dropped  staleness"
    )
    for num_gpus in sizes:
        placement = workload.placement(num_gpus)
        base_s = 0.0
        for staleness, over_stale in _CASES:
            planned = _simulate_case(num_gpus, placement, workload, staleness, over_stale)
            base_s = base_s or planned.step_s
            print(_row(num_gpus, placement, staleness, over_stale, planned, base_s), flush=True)


def _simulate_case(
    num_gpus: int, placement: Placement, workload: Workload, staleness: int, over_stale: OverStale
) -> Planned:
    with tempfile.TemporaryDirectory(prefix="trd_plan_") as folder:
        config = _config(
            Path(folder) / "run",
            per_step=_TRAJECTORIES_PER_GPU * num_gpus,
            staleness=staleness,
            over_stale=over_stale,
        )
        inputs = testbed_inputs(config, num_problems=20_000)
        return run_virtual(simulate(config, inputs, placement, workload.max_running), inline_threads=True)


def _row(
    num_gpus: int,
    placement: Placement,
    staleness: int,
    over_stale: OverStale,
    planned: Planned,
    base_s: float,
) -> str:
    name = f"{staleness} {over_stale}" if staleness else "0"
    num = (_NUM_STEPS - _NUM_WARM_UP) * _TRAJECTORIES_PER_GPU * num_gpus
    return (
        f"{num_gpus:4}  {placement.generators:4}+{placement.teachers}+{placement.learners:<4} "
        f"{_TRAJECTORIES_PER_GPU * num_gpus:6}  {name:7} {planned.step_s:7.1f} "
        f"{base_s / planned.step_s:6.2f} "
        f"{planned.generators_busy:6.0%} ({planned.generators_full:4.0%}) {planned.teachers_busy:6.0%} "
        f"{planned.learner_busy:6.0%} {planned.num_stale / num:6.0%} {planned.staleness_max:4}"
    )
