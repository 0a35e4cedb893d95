"""The files in launch/cluster: fields, sizes and commands, as far as can be told without their clusters."""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from launch.dry_run import show_plan
from launch.submit.job import stop_wait_s
from tests.unit.submit.kuberay import resource
from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.placement_plan import placement_plan

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "launch/cluster"
SCRIPTS = sorted(ROOT.glob("launch/**/*.sh"))
IMAGE_FOLDER = "/opt/trd-ray"


def manifest(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return loaded


def command_of(text: str) -> tuple[Path, list[str]]:
    """Configuration and overrides of a `launch.train` in a shell command."""
    words = shlex.split(text.split("launch.train", 1)[1])
    return ROOT / words[0].removeprefix(f"{IMAGE_FOLDER}/"), words[1:]


@pytest.fixture
def job() -> dict[str, Any]:
    return manifest("kuberay-job.yaml")


@pytest.mark.parametrize(
    ("name", "kind"), [("kuberay-cluster.yaml", "RayCluster"), ("kuberay-job.yaml", "RayJob")]
)
def test_manifests_have_known_fields_only(name: str, kind: str):
    given = manifest(name)
    jsonschema.validate(given, resource(kind))
    wrong = copy.deepcopy(given)
    wrong["spec"]["workerGroupSpec"] = []
    with pytest.raises(jsonschema.ValidationError, match="workerGroupSpec"):
        jsonschema.validate(wrong, resource(kind))


def test_both_manifests_describe_the_same_cluster(job: dict[str, Any]):
    assert job["spec"]["rayClusterSpec"] == manifest("kuberay-cluster.yaml")["spec"]


def test_the_cluster_is_protected_and_of_the_version_that_is_pinned(job: dict[str, Any]):
    spec = job["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert f"ray=={spec['rayVersion']}\n" in (ROOT / "launch/requirements/cpu.txt").read_text()


def test_the_named_run_passes_its_dry_run(
    job: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("trd_ray.planned_models.cached", lambda name: None)
    entry = job["spec"]["entrypoint"]
    # The operator puts it unquoted behind `ray job submit --`, in a shell.
    assert re.fullmatch(r"[A-Za-z0-9_./=: -]+", entry)
    path, overrides = command_of(entry)
    config = load_config(path, overrides)
    show_plan(config, no_ray=False)
    assert "learner-2" in capsys.readouterr().out
    assert config.run.dir.startswith("/shared/") and config.ray.address == "auto"
    # Longer than the pods' images take.
    assert config.timeouts.placement_s >= 1800
    variables = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert variables["PYTHONPATH"] == IMAGE_FOLDER
    assert variables["RAY_JOB_STOP_WAIT_TIME_S"] == str(stop_wait_s(config.timeouts))


def amounts(container: dict[str, Any]) -> list[float]:
    limits = container["resources"]["limits"]
    assert limits == container["resources"]["requests"]
    return [
        float(limits["cpu"]),
        float(limits.get("nvidia.com/gpu", 0)),
        float(limits["memory"].removesuffix("Gi")),
    ]


def test_every_actor_fits_and_no_pod_is_too_many(job: dict[str, Any]):
    spec = job["spec"]["rayClusterSpec"]
    pods = [
        amounts(group["template"]["spec"]["containers"][0])
        for group in spec["workerGroupSpecs"]
        for _ in range(group["replicas"])
    ]
    path, overrides = command_of(job["spec"]["entrypoint"])
    plan = placement_plan(load_config(path, overrides))
    needs = sorted(
        ([b.resources.cpus, b.resources.gpus, b.resources.memory_gib] for b in plan.bundles), reverse=True
    )
    assert sum(pod[1] for pod in pods) == sum(need[1] for need in needs) == 8
    free = [list(pod) for pod in pods]
    for need in sorted(needs, key=lambda n: -n[2]):
        # Ray gives room for its object store away too; a tenth is left.
        room = [p for p in free if p[0] >= need[0] and p[1] >= need[1] and 0.9 * p[2] >= need[2]]
        assert room, f"no pod for {need} in {free}"
        best = min(room, key=lambda p: p[2])
        for i, amount in enumerate(need):
            best[i] -= amount
    assert all(pod[1] == 0 for pod in free)
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-gpus"] == head["rayStartParams"]["num-cpus"] == "0"


def test_mounts_name_volumes(job: dict[str, Any]):
    spec = job["spec"]["rayClusterSpec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert set(mounts) == volumes
        assert mounts == {"shared": "/shared", "shm": "/dev/shm"}


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile; comments and line ends taken out."""
    lines = [line for line in (FOLDER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in whole.splitlines() if line.strip()]


def test_the_container_file_names_what_there_is():
    steps = instructions()
    assert {name for name, _ in steps} <= {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}
    assert steps[0][0] == "ARG" and steps[1][0] == "FROM"
    copied = [shlex.split(rest) for name, rest in steps if name == "COPY"]
    for *sources, target in copied:
        assert all((ROOT / source).exists() for source in sources), sources
        assert target == "./" or [target] == sources
    # What `pip install .` and the recipes need.
    assert {source for *sources, _ in copied for source in sources} >= {
        "pyproject.toml", "README.md", "LICENSE", "trd_ray", "actors", "launch", "configs",
    }  # fmt: skip
    # KubeRay's probes call it in every container.
    assert any("apt-get install" in rest and " wget " in rest for name, rest in steps if name == "RUN")
    users = [rest for name, rest in steps if name == "USER"]
    assert users == ["1000"]
    pods = manifest("kuberay-cluster.yaml")["spec"]["headGroupSpec"]["template"]["spec"]
    assert str(pods["securityContext"]["runAsUser"]) == users[0]
    entry = manifest("kuberay-job.yaml")["spec"]["entrypoint"]
    (folder,) = [rest for name, rest in steps if name == "WORKDIR"]
    assert folder == IMAGE_FOLDER and f" {folder}/configs/" in entry


def shellcheck(*arguments: str, text: str | None = None) -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program is not None, "shellcheck is not installed: launch/setup.sh dev"
    done = subprocess.run([program, *arguments], input=text, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands_of_the_container_file_are_sound():
    for name, rest in instructions():
        if name == "RUN":
            shellcheck("--shell=sh", "-", text=f"export PART=cpu\n{rest}\n")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_sound(script: Path):
    shell = "bash" if "bash" in script.read_text().splitlines()[0] else "sh"
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    shellcheck(str(script))
    assert os.access(script, os.X_OK)


def script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(FOLDER / name), *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["slurm.sh", "bare_metal.sh"])
def test_scripts_without_arguments_say_how_they_are_used(name: str):
    done = script(name)
    assert done.returncode == 2 and "usage:" in done.stderr


def test_slurm_dry_run_shows_commands_that_pass_their_own_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("trd_ray.planned_models.cached", lambda name: None)
    given = ["configs/experiment/qwen3/trd_opd_4b.yaml", f"run.dir={tmp_path / 'run'}"]
    done = script("slurm.sh", "--dry-run", *given)
    assert done.returncode == 0, done.stderr
    head, others, train = done.stdout.splitlines()
    assert "--nodelist=node1" in head and "ray start --head --block" in head
    port = re.search(r"--port=(\d+)", head)
    assert port is not None and f"--address=10.0.0.1:{port[1]}" in others and "--exclude=node1" in others
    path, overrides = command_of(train)
    config: TrdConfig = load_config(path, overrides)
    assert config.ray.address == f"10.0.0.1:{port[1]}"
    show_plan(config, no_ray=False)
    assert "learner-2" in capsys.readouterr().out


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


LISTENS = """
import socket, sys, time
port = next(a.split("=")[1] for a in sys.argv if a.startswith("--port="))
with socket.create_server(("127.0.0.1", int(port))):
    time.sleep(300)
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Stand-ins for a SLURM node's programs and for trd-ray's; what they are called with is in `calls`."""
    bin_folder = tmp_path / "bin"
    executable(bin_folder / "scontrol", "#!/bin/sh\nprintf 'one\\ntwo\\n'\n")
    (tmp_path / "listens.py").write_text(LISTENS)
    executable(
        bin_folder / "srun",
        f"""#!/bin/sh
echo "srun token=${{#RAY_AUTH_TOKEN}} $*" >>{tmp_path}/calls
case "$*" in
  *hostname*) echo "127.0.0.1 10.9.9.9" ;;
  *--head*) exec {sys.executable} {tmp_path}/listens.py "$@" ;;
  *) exec sleep 300 ;;
esac
""",
    )
    executable(
        tmp_path / "venv/python",
        f"""#!/bin/sh
echo "python $*" >>{tmp_path}/calls
case "$*" in *wait.yaml*) ;; *) exit 7 ;; esac
trap 'echo checkpoint >>{tmp_path}/calls; exit 1' TERM
echo ready >>{tmp_path}/calls
while :; do sleep 0.1; done
""",
    )
    return {
        "PATH": f"{bin_folder}:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_SUBMIT_DIR": str(tmp_path),
        "TRD_RAY_BIN": str(tmp_path / "venv"),
        "SLURM_CPUS_PER_TASK": "4",
    }  # fmt: skip


def test_slurm_ends_with_the_code_of_the_run_and_leaves_no_step(slurm: dict[str, str], tmp_path: Path):
    done = script("slurm.sh", "x.yaml", "run.dir=/shared/a b", **slurm)
    assert done.returncode == 7, done.stdout + done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    port = 20000 + os.getpid() % 10000
    assert any("token=64" in c and f"--address=127.0.0.1:{port}" in c and "--exclude=one" in c for c in calls)
    assert f"python -m launch.train x.yaml run.dir=/shared/a b ray.address=127.0.0.1:{port}" in calls[-1]
    assert "RAY_AUTH_TOKEN" not in done.stdout + done.stderr


def test_slurm_hands_its_signal_to_the_run_and_waits_for_the_checkpoint(
    slurm: dict[str, str], tmp_path: Path
):
    process = subprocess.Popen(
        [str(FOLDER / "slurm.sh"), "wait.yaml"], env={**os.environ, **slurm}, cwd=ROOT, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while "ready" not in (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else True:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "checkpoint"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_bare_metal_starts_with_a_token_that_nobody_sees(tmp_path: Path):
    executable(
        tmp_path / "bin/ray",
        f"""#!/bin/sh
