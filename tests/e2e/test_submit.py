"""Runs on a cluster that is there already, sent by the real commands over its job API, with a token.

One cluster for all tests, and three runs: followed to its end, stopped on the way, sent by Ray's command.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.e2e.job_cluster import JobCluster, job_cluster
from tests.e2e.processes import CONFIGS, ROOT, SMALL, wait_until_gone
from trd_ray.metrics import read_metrics
from trd_ray.model_files import resolve_model
from trd_ray.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LIMIT_S = 900.0
ACTORS = ("ray::GeneratorHolder", "ray::TeacherHolder", "ray::LearnerRank")
QUICK = (*SMALL, "run.num_steps=1", 'data.eval=""')


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    with job_cluster(num_cpus=2) as running:
        yield running


def call(
    cluster: JobCluster, *arguments: str, cwd: Path = ROOT, token: bool = True
) -> subprocess.CompletedProcess[str]:
    """`trd-ray submit` with this interpreter."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", "submit", *arguments, "--address", cluster.address],
        capture_output=True, text=True, cwd=cwd, timeout=LIMIT_S,
        env=environment | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "HOME": str(cluster.log.parent)}
        | (cluster.environment if token else {}),
    )  # fmt: skip


def check_run(run_dir: Path) -> None:
    (metrics,) = read_metrics(RunFolder(run_dir).metrics)
    assert math.isfinite(metrics.loss) and metrics.num_consumed > 0
    checkpoint = RunFolder(run_dir).latest_checkpoint()
    assert checkpoint is not None and checkpoint.learner_step == 1
    assert (run_dir / "report.html").exists()


def test_a_run_is_sent_followed_and_read_back(cluster: JobCluster, tmp_path: Path):
    run_dir = tmp_path / "run"
    refused = call(cluster, "status", token=False)
    assert refused.returncode == 2 and "RAY_AUTH_TOKEN" in refused.stderr, refused.stderr

    done = call(cluster, str(CONFIGS / "trd_opd.yaml"), f"run.dir={run_dir}", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 1/1" in done.stdout and "has ended: SUCCEEDED" in done.stderr
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["ray"]["address"] == "auto"
    check_run(run_dir)
    # The node's PATH has no Python with Ray, and its environment nothing of this repository.
    assert f"job: {Path(sys.executable).parent}/python3 on" in done.stdout
    shown = call(cluster, "status").stdout
    assert "SUCCEEDED" in shown and "trd_opd" in shown
    assert cluster.token not in done.stdout + done.stderr + shown


def foreign_folder(folder: Path, run_dir: Path) -> Path:
    """Somebody's own: a configuration with a parent, and a model of theirs that git does not know."""
    (folder / "configs").mkdir(parents=True)
    shutil.copytree(resolve_model("testbed:student"), folder / "models/mine")
    (folder / ".gitignore").write_text("models/\n")
    (folder / ".env").write_text("PASSWORD=geheim")
    (folder / "configs/parent.yaml").write_text(
        f"extends: {CONFIGS / 'trd_opd.yaml'}\nrun: {{num_steps: 1000}}\n"
    )
    mine = folder / "configs/mine.yaml"
    mine.write_text(f"extends: parent.yaml\nrun: {{dir: {run_dir}}}\nstudent: {{model: models/mine}}\n")
    return mine


def test_a_run_from_another_folder_is_stopped_with_a_checkpoint(cluster: JobCluster, tmp_path: Path):
    run_dir, folder = tmp_path / "run", tmp_path / "folder"
    mine = foreign_folder(folder, run_dir)
    sent = call(
        cluster, str(mine), 'data.eval=""', *SMALL, "--working-dir", str(folder), "--no-wait", cwd=tmp_path
    )
    assert sent.returncode == 0, sent.stderr
    job_id = sent.stdout.strip()
    wait_for_steps(cluster, job_id, run_dir, num=2)

    (driver,) = [p for p in cluster.named("launch.train") if "--resume" not in p.cmdline()]
    package = Path(driver.cwd())
    assert (package / "launch/train.py").is_file() and (package / "models/mine/config.json").is_file()
    assert not (package / ".env").exists()
    assert package.is_relative_to(cluster.log.parent.resolve())
    actors = cluster.named(*ACTORS)
    assert len(actors) == len(ACTORS)
    assert {Path(actor.cwd()) for actor in actors} == {package}
    left = {driver.pid, *(p.pid for actor in actors for p in [actor, *children(actor)])}

    stopped = call(cluster, "stop", job_id)
    assert stopped.returncode == 0 and "has ended: STOPPED" in stopped.stdout, stopped.stderr
    steps = [m.learner_step for m in read_metrics(RunFolder(run_dir).metrics)]
    checkpoint = RunFolder(run_dir).latest_checkpoint()
    assert checkpoint is not None and checkpoint.learner_step == steps[-1]
    assert wait_until_gone(left, timeout_s=120) == set()
    assert cluster.named("launch.train", *ACTORS) == []
    logs = call(cluster, "logs", job_id)
    assert "continue with --resume" in logs.stdout
    followed = call(cluster, "logs", job_id, "--follow")
    assert followed.returncode == 1 and followed.stdout == logs.stdout
    shown = call(cluster, "status", job_id).stdout
    assert "STOPPED" in shown and str(run_dir) in shown


def children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for_steps(cluster: JobCluster, job_id: str, run_dir: Path, *, num: int) -> None:
    """Until a run that goes on somewhere else has written so many steps."""
    # Asked as its user would: it ends if the job does.
    follower = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "submit", "logs", job_id, "--follow", "--address",
         cluster.address],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env=os.environ | cluster.environment | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert follower.stdout is not None
    shown = []
    try:
        for line in follower.stdout:
            shown.append(line)
            if line.startswith(f"step {num}/"):
                return
    finally:
        follower.kill()
        follower.wait(30)
    pytest.fail(f"the job ended before step {num}:\n" + "".join(shown))


def test_rays_own_command_runs_the_repository(cluster: JobCluster, tmp_path: Path):
    run_dir = tmp_path / "run"
    # The node's PATH has no `python` with Ray here, so it is named.
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", cluster.address,
         "--working-dir", ".", "--", sys.executable, "-m", "launch.train", "configs/experiment/trd_opd.yaml",
         f"run.dir={run_dir}", "ray.address=auto", *QUICK],
        capture_output=True, text=True, cwd=ROOT, timeout=LIMIT_S, env=os.environ | cluster.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    check_run(run_dir)
