"""Patience with a cluster that does not answer, and what its refusals mean."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from launch.submit.auth import use_token_if_any
from launch.submit.cluster import Cluster, Patience, StatusError, connect
from launch.submit.job import JobRequest
from trd_ray.errors import ClusterError, ConfigError

REQUEST = JobRequest(
    submission_id="trd_1",
    entrypoint="exec sh",
    env_vars={},
    metadata={"job_name": "x"},
    num_cpus=0.0,
    resources={},
)


class Clock:
    """Time passes only while it is slept."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class Scripted:
    """Answers each call with the next of what it was given; an exception is raised."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.requests: list[dict[str, object]] = []

    def _next(self) -> object:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def submit_job(self, **request: object) -> object:
        self.requests.append(request)
        return self._next()

    def __getattr__(self, name: str) -> Callable[..., object]:
        return lambda *_: self._next()


def cluster(client: Scripted, clock: Clock | None = None) -> Cluster:
    clock = clock or Clock()
    return Cluster(
        "http://head:8265",
        connect=lambda address: client,  # type: ignore[arg-type,return-value]
        patience=Patience(total_s=20.0),
        clock=lambda: clock.now,
        sleep=clock.sleep,
    )


LOST = requests.exceptions.ConnectionError("reset")


def test_a_lost_connection_is_tried_again_with_growing_pauses():
    clock = Clock()
    client = Scripted(
        LOST, ConnectionError("x"), requests.exceptions.ReadTimeout(), StatusError(503, ""), "log"
    )
    assert cluster(client, clock).logs("trd_1") == "log"
    assert clock.pauses == [0.5, 1.0, 2.0, 4.0]


def test_patience_ends_and_says_what_was_tried():
    clock = Clock()
    with pytest.raises(ClusterError, match="does not answer") as caught:
        cluster(Scripted(*[LOST] * 50), clock).jobs()
    assert clock.now <= 20.0
    text = str(caught.value)
    assert (
        "http://head:8265" in text
        and "reset" in text
        and "tries in" in text
        and "kubectl port-forward" in text
    )


def test_a_certificate_that_is_not_trusted_is_not_tried_again():
    clock = Clock()
    with pytest.raises(ClusterError, match="SSLError"):
        cluster(Scripted(requests.exceptions.SSLError("self-signed")), clock).jobs()
    assert clock.pauses == []


def test_a_job_whose_first_answer_was_lost_is_not_made_twice(tmp_path: Path):
    exists = StatusError(500, "ValueError: Job with submission_id trd_1 already exists. Please use another")
    client = Scripted(LOST, exists)
    assert cluster(client).submit(REQUEST, tmp_path / "package.zip") == "trd_1"
    assert [request["submission_id"] for request in client.requests] == ["trd_1", "trd_1"]


def test_what_is_sent(tmp_path: Path):
    client = Scripted("trd_1")
    cluster(client).submit(REQUEST, tmp_path / "package.zip")
    (request,) = client.requests
    assert request["runtime_env"] == {"working_dir": str(tmp_path / "package.zip"), "env_vars": {}}
    assert request["entrypoint_num_cpus"] is None and request["entrypoint_resources"] is None


def test_an_error_of_the_cluster_is_told_in_its_last_line():
    with pytest.raises(ClusterError, match="HTTP 500: ValueError: no room"):
        cluster(Scripted(StatusError(500, "Traceback\n  File\nValueError: no room\n"))).jobs()


def test_an_unknown_job_is_bad_input():
    with pytest.raises(ConfigError, match="knows no such job") as caught:
        cluster(Scripted(StatusError(404, "Job x does not exist"))).job("x")
    assert "trd-ray submit status --address http://head:8265" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "got"),
    [
        (
            AuthenticationError("Authentication required: Unauthorized: Missing authentication token"),
            "none was sent",
        ),
        (
            AuthenticationError("Authentication failed: Forbidden: Invalid authentication token"),
            "does not take",
        ),
        (StatusError(403, "Forbidden"), "does not take"),
    ],
)
def test_a_refusal_says_what_to_set(error: Exception, got: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "geheim")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ConfigError, match="refuses this user") as caught:
        cluster(Scripted(error)).jobs()
    text = str(caught.value)
    assert got in text and "RAY_AUTH_TOKEN is set" in text and "ray get-auth-token" in text
    assert "geheim" not in text


def test_a_token_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    # So that it is taken back afterwards.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    use_token_if_any()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    use_token_if_any()
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("x")
    use_token_if_any()
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_rays_client_is_given_the_address_that_was_given_here(monkeypatch: pytest.MonkeyPatch):
    """Ray would prefer its own variables, and the request has a time limit."""
    asked: list[tuple[str, object]] = []

    def answer(self: object, method: str, endpoint: str, **options: object) -> requests.Response:
        asked.append((self._address, options["timeout"]))  # type: ignore[attr-defined]
        response = requests.Response()
        response.status_code = 200
        response._content = b'{"ray_version": "2.60.0"}'
        return response

    monkeypatch.setattr(JobSubmissionClient, "_do_request", answer)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:1")
    connect("http://head:8265")
    assert {address for address, _ in asked} == {"http://head:8265"}
    assert all(timeout for _, timeout in asked)
    assert os.environ["RAY_ADDRESS"] == "10.0.0.9:6379"


def test_an_address_where_nobody_listens_is_told_within_the_patience():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        # Bound, but not listening: each connection is refused.
        with pytest.raises(ClusterError, match=f"http://127.0.0.1:{port}") as caught:
            Cluster(f"http://127.0.0.1:{port}", patience=Patience(total_s=0.1, first_pause_s=0.05)).jobs()
    assert "refused" in str(caught.value)
