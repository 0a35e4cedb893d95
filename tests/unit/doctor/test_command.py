"""`trd-ray doctor` and `trd-ray plan` as commands: exit codes, JSON, and what they load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.doctor import examine as examination
from launch.doctor.finding import Outcome, failed_by, found, not_applicable
from trd_ray.errors import ConfigError, DataError, RunFailedError, describe

ROOT = Path(__file__).parents[3]
TRD_OPD = str(ROOT / "configs/experiment/trd_opd.yaml")
RUNNER = CliRunner()


@pytest.mark.parametrize(
    ("outcomes", "code"), [([True, True], 0), ([True, False], 1), ([], 0)]
)  # fmt: skip
def test_the_exit_code_follows_the_findings(monkeypatch, outcomes: list[bool], code: int):
    made = [found(f"check {i}", passed, "5 of 6", "do it") for i, passed in enumerate(outcomes)]
    monkeypatch.setattr(
        examination, "machine_findings", lambda config: [*made, not_applicable("gpu", "none")]
    )
    done = RUNNER.invoke(app, ["doctor", "--json"])
    assert done.exit_code == code
    report = json.loads(done.stdout)
    assert report["passed"] is (code == 0)
    assert [each["outcome"] for each in report["checks"]][-1] == "not_applicable"
    for each, passed in zip(report["checks"], outcomes, strict=False):
        assert (each["outcome"], each["remedy"]) == (("passed", "") if passed else ("failed", "do it"))
    assert "5 of 6" in RUNNER.invoke(app, ["doctor"]).stdout or not outcomes


def test_quick_makes_the_machine_s_checks_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(examination, "machine_findings", lambda config: seen.append(config) or [])
    monkeypatch.setattr(examination, "_run_findings", lambda config: pytest.fail("actors were asked for"))
    assert RUNNER.invoke(app, ["doctor", TRD_OPD, "--quick", "ray.num_cpus=2"]).exit_code == 0
    assert seen[0].ray.num_cpus == 2


def test_a_bad_configuration_is_no_finding():
    for command in ("doctor", "plan"):
        done = RUNNER.invoke(app, [command, TRD_OPD, "no.such=1"])
        assert isinstance(done.exception, ConfigError)  # which `main` turns into exit code 2


def test_an_error_becomes_a_finding_with_its_remedy():
    text = describe("it broke", where="a.b", got="1", expected="2", remedy="mend it")
    finding = failed_by("x", RunFailedError(text))
    assert finding.outcome is Outcome.FAILED
    assert finding.measured == "RunFailedError: it broke"
    assert "mend it" in finding.remedy


def test_a_plan_of_the_testbed_as_json():
    done = RUNNER.invoke(app, ["plan", TRD_OPD, "--json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["rates"]["kind"] == "measured"
    assert plan["time"]["step_most_s"] > 0
    assert {flow["what"] for flow in plan["traffic"]} >= {"rollouts", "hidden states", "weights"}


def test_a_plan_for_people_says_where_its_rates_come_from():
    recipe = str(ROOT / "configs/experiment/qwen3/trd_opd_4b.yaml")
    done = RUNNER.invoke(app, ["plan", recipe, "--rollout-tokens", "5000", "--refinement-tokens", "600"])
    assert done.exit_code == 0, done.output
    assert "rates published" in done.stdout and "assumption" in done.stdout
    assert "bottleneck: " in done.stdout and "split of devices: " in done.stdout
    unknown = RUNNER.invoke(
        app, ["plan", TRD_OPD, "student.model=Qwen/Qwen3-4B", "teacher.model=Qwen/Qwen3-8B"]
    )
    assert "no rates known" in unknown.stdout and "--rates RUN_DIR" in unknown.stdout


def test_rates_of_a_folder_without_a_run(tmp_path: Path):
    done = RUNNER.invoke(app, ["plan", TRD_OPD, "--rates", str(tmp_path)])
    assert isinstance(done.exception, DataError)


def test_planning_loads_no_engine():
    code = (
        "import sys\n"
        "import trd_ray.cost.plan, launch.cli_plan, launch.plan_view\n"
        "import launch.doctor.machine_checks\n"
        "print([n for n in ('torch', 'transformers', 'ray', 'vllm', 'deepspeed') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
