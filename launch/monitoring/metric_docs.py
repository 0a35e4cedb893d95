"""Writes docs/metrics.md out of the records: every number, its unit, its names and its meaning.

Run `python -m launch.monitoring.metric_docs > docs/metrics.md` after a change; a test compares.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

from trd_ray.evaluation import EvalReport
from trd_ray.field_docs import field_descriptions
from trd_ray.metrics import StepMetrics
from trd_ray.runtime_metrics import RuntimeMetrics
from trd_ray.scalars import CLUSTER_METRICS, SCALARS

_HEADER = """\
# Metrics

Made from the code (`python -m launch.monitoring.metric_docs > docs/metrics.md`). How trackers, Prometheus and
Grafana are turned on: [tracking.md](tracking.md).

Each row: the key in the run folder's file; the unit; the name in TensorBoard, W&B, MLflow and trackio; the
name in Prometheus. `null` in a file, and no point elsewhere, is a number that there is not.
"""

_UNITS = {
    "loss": "nats/token", "grad_norm": "1", "learning_rate": "1", "support_mean": "nats/token",
    "edit_distance_mean": "share", "length_ratio_mean": "ratio", "kept_share_mean": "share",
    "policy_version": "steps", "learner_step": "steps", "staleness_max": "steps", "tokens_per_s": "tokens/s",
    "refinement_accepted": "count", "flips_wrong_to_right": "count", "flips_right_to_wrong": "count",
    "rollout_length_mean": "tokens", "refined_length_mean": "tokens", "mean_length": "tokens",
    "num_loss_tokens": "tokens", "num_rollout_tokens": "tokens", "num_refined_tokens": "tokens",
    "num_generated_tokens": "tokens", "prompts_in": "count", "prompts_pending": "count",
    "refinement_refused_by_reason": "counts", "rejected_by_reason": "counts", "dataset": "", "k": "count",
    "avg_at_k": "share", "pass_at_k": "share", "avg_ci95": "share", "pass_ci95": "share",
}  # fmt: skip
_UNITS_BY_ENDING = {
    "_accuracy": "share", "_share": "share", "_s": "s", "_queue_mean": "count", "_depth_mean": "count",
    "_flight_mean": "count", "_max": "count",
}  # fmt: skip
_EVAL_TAGS = {
    "avg_at_k": "eval/DATASET/avg_at_N", "pass_at_k": "eval/DATASET/pass_at_K",
    "mean_length": "eval/DATASET/mean_length_tokens", "truncated_share": "eval/DATASET/truncated_share",
}  # fmt: skip


def unit_of(key: str) -> str:
    """KeyError if nobody has said."""
    if key in _UNITS:
        return _UNITS[key]
    if key.startswith("num_"):
        return "count"
    return next(unit for ending, unit in _UNITS_BY_ENDING.items() if key.endswith(ending))


def metric_docs() -> str:
    """The text of docs/metrics.md."""
    return "".join([_HEADER, *_step_section(), *_runtime_section(), *_eval_section()])


def _step_section() -> Iterator[str]:
    yield "\n## Each learner step: `metrics.jsonl`\n\n"
    yield from _table(StepMetrics, skip=("runtime",))


def _runtime_section() -> Iterator[str]:
    yield "\n## The runtime: in the same rows of `metrics.jsonl`\n\n"
    yield (
        "Seconds are means over a role's actors; busy, waiting, idle and down add up to the step. Trackers "
        "show them as shares of the step.\n\n"
    )
    yield from _table(RuntimeMetrics)


def _eval_section() -> Iterator[str]:
    yield "\n## Each evaluation: `eval.jsonl`\n\n"
    yield (
        "DATASET is the last part of `data.eval` (`testbed_held_out`), N the samples a problem, K the k of "
        "pass@k.\n\n"
    )
    yield from _table(EvalReport, prefix="eval_")


def _table(cls: type, *, skip: tuple[str, ...] = (), prefix: str = "") -> Iterator[str]:
    yield "| key | unit | trackers | Prometheus | meaning |\n|---|---|---|---|---|\n"
    meanings = field_descriptions(cls)
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        key = field.name
        tags = [scalar.tag for scalar in SCALARS if scalar.source == key] if not prefix else []
        if prefix and key in _EVAL_TAGS:
            tags = [_EVAL_TAGS[key]]
        metric = CLUSTER_METRICS.get(prefix + key)
        cells = (
            f"`{key}`",
            unit_of(key),
            ", ".join(f"`{tag}`" for tag in tags),
            f"`{metric.scraped_name}`" if metric is not None else "",
            meanings[key].replace("|", "\\|"),
        )
        yield f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.stdout.write(metric_docs())
