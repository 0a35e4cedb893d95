"""The Grafana board and the configuration of Prometheus: structure, queries, and names that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import promql_parser
import pytest
import yaml
from typer.testing import CliRunner

import launch.monitoring
from launch.cli import app
from launch.monitoring.board import board_json, panels
from launch.monitoring.export import DISCOVERY, files
from trd_ray.scalars import CLUSTER_METRICS, ClusterMetricKind

BOARD = Path(launch.monitoring.__file__).parent / "grafana_board.json"
EXPRESSIONS = [curve.expr for panel in panels() for curve in panel.curves]
SCRAPED = {metric.scraped_name: metric for metric in CLUSTER_METRICS.values()}


def test_the_board_is_made_from_the_code():
    assert BOARD.read_text() == board_json(), (
        "run: python -m launch.monitoring.board > launch/monitoring/grafana_board.json"
    )


def test_it_has_what_the_importer_of_grafana_needs():
    board = json.loads(BOARD.read_text())
    assert board["schemaVersion"] >= 36 and board["title"] and board["uid"]
    assert "id" not in board, "an id of another Grafana would overwrite what is there"
    datasource, session = board["templating"]["list"]
    assert (datasource["name"], datasource["type"], datasource["query"]) == (
        "datasource", "datasource", "prometheus",
    )  # fmt: skip
    assert session["name"] == "session" and session["type"] == "query"
    taken = set()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) == len(panels())
    for panel in board["panels"]:
        assert panel["type"] == "timeseries" and panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24 and min(at.values()) >= 0
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(set(refs)) == len(refs)
        assert all(target["expr"] for target in panel["targets"])


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", expression))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_query_parses_and_names_metrics_of_the_code(expression):
    # What Grafana fills in.
    parsed = promql_parser.parse(expression.replace("$__rate_interval", "1m").replace("$session", ".*"))
    assert isinstance(parsed, promql_parser.Expr)
    assert names_in(expression) and names_in(expression) <= set(SCRAPED)
    for name in names_in(expression):
        is_counter = SCRAPED[name].kind is ClusterMetricKind.COUNTER
        assert is_counter == expression.startswith(("rate(", "increase("))


def test_the_board_shows_what_a_step_is_judged_by():
    shown = set().union(*(names_in(expression) for expression in EXPRESSIONS))
    for key in (
        "loss", "refined_accuracy", "flips_wrong_to_right", "tokens_per_s", "generator_busy_s",
        "teacher_queue_mean", "buffer_depth_mean", "staleness_max", "eval_avg_at_k", "num_retries",
    ):  # fmt: skip
        assert CLUSTER_METRICS[key].scraped_name in shown


def test_the_command_writes_what_prometheus_and_grafana_read(tmp_path):
    done = CliRunner().invoke(
        app, ["monitoring", str(tmp_path / "out"), "--ray-temp-dir", str(tmp_path / "ray")]
    )
    assert done.exit_code == 0, done.output
    written = {
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert written == set(files(tmp_path))
    config = yaml.safe_load((tmp_path / "out" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["file_sd_configs"] == [{"files": [str(tmp_path / "ray" / DISCOVERY)]}]
    sources = (tmp_path / "out" / "grafana/provisioning/datasources/trd-ray.yml").read_text()
    assert yaml.safe_load(sources)["datasources"][0]["url"] == "http://127.0.0.1:9090"
