"""What is said of a cluster that can or cannot be joined. No cluster is started here."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from launch.doctor import ray_checks
from launch.doctor.finding import Outcome
from launch.doctor.ray_checks import Joined, check_cluster_room, check_ray, join, refusal, token_words
from trd_ray.config import RayConfig, TrdConfig

REMOTE = replace(TrdConfig(), ray=RayConfig(address="10.0.0.1:6379"))
GIB = 2**30


def test_a_private_cluster_needs_no_joining():
    assert check_ray(None, None).outcome is Outcome.NOT_APPLICABLE
    assert check_ray(TrdConfig(), None).outcome is Outcome.NOT_APPLICABLE
    assert check_cluster_room(TrdConfig(), None).outcome is Outcome.NOT_APPLICABLE


def test_a_cluster_with_and_without_room():
    # 3 actors of half a core and 2 GiB.
    room = {"CPU": 1.5, "memory": 6.0 * GIB}
    assert check_ray(REMOTE, Joined(resources=room, num_nodes=1)).outcome is Outcome.PASSED
    assert check_cluster_room(REMOTE, Joined(resources=room)).outcome is Outcome.PASSED
    for name in room:
        less = check_cluster_room(REMOTE, Joined(resources=room | {name: room[name] * 0.99}))
        assert less.outcome is Outcome.FAILED
    assert "1.5 of 1.5 cores" in less.measured


def test_a_refused_token_and_a_silent_address_have_other_remedies():
    refused = check_ray(REMOTE, Joined(resources=None, problem="Unauthenticated", refused=True))
    silent = check_ray(REMOTE, Joined(resources=None, problem="no answer"))
    assert refused.outcome is silent.outcome is Outcome.FAILED
    assert "RAY_AUTH_TOKEN" in refused.remedy
    assert "ray start" in silent.remedy


def test_a_port_where_nobody_listens_is_said_at_once():
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        joined = join(address)
    assert joined.resources is None
    assert f"nothing listens at {address}" in joined.problem


def test_what_ray_says_of_a_token_is_understood_and_the_token_is_not_repeated(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    said = refusal("Traceback\nray.exceptions.AuthenticationError: Unauthenticated: bad token s3cret\n")
    assert said.refused
    assert "s3cret" not in said.problem and "***" in said.problem
    assert not refusal("ConnectionError: Could not find any running Ray instance\n").refused
    assert refusal("").problem


@pytest.mark.parametrize(
    ("script", "problem"),
    [("import time; time.sleep(60)", "no answer"), ("raise SystemExit('broken client')", "broken client")],
)
def test_a_client_that_hangs_or_breaks(monkeypatch, script: str, problem: str):
    monkeypatch.setattr(ray_checks, "_JOIN", script)
    joined = join("auto", timeout_s=20.0 if "broken" in problem else 1.0)
    assert joined.resources is None and problem in joined.problem


def test_a_client_that_joins(monkeypatch):
    monkeypatch.setattr(
        ray_checks, "_JOIN", 'print(\'noise\'); print(\'{"nodes": 2, "resources": {"CPU": 4.0}}\')'
    )
    assert join("auto") == Joined(resources={"CPU": 4.0}, num_nodes=2)


def test_where_a_token_comes_from(tmp_path):
    assert token_words({"HOME": str(tmp_path)}) == "there is no token here"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("s3cret")
    assert "~/.ray/auth_token" in token_words({"HOME": str(tmp_path)})
    words = token_words({"RAY_AUTH_TOKEN": "s3cret"})
    assert "RAY_AUTH_TOKEN" in words and "s3cret" not in words


def test_the_joining_script_is_python():
    done = subprocess.run(
        [sys.executable, "-c", f"compile({ray_checks._JOIN!r}, 'join', 'exec')"], check=False
    )
    assert done.returncode == 0
