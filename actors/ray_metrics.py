"""The numbers of metrics.jsonl as Ray metrics: for Prometheus and the dashboard of the cluster.

Ray's agent of the driver's node serves them at its metrics port, under the names of
`trd_ray.scalars.CLUSTER_METRICS`, some ten seconds after each step.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from trd_ray.evaluation import EvalReport
from trd_ray.metrics import StepMetrics
from trd_ray.scalars import CLUSTER_METRICS, ClusterMetricKind, dataset_tag, is_publishable


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
        for key, value in metrics.to_json().items():
            if key in CLUSTER_METRICS and is_publishable(value):
                self._publish(key, value)  # type: ignore[arg-type]

    def on_eval(self, report: EvalReport) -> None:
        tags = {"dataset": dataset_tag(report.dataset)}
        self._gauge("eval_avg_at_k").set(report.avg_at_k, tags=tags)
        self._gauge("eval_pass_at_k").set(report.pass_at_k, tags=tags)
        self._gauge("eval_learner_step").set(report.learner_step, tags=tags)

    def _publish(self, key: str, value: float) -> None:
        if CLUSTER_METRICS[key].kind is ClusterMetricKind.GAUGE:
            self._gauge(key).set(value)
        else:
            self._count(key, value)

    def _gauge(self, key: str) -> Gauge:
        if key not in self._gauges:
            metric = CLUSTER_METRICS[key]
            tag_keys = ("dataset",) if metric.by_dataset else ()
            self._gauges[key] = Gauge(metric.name, f"{key} of the last learner step", tag_keys=tag_keys)
        return self._gauges[key]

    def _count(self, key: str, value: float) -> None:
        if key not in self._counters:
            self._counters[key] = Counter(CLUSTER_METRICS[key].name, f"{key} since the driver started")
        if value > 0:  # Ray refuses to add nothing
            self._counters[key].inc(value)
