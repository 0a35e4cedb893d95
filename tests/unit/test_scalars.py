"""Names of the numbers: one list, the same for all, described in the pages."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

from launch.monitoring.metric_docs import metric_docs
from tests.unit.step_records import step
from trd_ray.evaluation import EvalReport
from trd_ray.field_docs import field_descriptions
from trd_ray.metrics import StepMetrics
from trd_ray.runtime_metrics import RuntimeMetrics
from trd_ray.scalars import CLUSTER_METRICS, SCALARS, dataset_tag, is_publishable, step_scalars

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_metrics_is_made_from_the_code_and_leaves_nothing_out():
    text = (DOCS / "metrics.md").read_text()
    assert text == metric_docs(), "run: python -m launch.monitoring.metric_docs > docs/metrics.md"
    for cls in (StepMetrics, RuntimeMetrics, EvalReport):
        described = field_descriptions(cls)
        for field in dataclasses.fields(cls):
            assert described.get(field.name), f"{cls.__name__}.{field.name} lacks its meaning"
    for scalar in SCALARS:
        assert f"`{scalar.tag}`" in text
    for metric in CLUSTER_METRICS.values():
        assert f"`{metric.scraped_name}`" in text


def test_tags_are_plain_and_different_and_made_of_keys_that_exist():
    tags = [scalar.tag for scalar in SCALARS]
    assert len(set(tags)) == len(tags)
    assert all(re.fullmatch(r"[a-z]+/[a-z_]+", tag) for tag in tags)
    keys = {field.name for cls in (StepMetrics, RuntimeMetrics) for field in dataclasses.fields(cls)}
    assert {scalar.source for scalar in SCALARS} <= keys


def test_numbers_of_a_step_by_tag():
    runtime = RuntimeMetrics(
        generator_busy_s=1.5, generator_waiting_s=0.5, generator_idle_s=0.0, generator_down_s=0.0,
        teacher_queue_mean=2.5, num_retries=3,
    )  # fmt: skip
    m = dataclasses.replace(
        step(2, refined=None), grad_norm=math.nan, flips_wrong_to_right=4, runtime=runtime,
        refinement_refused_by_reason={"worse": 2, "empty": 1},
    )  # fmt: skip
    found = step_scalars(m)
    assert found["learner/loss_nats"] == 0.25 and found["accuracy/flips_wrong_to_right"] == 4.0
    assert found["generator/busy_share"] == 0.75 and found["generator/waiting_share"] == 0.25
    assert found["teacher/queue_mean"] == 2.5 and found["faults/num_retries"] == 3.0
    assert found["refinement/num_refused"] == 3.0
    assert math.isnan(found["learner/grad_norm"])  # a number that went wrong is shown as such
    assert not {"accuracy/refined", "learner/busy_share", "pipeline/buffer_depth_mean"} & set(found)
    assert "generator/busy_share" not in step_scalars(step(1))  # not watched


def test_data_sets_become_parts_of_tags():
    assert dataset_tag("/data/sets/aime24.jsonl") == "aime24.jsonl"
    assert dataset_tag("https://me:pw@host/a b.jsonl?token=x") == "a_b.jsonl"
    assert dataset_tag("sample:gsm8k_test") == "sample_gsm8k_test"


def test_what_ray_publishes():
    assert CLUSTER_METRICS["num_retries"].scraped_name == "ray_trd_ray_retries_total"
    assert CLUSTER_METRICS["loss"].scraped_name == "ray_trd_ray_loss"
    assert "rejected_by_reason" not in CLUSTER_METRICS and "runtime" not in CLUSTER_METRICS
    names = [metric.name for metric in CLUSTER_METRICS.values()]
    assert len(set(names)) == len(names)
    assert is_publishable(0) and is_publishable(1.5)
    assert not any(map(is_publishable, (None, True, "1", math.nan, math.inf, {})))
