"""What a trial has reached, read from its run folder, also while it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trd_ray.metrics import read_evals, read_metrics
from trd_ray.run_folder import RunFolder
from trd_ray.sweep.options import MetricConfig

Curve = tuple[tuple[int, float], ...]
"""(learner step, value), in the order of the steps."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """Numbers of one trial."""

    curve: Curve = ()
    value: float | None = None
    """Mean of the last `metric.last` values of the curve; None if it has none."""
    label: str = ""
    """The metric as people call it, such as avg@8; empty where there is no row yet."""
    learner_step: int = 0
    """Completed steps."""
    num_tokens: int = 0
    """Tokens that student and teacher wrote in training."""


def read_result(folder: RunFolder, metric: MetricConfig) -> TrialResult:
    """All of it; empty where there is no run yet. Raises `DataError` for a file that cannot be read."""
    steps = read_metrics(folder.metrics)
    if metric.of_eval:
        reports = read_evals(folder.eval)
        dataset = metric.dataset or (reports[-1].dataset if reports else "")
        of_set = [report for report in reports if report.dataset == dataset]
        pairs = [(report.learner_step, float(getattr(report, metric.name))) for report in of_set]
        label = _eval_label(metric.name, of_set[-1].num_samples, of_set[-1].k) if of_set else ""
    else:
        values = [(step.learner_step, getattr(step, metric.name)) for step in steps]
        pairs = [(number, float(value)) for number, value in values if value is not None]
        label = metric.name
    curve = tuple((number, value) for number, value in pairs if math.isfinite(value))
    return TrialResult(
        curve=curve,
        value=mean_of_last([value for _, value in curve], metric.last),
        label=label,
        learner_step=max(
            [0, *(step.learner_step for step in steps[-1:]), *(number for number, _ in curve[-1:])]
        ),
        num_tokens=sum(step.num_generated_tokens for step in steps),
    )


def _eval_label(name: str, num_samples: int, k: int) -> str:
    return {"avg_at_k": f"avg@{num_samples}", "pass_at_k": f"pass@{k}"}.get(name, name)


def mean_of_last(values: Sequence[float], num: int) -> float | None:
    """None without values."""
    last = values[-num:]
    return math.fsum(last) / len(last) if last else None
