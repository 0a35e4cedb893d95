"""Several runs beside each other: values, differences, options, names, and one page that holds them all."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from typer.testing import CliRunner

from launch.cli import app
from tests.unit.report.fake_run import fake_run
from tests.unit.report.pages import Page
from trd_ray.errors import ConfigError
from trd_ray.report import write_report
from trd_ray.report.compare import comparison_panels, final_values, option_differences, run_css
from trd_ray.report.data import load_run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [
        fake_run(root / "trd", num_steps=4, per_step=8),
        fake_run(root / "opd", num_steps=4, per_step=8, refines=False),
    ]


def changed(folder, **options):
    tree = yaml.safe_load(folder.config.read_text())
    for key, value in options.items():
        section, name = key.split("__")
        tree[section][name] = value
    folder.config.write_text(yaml.safe_dump(tree))


def test_one_page_holds_all_runs(folders, tmp_path):
    out = write_report([f.path for f in folders], tmp_path / "comparison.html")
    page = Page(out.read_text(encoding="utf-8"))
    assert [run["name"] for run in page.runs] == ["trd", "opd"]
    assert [page.kinds(run).total() for run in (0, 1)] == [32, 32]
    assert set(page.kinds(1)) == {"right", "wrong"}
    # Made with the same seed: the same problems, so that they can be set beside each other.
    assert set(page.index(0)[0]["prompt_ids"]) & set(page.index(1)[0]["prompt_ids"])
    assert {"Rollout accuracy", "Loss", "Throughput", "avg@k on held_out"} <= set(page.panels)
    assert "method.trajectory" in page.text and "2 runs beside each other" in page.text
    assert all(address == "data:," or address.startswith("#") for address in page.addresses)
    assert len(page.executable) == 1


def test_only_options_that_differ_are_shown(folders, tmp_path):
    one, two = (fake_run(tmp_path / name, num_steps=1, evals=False) for name in ("one", "two"))
    assert option_differences([load_run(one), load_run(two)]) == []
    changed(one, run__dir="runs/one")
    changed(two, run__dir="runs/two", run__seed=7, learner__num_ranks=2)
    runs = [load_run(one), load_run(two)]
    assert option_differences(runs) == [("learner.num_ranks", ("1", "2")), ("run.seed", ("0", "7"))]
    missing = dataclasses.replace(runs[0], options={})
    assert ("run.seed", (None, "7")) in option_differences([missing, runs[1]])


@pytest.mark.parametrize(("num_trajectories", "trend"), [(200, "up"), (8, "")])
def test_values_are_compared_with_the_first_run(tmp_path, num_trajectories, trend):
    run = load_run(fake_run(tmp_path / "run", num_steps=2, per_step=num_trajectories, evals=False))
    before, after = (
        tuple(
            dataclasses.replace(
                step,
                rollout_accuracy=accuracy,
                step_s=step.step_s + more,
            )
            for step in run.steps
        )
        for accuracy, more in ((0.5, 0), (0.75, 1))
    )
    runs = [dataclasses.replace(run, steps=steps) for steps in (before, after)]
    rows = {row.name: row.cells for row in final_values(runs)}
    assert rows["Rollout accuracy"][0].difference == ""
    assert (rows["Rollout accuracy"][1].difference, rows["Rollout accuracy"][1].trend) == (
        "+25.0 points",
        trend,
    )
    assert (rows["Seconds a step"][1].difference, rows["Seconds a step"][1].trend) == ("+1", "down")
    assert rows["Loss, nats a token"][1].trend == "", "neither direction is better between methods"
    assert "Generators not busy" not in rows, "nobody watched these runs"


def test_a_value_that_one_run_lacks_is_a_dash(folders):
    rows = {row.name: row.cells for row in final_values([load_run(f) for f in folders])}
    trd, opd = rows["Refined accuracy"]
    assert trd.value.endswith("%")
    assert (opd.value, opd.difference) == ("\u2013", "")
    reverse = {row.name: row.cells for row in final_values([load_run(f) for f in folders[::-1]])}
    assert reverse["Refined accuracy"][1].difference == "", "there is nothing to compare with"


@pytest.mark.parametrize(
    ("avg", "interval", "words", "trend"),
    [
        (0.9, (0.8, 1.0), "points", "up"),
        (0.0, (0.0, 0.01), "points", "down"),
        (0.31, (0.0, 1.0), "intervals overlap", ""),
    ],
)
def test_evaluations_whose_intervals_overlap_are_no_better(folders, avg, interval, words, trend):
    run = load_run(folders[0])
    last = dataclasses.replace(run.evals[-1], avg_at_k=0.3, avg_ci95=(0.25, 0.35))
    other = dataclasses.replace(last, avg_at_k=avg, avg_ci95=interval)
    runs = [dataclasses.replace(run, evals=(report,)) for report in (last, other)]
    cells = {row.name: row.cells for row in final_values(runs)}["avg@8 on held_out"]
    assert cells[0].difference == ""
    assert cells[1].difference.endswith(words)
    assert cells[1].trend == trend


def test_curves_of_all_runs_are_on_one_chart_in_their_colours(folders):
    runs = [load_run(folder) for folder in folders]
    by_title = {panel.title: panel for panel in comparison_panels(runs)}
    assert by_title["Rollout accuracy"].legend == (("c-run-0", "trd"), ("c-run-1", "opd"))
    assert by_title["avg@k on held_out"].legend == (
        ("c-run-0", "trd (avg@8)"), ("c-run-1", "opd (avg@8)"),
    )  # fmt: skip
    assert 'class="line c-run-1"' in by_title["Loss"].svg
    assert "c-run-1" not in by_title["Refined accuracy"].svg
    assert run_css(8) == run_css(0)


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [fake_run(tmp_path / name / "run", num_steps=1, evals=False).path for name in ("a", "b")]
    page = Page(write_report(runs, tmp_path / "x.html").read_text())
    assert [run["name"] for run in page.runs] == ["a/run", "b/run"]
    with pytest.raises(ConfigError, match="named twice"):
        write_report([runs[0], runs[0]], tmp_path / "x.html")


def test_the_command_line(folders, tmp_path):
    one, two = (str(folder.path) for folder in folders)
    done = CliRunner().invoke(app, ["report", one])
    assert done.exit_code == 0 and done.output.strip().endswith("report.html")
    out = tmp_path / "new" / "both.html"
    done = CliRunner().invoke(app, ["report", one, two, "--out", str(out)])
    assert done.exit_code == 0 and out.is_file()
    for arguments, message in (
        ([one, two], "--out"),
        ([one] * 9, "1 to 8 run folders"),
        ([one, "--out", str(tmp_path)], "would replace a folder"),
        ([str(tmp_path / "nowhere")], "holds no run"),
    ):
        extra = ["--out", str(out)] if len(arguments) > 2 and "--out" not in arguments else []
        failed = CliRunner().invoke(app, ["report", *arguments, *extra])
        assert isinstance(failed.exception, ConfigError), failed.output
        assert message in str(failed.exception)
