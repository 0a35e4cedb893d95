"""The Grafana board, made from `trd_ray.scalars.CLUSTER_METRICS`, so that no name can drift.

Run `python -m launch.monitoring.board > launch/monitoring/grafana_board.json` after a change; a test
compares.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from trd_ray.activity_records import ActorState
from trd_ray.roles import Role
from trd_ray.scalars import CLUSTER_METRICS, ClusterMetricKind
from trd_ray.stage_clock import Stage

_SCHEMA_VERSION = 39
"""Grafana 10 and later read it; later ones bring it up to date themselves."""
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3
_SELECTED = 'SessionName=~"$session"'
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One curve of a panel."""

    expr: str
    legend: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One diagram."""

    title: str
    unit: str
    """As Grafana names it: `percentunit`, `s`, `short`."""
    curves: tuple[Curve, ...]
    is_stacked: bool = False


def _value(key: str) -> str:
    """A gauge of the last step. KeyError if the code has no such metric."""
    metric = CLUSTER_METRICS[key]
    assert metric.kind is ClusterMetricKind.GAUGE, f"{key} is a counter: draw its rate"
    return f"{metric.scraped_name}{{{_SELECTED}}}"


def _rate(key: str) -> str:
    """A counter's growth a second."""
    metric = CLUSTER_METRICS[key]
    assert metric.kind is ClusterMetricKind.COUNTER, f"{key} is a gauge"
    return f"rate({metric.scraped_name}{{{_SELECTED}}}[$__rate_interval])"


def _increase(key: str) -> str:
    """A counter's growth over ten minutes."""
    return f"increase({CLUSTER_METRICS[key].scraped_name}{{{_SELECTED}}}[10m])"


def _gauges(*keys: str) -> tuple[Curve, ...]:
    return tuple(Curve(expr=_value(key), legend=key) for key in keys)


def _busy_share(role: Role) -> Curve:
    # By name: a sum that ignores labels would add up several drivers.
    total = " + ".join(_value(f"{role}_{state}_s") for state in ActorState)
    return Curve(expr=f"{_value(f'{role}_{ActorState.BUSY}_s')} / ({total} > 0)", legend=str(role))


def panels() -> tuple[Panel, ...]:
    """In the order in which one asks: does it learn, how fast, who waits, what broke."""
    by_dataset = tuple(
        Curve(expr=_value(key), legend=f"{key.removeprefix('eval_')} {{{{dataset}}}}")
        for key in ("eval_avg_at_k", "eval_pass_at_k")
    )
    queues = [f"{role}_queue_{what}" for role in (Role.GENERATOR, Role.TEACHER) for what in ("mean", "max")]
    return (
        Panel(title="Accuracy", unit="percentunit",
              curves=_gauges("rollout_accuracy", "refined_accuracy", "trajectory_accuracy")),
        Panel(title="Evaluation", unit="percentunit", curves=by_dataset),
        Panel(title="Loss, nats a token", unit="short", curves=_gauges("loss")),
        Panel(title="Flips by refinement", unit="short",
              curves=_gauges("flips_wrong_to_right", "flips_right_to_wrong")),
        Panel(title="Gradient norm", unit="short", curves=_gauges("grad_norm")),
        Panel(title="Learner step", unit="short", curves=_gauges("learner_step", "policy_version")),
        Panel(title="Tokens a second, whole steps", unit="short", curves=_gauges("tokens_per_s")),
        Panel(title="Tokens a second, wall clock", unit="short", curves=(
            Curve(expr=_rate("num_generated_tokens"), legend="generated"),
            Curve(expr=_rate("num_loss_tokens"), legend="learnt from"))),
        Panel(title="Step by stage", unit="s", is_stacked=True,
              curves=_gauges(*(f"{stage}_s" for stage in (*Stage, "other")))),
        Panel(title="Busy share", unit="percentunit", curves=tuple(_busy_share(role) for role in Role)),
        Panel(title="Queue depth", unit="short",
              curves=_gauges(*queues)),
        Panel(title="Buffer and prompts in flight", unit="short",
              curves=_gauges("buffer_depth_mean", "in_flight_mean", "prompts_pending")),
        Panel(title="Staleness", unit="short", curves=_gauges("staleness_max")),
        Panel(title="Tokens an answer", unit="short",
              curves=_gauges("rollout_length_mean", "refined_length_mean")),
        Panel(title="Faults and drops in ten minutes", unit="short", curves=tuple(
            Curve(expr=_increase(key), legend=key.removeprefix("num_"))
            for key in (*(f"num_restarts_{role}" for role in Role), "num_retries", "num_rejected",
                        "num_stale_dropped"))),
    )  # fmt: skip


def board() -> dict[str, object]:
    """As Grafana's importer takes it."""
    return {
        "title": "trd-ray",
        "uid": "trd-ray",
        "tags": ["trd-ray", "ray"],
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "links": [],
        "panels": [_panel(panel, number) for number, panel in enumerate(panels())],
    }


def _variables() -> list[dict[str, object]]:
    sessions = f"label_values({CLUSTER_METRICS['learner_step'].scraped_name}, SessionName)"
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus",
         "hide": 0, "refresh": 1, "regex": "", "multi": False, "includeAll": False, "options": [],
         "current": {}},
        {"name": "session", "type": "query", "label": "Ray session", "datasource": _DATASOURCE,
         "definition": sessions, "query": {"query": sessions, "refId": "session"}, "hide": 0, "refresh": 2,
         "regex": "", "sort": 2, "multi": True, "includeAll": True, "allValue": ".*", "options": [],
         "current": {"selected": True, "text": ["All"], "value": ["$__all"]}},
    ]  # fmt: skip


def _panel(panel: Panel, number: int) -> dict[str, object]:
    custom: dict[str, object] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "spanNulls": True}
    if panel.is_stacked:
        custom |= {"fillOpacity": 60, "stacking": {"mode": "normal", "group": "A"}}
    defaults: dict[str, object] = {"unit": panel.unit, "custom": custom}
    if panel.unit == "percentunit":
        defaults |= {"min": 0, "max": 1}
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _DATASOURCE,
        "gridPos": {"h": _HEIGHT, "w": _WIDTH, "x": column * _WIDTH, "y": row * _HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                    "tooltip": {"mode": "multi", "sort": "none"}},
        "targets": _targets(panel.curves),
    }  # fmt: skip


def _targets(curves: Sequence[Curve]) -> list[dict[str, object]]:
    return [
        {"refId": chr(ord("A") + number), "expr": curve.expr, "legendFormat": curve.legend,
         "datasource": _DATASOURCE, "editorMode": "code", "range": True}
        for number, curve in enumerate(curves)
    ]  # fmt: skip


def board_json() -> str:
    """The text of grafana_board.json."""
    return json.dumps(board(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(board_json())
