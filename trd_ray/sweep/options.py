"""Options of a sweep file but for its axes: defaults, meanings and ranges, as in config.py."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum

from trd_ray.checks import require, require_at_least, require_positive
from trd_ray.config import RayConfig
from trd_ray.evaluation import EvalReport
from trd_ray.metrics import StepMetrics


class SearchKind(StrEnum):
    """Who chooses the values of random axes."""

    ALL = "all"
    OPTUNA = "optuna"


class StopKind(StrEnum):
    """Who stops trials before their end."""

    NONE = "none"
    ASHA = "asha"


class Mode(StrEnum):
    """Which end of a metric is the better one."""

    MAX = "max"
    MIN = "min"


EVAL_METRICS = ("avg_at_k", "pass_at_k", "mean_length", "truncated_share")
"""Of eval.jsonl."""
STEP_METRICS = tuple(
    item.name for item in fields(StepMetrics) if item.type in ("float", "float | None", "int")
)
"""Of metrics.jsonl."""
assert {item.name for item in fields(EvalReport)} >= set(EVAL_METRICS)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How axes become trials."""

    kind: SearchKind = SearchKind.ALL
    """`all`: every combination of the grid axes, for each of `num_samples` draws of the random ones.
    `optuna`: Optuna's TPE proposes one trial after the other, from what the ended ones have reached."""
    num_samples: int = 1
    """Draws of the random axes; for `optuna`, trials. 1 or more."""
    seed: int = 0
    """Of the draws and of Optuna. 0 or more."""

    def __post_init__(self) -> None:
        require_at_least("search.num_samples", self.num_samples, 1)
        require_at_least("search.seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True)
class StopEarlyConfig:
    """Stopping trials that are behind."""

    kind: StopKind = StopKind.NONE
    """`asha`: at steps grace_steps x reduction_factor^i a trial goes on only if it is among the best
    1 / reduction_factor of those that have come as far (asynchronous successive halving)."""
    grace_steps: int = 1
    """Learner steps that every trial gets. 1 or more."""
    reduction_factor: float = 3.0
    """Above 1."""

    def __post_init__(self) -> None:
        require_at_least("stop_early.grace_steps", self.grace_steps, 1)
        require(
            self.reduction_factor > 1.0, "stop_early.reduction_factor", self.reduction_factor, "more than 1",
            "set stop_early.reduction_factor above 1",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MetricConfig:
    """What trials are compared by."""

    name: str = "avg_at_k"
    """Of eval.jsonl: `avg_at_k`, `pass_at_k`, `mean_length`, `truncated_share`; or a number of
    metrics.jsonl, such as `rollout_accuracy` or `loss`."""
    mode: Mode = Mode.MAX
    """Whether `max` or `min` is better."""
    last: int = 1
    """A trial's value is the mean over so many last rows. 1 or more."""
    dataset: str = ""
    """Rows of eval.jsonl of this data set only; empty takes that of the last row."""

    def __post_init__(self) -> None:
        require(
            self.name in (*EVAL_METRICS, *STEP_METRICS), "metric.name", self.name,
            f"one of {', '.join((*EVAL_METRICS, *STEP_METRICS))}", "correct metric.name",
        )  # fmt: skip
        require_at_least("metric.last", self.last, 1)

    @property
    def of_eval(self) -> bool:
        """It stands in eval.jsonl."""
        return self.name in EVAL_METRICS

    @property
    def sign(self) -> int:
        """1 if more is better, else -1."""
        return 1 if self.mode is Mode.MAX else -1


@dataclass(frozen=True, kw_only=True)
class TrialsConfig:
    """How trials are run."""

    no_ray: bool = False
    """As `trd-ray train --no-ray`: one process a trial, for tiny models."""
    max_concurrent: int = 0
    """Trials at once; 0: as many as fit. 0 or more."""
    driver_cpus: float = 0.5
    """Cores that a trial's own process counts for, beside those of its actors; with `no_ray` all that it
    counts for. Above 0."""
    stop_s: float = 300.0
    """Longest wait, in seconds, until a trial that is stopped has written its checkpoint; then it is
    killed. Above 0."""

    def __post_init__(self) -> None:
        require_at_least("trials.max_concurrent", self.max_concurrent, 0)
        require_positive("trials.driver_cpus", self.driver_cpus)
        require_positive("trials.stop_s", self.stop_s)


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """The tree."""

    base: str = ""
    """Configuration that every trial starts from, relative to the sweep file. Not needed with an axis
    `config`."""
    dir: str = "runs/sweep"
    """Sweep folder. A new sweep refuses a folder that already holds one; `--resume` continues it."""
    search: SearchConfig = field(default_factory=SearchConfig)
    stop_early: StopEarlyConfig = field(default_factory=StopEarlyConfig)
    metric: MetricConfig = field(default_factory=MetricConfig)
    trials: TrialsConfig = field(default_factory=TrialsConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    """The cluster of the sweep. With `ray.address=local` each trial starts a private one of its own;
    otherwise trials join this one."""

    def __post_init__(self) -> None:
        require(bool(self.dir.strip()), "dir", self.dir, "a folder path", "name a folder for the results")
