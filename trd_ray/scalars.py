"""The names under which a run's numbers appear in every tracker, and in the metrics of a Ray cluster.

Trackers have tags `area/quantity_unit`. Ray's metrics, which Prometheus reads, have the keys of
metrics.jsonl.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from trd_ray.activity_records import ActorState
from trd_ray.evaluation import EvalReport
from trd_ray.metrics import StepMetrics
from trd_ray.roles import Role
from trd_ray.runtime_metrics import RuntimeMetrics
from trd_ray.secrets_mask import mask_text
from trd_ray.stage_clock import Stage


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """One number of a step."""

    tag: str
    source: str
    """The keys of metrics.jsonl that it is made of, in words."""
    read: Callable[[StepMetrics], float | None]


def _field(tag: str, name: str) -> Scalar:
    return Scalar(tag=tag, source=name, read=lambda m: getattr(m, name))


def _runtime_field(tag: str, name: str) -> Scalar:
    return Scalar(tag=tag, source=name, read=lambda m: getattr(m.runtime, name) if m.runtime else None)


def _share(role: Role, state: ActorState) -> Scalar:
    return Scalar(
        tag=f"{role}/{state}_share",
        source=f"{role}_{state}_s",
        read=lambda m: m.runtime.share(role, state) if m.runtime else None,
    )


SCALARS: tuple[Scalar, ...] = (
    _field("learner/loss_nats", "loss"),
    _field("learner/grad_norm", "grad_norm"),
    _field("learner/learning_rate", "learning_rate"),
    _field("learner/num_loss_tokens", "num_loss_tokens"),
    _field("accuracy/rollout", "rollout_accuracy"),
    _field("accuracy/refined", "refined_accuracy"),
    _field("accuracy/trajectory", "trajectory_accuracy"),
    _field("accuracy/flips_wrong_to_right", "flips_wrong_to_right"),
    _field("accuracy/flips_right_to_wrong", "flips_right_to_wrong"),
    _field("refinement/num_accepted", "refinement_accepted"),
    Scalar(
        tag="refinement/num_refused",
        source="refinement_refused_by_reason",
        read=lambda m: sum(m.refinement_refused_by_reason.values()),
    ),
    _field("refinement/edit_distance_share", "edit_distance_mean"),
    _field("refinement/length_ratio", "length_ratio_mean"),
    _field("refinement/support_nats", "support_mean"),
    _field("refinement/kept_share", "kept_share_mean"),
    _field("pipeline/staleness_max", "staleness_max"),
    _field("pipeline/num_rejected", "num_rejected"),
    _field("pipeline/tokens_per_s", "tokens_per_s"),
    _field("pipeline/prompts_pending", "prompts_pending"),
    _runtime_field("pipeline/buffer_depth_mean", "buffer_depth_mean"),
    _runtime_field("pipeline/in_flight_mean", "in_flight_mean"),
    _runtime_field("pipeline/num_stale_dropped", "num_stale_dropped"),
    _runtime_field("pipeline/num_refreshed", "num_refreshed"),
    _field("length/rollout_tokens", "rollout_length_mean"),
    _field("length/refined_tokens", "refined_length_mean"),
    *(_field(f"time/{stage}_s", f"{stage}_s") for stage in (*Stage, "other", "step")),
    *(_share(role, state) for role in Role for state in ActorState),
    *(_runtime_field(f"{role}/queue_mean", f"{role}_queue_mean") for role in (Role.GENERATOR, Role.TEACHER)),
    *(_runtime_field(f"faults/num_restarts_{role}", f"num_restarts_{role}") for role in Role),
    _runtime_field("faults/num_retries", "num_retries"),
)
"""All numbers of a step, in the order in which they are explained."""


def step_scalars(metrics: StepMetrics) -> dict[str, float]:
    """By tag; what is not known is left out."""
    values = ((scalar.tag, scalar.read(metrics)) for scalar in SCALARS)
    return {tag: float(value) for tag, value in values if value is not None}


def eval_scalars(report: EvalReport) -> dict[str, float]:
    """By tag, of which the second part is the data set."""
    area = f"eval/{dataset_tag(report.dataset)}"
    return {
        f"{area}/avg_at_{report.num_samples}": report.avg_at_k,
        f"{area}/pass_at_{report.k}": report.pass_at_k,
        f"{area}/mean_length_tokens": report.mean_length,
        f"{area}/truncated_share": report.truncated_share,
    }


def dataset_tag(dataset: str) -> str:
    """A data set's path or URL as a part of a tag that every tracker takes, without secrets.

    >>> dataset_tag("testbed:held_out"), dataset_tag("s3://bucket/sets/aime24.jsonl")
    ('testbed_held_out', 'aime24.jsonl')
    """
    last = mask_text(dataset).split("?")[0].rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", last)[:80] or "data"


CLUSTER_PREFIX = "trd_ray_"
_COUNT = "num_"


class ClusterMetricKind(StrEnum):
    """What Prometheus is told of a number."""

    GAUGE = "gauge"
    """Its value in the last step."""
    COUNTER = "counter"
    """Its sum over all steps."""


@dataclass(frozen=True, kw_only=True)
class ClusterMetric:
    """One number that Ray's agent serves."""

    key: str
    """In metrics.jsonl, or in eval.jsonl with `eval_` before it."""
    kind: ClusterMetricKind
    by_dataset: bool = False

    @property
    def name(self) -> str:
        """As Ray is given it."""
        return CLUSTER_PREFIX + (
            self.key.removeprefix(_COUNT) if self.kind is ClusterMetricKind.COUNTER else self.key
        )

    @property
    def scraped_name(self) -> str:
        """As Prometheus knows it."""
        return f"ray_{self.name}" + ("_total" if self.kind is ClusterMetricKind.COUNTER else "")


_NUMBERS = ("int", "float", "int | None", "float | None")


def _cluster_metrics() -> Mapping[str, ClusterMetric]:
    names = [f.name for cls in (StepMetrics, RuntimeMetrics) for f in fields(cls) if f.type in _NUMBERS]
    found = {}
    for name in names:
        kind = ClusterMetricKind.COUNTER if name.startswith(_COUNT) else ClusterMetricKind.GAUGE
        found[name] = ClusterMetric(key=name, kind=kind)
    for name in ("eval_avg_at_k", "eval_pass_at_k", "eval_learner_step"):
        found[name] = ClusterMetric(key=name, kind=ClusterMetricKind.GAUGE, by_dataset=True)
    return found


CLUSTER_METRICS: Mapping[str, ClusterMetric] = _cluster_metrics()
"""By key: what a step counts (`num_retries`) is a counter, every other number a gauge."""


def is_publishable(value: object) -> bool:
    """Whether a row's value is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