echo "$RAY_AUTH_MODE $*" >>{tmp_path}/calls
case "$*" in get-auth-token*) mkdir -p {tmp_path}/.ray; echo geheim | tee {tmp_path}/.ray/auth_token ;; esac
""",
    )
    environment = {"TRD_RAY_BIN": str(tmp_path / "bin"), "HOME": str(tmp_path)}
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        assert name not in os.environ
    done = script("bare_metal.sh", "join", "10.0.0.1", "10.0.0.2", **environment)
    assert done.returncode == 2 and "copy the file" in done.stderr
    for arguments in (["head", "10.0.0.1"], ["head", "10.0.0.1"], ["join", "10.0.0.1", "10.0.0.2"], ["stop"]):
        done = script("bare_metal.sh", *arguments, **environment)
        assert done.returncode == 0, done.stderr
        assert "geheim" not in done.stdout + done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == [
        "token get-auth-token --generate",
        *["token start --head --node-ip-address=10.0.0.1 --port=6379 --dashboard-host=127.0.0.1 "
          "--dashboard-port=8265"] * 2,
        "token start --address=10.0.0.1:6379 --node-ip-address=10.0.0.2",
        "token stop",
    ]  # fmt: skip
    dry = script("bare_metal.sh", "--dry-run", "join", "10.0.0.1", "10.0.0.2", **environment)
    assert dry.stdout.splitlines() == [
        f"{tmp_path}/bin/ray start --address=10.0.0.1:6379 --node-ip-address=10.0.0.2"
    ]
