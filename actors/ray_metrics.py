"""The numbers of metrics.jsonl as Ray metrics: for Prometheus and the dashboard of the cluster.

Ray's agent of the driver's node serves them at its metrics port, under the names of
`trd_ray.scalars.CLUSTER_METRICS`, some ten seconds after each step.
"""

from __future__ import annotations

import threading
from types import TracebackType

from ray.util.metrics import Counter, Gauge

from trd_ray.evaluation import EvalReport
from trd_ray.metrics import StepMetrics
from trd_ray.scalars import CLUSTER_METRICS, ClusterMetricKind, dataset_tag, is_publishable

# Ray's agent forgets a gauge that was not set again within two reports, of ten seconds each.
_AGAIN_S = 5.0
_GAUGES = {key for key, metric in CLUSTER_METRICS.items() if metric.kind is ClusterMetricKind.GAUGE}


class RayMetrics:
    """An `Observer`. Make it once Ray is connected, and one a process.

    Gauges are there until the block ends, however long a step or the time between two evaluations is. Its
    thread consumes time, produces the same gauges again, and is unblocked by the end of the block.

    What a step counts (`num_retries`, `num_generated_tokens`, ...) is summed over steps in a counter
    without the `num_` (`trd_ray_retries`, which Prometheus sees as `ray_trd_ray_retries_total`). Every
    other number is a gauge of the last step (`trd_ray_generator_busy_s`), and evaluations are gauges by
    data set (`trd_ray_eval_avg_at_k`). What is null or not finite is not published.
    """

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._of_step: dict[str, float] = {}
        self._of_eval: dict[str, dict[str, float]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="ray-metrics", daemon=True)

    def __enter__(self) -> RayMetrics:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(_AGAIN_S)

    def _keep(self) -> None:
        while not self._ended.wait(_AGAIN_S):
            with self._lock:
                self._set_all()

    def on_stage(self, stage: str, done: int, total: int) -> None:
        """Nothing is published within a step."""

    def on_step(self, metrics: StepMetrics) -> None:
        values: dict[str, float] = {
            key: value  # type: ignore[misc]
            for key, value in metrics.to_json().items()
            if key in CLUSTER_METRICS and is_publishable(value)
        }
        for key in values.keys() - _GAUGES:
            self._count(key, values[key])
        with self._lock:
            self._of_step = {key: values[key] for key in values.keys() & _GAUGES}
            self._set_all()

    def on_eval(self, report: EvalReport) -> None:
        with self._lock:
            self._of_eval[dataset_tag(report.dataset)] = {
                "eval_avg_at_k": report.avg_at_k,
                "eval_pass_at_k": report.pass_at_k,
                "eval_learner_step": report.learner_step,
            }
            self._set_all()

    def _set_all(self) -> None:
        for key, value in self._of_step.items():
            self._gauge(key).set(value)
        for dataset, values in self._of_eval.items():
            for key, value in values.items():
                self._gauge(key).set(value, tags={"dataset": dataset})

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
