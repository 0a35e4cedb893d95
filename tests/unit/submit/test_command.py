"""The command line: a configuration and commands in one place, exit codes, and what an import costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus

from launch.cli import main
from launch.submit import cluster as cluster_module
from launch.submit import send
from launch.submit.cluster import StatusError

ROOT = Path(__file__).parents[3]
TRD_OPD = str(ROOT / "configs/experiment/trd_opd.yaml")
ADDRESS = "http://head:8265"


class FakeClient:
    """A cluster with one job, whose end is given."""

    end = JobStatus.SUCCEEDED
    sent: list[dict[str, object]]

    def submit_job(self, **request: object) -> object:
        self.sent.append(request)
        self.packages.append(Path(request["runtime_env"]["working_dir"]).read_bytes())  # type: ignore[index]
        return request["submission_id"]

    def get_job_info(self, job_id: str) -> JobDetails:
        if job_id == "unknown":
            raise StatusError(404, "Job unknown does not exist")
        return JobDetails(
            type="SUBMISSION", submission_id=job_id, status=self.end, entrypoint="exec sh",
            driver_exit_code=3, start_time=1_700_000_000_000, end_time=1_700_000_042_000,
            metadata={"job_name": "[lr=1e-4] first [/b]", "config": "[red]a.yaml"},
            message="it failed\nin line 2",
        )  # fmt: skip

    def list_jobs(self) -> list[JobDetails]:
        return [self.get_job_info("trd_" + "1" * 16), self.get_job_info("trd_" + "2" * 16)]

    def stop_job(self, job_id: str) -> bool:
        return self.end is JobStatus.STOPPED

    def get_job_logs(self, job_id: str) -> str:
        return "step 1/1\n"

    async def tail_job_logs(self, job_id: str):
        yield "step 1/1\n"

    def __init__(self) -> None:
        self.sent = []
        self.packages: list[bytes] = []


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    made = FakeClient()

    def cluster(address: str) -> cluster_module.Cluster:
        assert address == ADDRESS
        return cluster_module.Cluster(address, connect=lambda _: made)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(send, "Cluster", cluster)
    monkeypatch.setattr("launch.submit.commands.Cluster", cluster)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return made


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trd-ray", "submit", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


SEND = (TRD_OPD, "run.dir=/shared/first", "--address", ADDRESS)


def test_a_run_is_sent_and_followed(cli, client: FakeClient, tmp_path: Path):
    code, out, err = cli(*SEND, "--working-dir", str(tmp_path))
    assert (code, out) == (0, "step 1/1\n")
    assert "trd-ray's own packages among them" in err and "has ended: SUCCEEDED" in err
    (request,) = client.sent
    assert request["metadata"]["job_name"] == "first"  # type: ignore[index]
    (package,) = client.packages
    (tmp_path / "package.zip").write_bytes(package)
    done = subprocess.run(
        [sys.executable, "-m", "zipfile", "-e", str(tmp_path / "package.zip"), str(tmp_path / "out")],
        timeout=60,
    )
    assert done.returncode == 0
    assert "address: auto" in (tmp_path / "out/trd_ray_job.yaml").read_text()


@pytest.mark.parametrize("end", [JobStatus.FAILED, JobStatus.STOPPED])
def test_a_run_that_fails_is_exit_code_1(cli, client: FakeClient, tmp_path: Path, end: JobStatus):
    client.end = end
    code, _, err = cli(*SEND, "--working-dir", str(tmp_path))
    assert code == 1 and f"has ended: {end.value}, exit code 3" in err


def test_without_waiting_the_id_is_all_that_programs_see(cli, client: FakeClient, tmp_path: Path):
    code, out, _ = cli("--no-wait", "--working-dir", str(tmp_path), *SEND)
    assert code == 0 and out.strip() == client.sent[0]["submission_id"]


def test_a_dry_run_sends_nothing(cli, client: FakeClient, tmp_path: Path):
    (tmp_path / ".env").write_text("geheim")
    code, out, _ = cli(*SEND, "--dry-run", "--working-dir", str(tmp_path))
    assert code == 0 and client.sent == []
    assert "address: auto" in out and "left out  .env" in out and "entrypoint: exec sh" in out


@pytest.mark.parametrize(
    "arguments",
    [
        (TRD_OPD, "--address", ADDRESS),
        (TRD_OPD, "run.dir=/shared/x", "run.num_steps=many", "--address", ADDRESS),
        (TRD_OPD, "run.dir=/shared/x", "--address", "head:8265"),
        (TRD_OPD, "run.dir=/shared/x"),
        (TRD_OPD, "run.dir=/shared/x", "--address", ADDRESS, "--env", "HF_TOKEN=geheim"),
        (TRD_OPD, "run.dir=/shared/x", "--address", ADDRESS, "--working-dir", "/none"),
        ("none.yaml", "--address", ADDRESS),
        ("status", "unknown", "--address", ADDRESS),
        ("logs", "--address", ADDRESS),
    ],
)
def test_bad_input_is_exit_code_2_and_nothing_is_sent(cli, client: FakeClient, arguments: tuple[str, ...]):
    code, out, err = cli(*arguments)
    assert code == 2 and client.sent == []
    assert "Traceback" not in out + err and "geheim" not in out + err


def test_a_cluster_that_does_not_answer_is_exit_code_1(
    cli, client: FakeClient, monkeypatch: pytest.MonkeyPatch
):
    def lost(job_id: str) -> JobDetails:
        raise ConnectionError("refused")

    monkeypatch.setattr(cluster_module.Patience, "__init__", lambda self: None)
    monkeypatch.setattr(cluster_module.Patience, "total_s", 0.0)
    client.get_job_info = lost  # type: ignore[method-assign]
    code, _, err = cli("status", "trd_1", "--address", ADDRESS)
    assert code == 1 and "does not answer" in err


def test_jobs_are_listed_with_whole_ids(cli, client: FakeClient):
    code, out, _ = cli("status", "--address", ADDRESS)
    assert code == 0 and "trd_" + "1" * 16 in out and "42 s" in out
    assert "[lr=1e-4]" in out and "[/b]" in out and "[red]" in out, "what somebody wrote is no markup"


def test_one_job_is_shown(cli, client: FakeClient):
    code, out, _ = cli("status", "trd_1", "--address", ADDRESS)
    assert code == 0 and "SUCCEEDED" in out and "it failed" in out and "in line 2" not in out


def test_logs_are_printed_and_followed(cli, client: FakeClient):
    assert cli("logs", "trd_1", "--address", ADDRESS)[:2] == (0, "step 1/1\n")
    client.end = JobStatus.FAILED
    assert cli("logs", "trd_1", "--follow", "--address", ADDRESS)[:2] == (1, "step 1/1\n")


def test_a_job_is_stopped(cli, client: FakeClient):
    assert "had ended before: SUCCEEDED" in cli("stop", "trd_1", "--address", ADDRESS)[1]
    client.end = JobStatus.STOPPED
    code, out, err = cli("stop", "trd_1", "--address", ADDRESS)
    assert code == 0 and "has ended: STOPPED" in out and "checkpoint" in err


def test_help_shows_both_ways(cli):
    code, out, _ = cli("--help")
    assert code == 0
    for text in ("--address", "--working-dir", "--no-wait", "status", "logs", "stop"):
        assert text in out


def test_the_address_may_be_in_the_environment(cli, client: FakeClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ADDRESS)
    assert cli("status")[0] == 0


def test_imports_are_as_late_as_they_can_be():
    """`--help` imports neither Ray nor torch; a question about a job imports no torch."""
    for imports, without in (
        ("import launch.cli", ("ray", "torch", "transformers")),
        ("import launch.submit.commands", ("torch", "transformers", "vllm")),
    ):
        code = f"import sys\n{imports}\nprint([n for n in {without!r} if n in sys.modules])"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300
        )
        assert done.stdout.strip() == "[]", done.stdout + done.stderr
