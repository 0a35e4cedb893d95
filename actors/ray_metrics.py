"""The numbers of metrics.jsonl as Ray metrics: for Prometheus and the dashboard of the cluster.

Ray's agent of the driver's node serves them at its metrics port, under `ray_` and the names below, some
ten seconds after each step.
"""

from __future__ import annotations

import math

from ray.util.metrics import Counter, Gauge

from trd_ray.evaluation import EvalReport
from trd_ray.metrics import StepMetrics

PREFIX = "trd_ray_"
_COUNT = "num_"


class RayMetrics:
    """An `Observer`. Make it once Ray is connected, and one a process.

    What a step counts (`num_retries`, `num_generated_tokens`, ...) is summed over steps in a counter
    without the `num_` (`trd_ray_retries`, which Prometheus sees as `ray_trd_ray_retries_total`). Every
    other number is a gauge of the last step (`trd_ray_generator_busy_s`), and evaluations are gauges by
    data set (`trd_ray_eval_avg_at_k`). What is null or not finite is not published.
    """

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}

    def on_stage(self, stage: str, done: int, total: int) -> None:
        """Nothing is published within a step."""

    def on_step(self, metrics: StepMetrics) -> None:
        for name, value in metrics.to_json().items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                continue
            if name.startswith(_COUNT):
                self._count(name.removeprefix(_COUNT), value)
            else:
                self._gauge(name).set(value)

    def on_eval(self, report: EvalReport) -> None:
        tags = {"dataset": report.dataset}
        for name, value in (
            ("eval_avg_at_k", report.avg_at_k),
            ("eval_pass_at_k", report.pass_at_k),
            ("eval_learner_step", report.learner_step),
        ):
            self._gauge(name, "dataset").set(value, tags=tags)

    def _gauge(self, name: str, *tag_keys: str) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(PREFIX + name, f"{name} of the last learner step", tag_keys=tag_keys)
        return self._gauges[name]

    def _count(self, name: str, value: float) -> None:
        if name not in self._counters:
            self._counters[name] = Counter(PREFIX + name, f"{name} since the driver started")
        if value > 0:  # Ray refuses to add nothing
            self._counters[name].inc(value)
