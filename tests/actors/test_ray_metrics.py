"""The numbers of a run arrive at the endpoint that Prometheus reads."""

from __future__ import annotations

import dataclasses
import math
import re
import threading
import time
import urllib.request

import pytest
import ray

from actors.ray_metrics import RayMetrics
from tests.unit.step_records import step
from trd_ray.evaluation import GradedSample, summarise
from trd_ray.runtime_metrics import RuntimeMetrics

_REPORTED_WITHIN_S = 60.0
"""Ray reports every 10 s."""
_FORGOTTEN_AFTER_S = 35.0
"""What was not set again by then is gone."""


def published() -> dict[str, float]:
    """Values by name, and by name and data set, as the agent of this node serves them."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return {}  # too busy to answer
    found = re.findall(r"^ray_(trd_ray_\w+)\{(.*?)\} (\S+)$", text, re.MULTILINE)
    values = {}
    for name, tags, value in found:
        dataset = re.search(r'dataset="(.*?)"', tags)
        values[f"{name}:{dataset[1]}" if dataset else name] = float(value)
    return values


@pytest.mark.usefixtures("cluster")
def test_gauges_show_the_last_step_however_long_the_next_takes_and_counters_all_of_them():
    samples = [GradedSample(prompt_id=str(i), correct=i > 1, num_tokens=3, truncated=False) for i in range(4)]
    with RayMetrics() as observer:
        for number in (1, 2):
            runtime = RuntimeMetrics(
                generator_busy_s=1.0 + number, buffer_depth_mean=3.5, num_retries=2 * number
            )
            # The first has a number that the second has not.
            grad_norm = 1.0 if number == 1 else math.nan
            observer.on_step(dataclasses.replace(step(number), grad_norm=grad_norm, runtime=runtime))
        observer.on_eval(summarise(samples, learner_step=2, dataset="held_out"))
        time.sleep(_FORGOTTEN_AFTER_S)
        deadline = time.monotonic() + _REPORTED_WITHIN_S
        while "trd_ray_eval_avg_at_k:held_out" not in (values := published()):
            assert time.monotonic() < deadline, f"only {sorted(values)} after {_REPORTED_WITHIN_S} s"
            time.sleep(0.5)
    assert "ray-metrics" not in {thread.name for thread in threading.enumerate()}
    assert values["trd_ray_learner_step"] == 2.0
    assert values["trd_ray_generator_busy_s"] == 3.0
    assert values["trd_ray_buffer_depth_mean"] == 3.5
    assert values["trd_ray_retries_total"] == 6.0
    assert values["trd_ray_generated_tokens_total"] == 320.0
    assert values["trd_ray_eval_avg_at_k:held_out"] == 0.5
    assert not {"trd_ray_grad_norm", "trd_ray_teacher_busy_s"} & set(values)
