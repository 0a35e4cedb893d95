"""Whether the configured Ray cluster can be joined with the token that is here, and holds the actors.

Joining is tried in a process of its own: a client that hangs, or that leaves Ray in an unknown state, then
harms no other check.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.doctor.finding import Finding, found, not_applicable
from trd_ray.config import TrdConfig
from trd_ray.placement_plan import placement_plan

_CONNECT_S = 5.0
_JOIN_S = 90.0
_TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
_TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"
_TOKEN_FILE = ".ray/auth_token"
_GIB = 2**30
_JOIN = """
import json, os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
print("\\n" + json.dumps({"nodes": len(ray.nodes()), "resources": ray.cluster_resources()}))
ray.shutdown()
"""


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What came of it."""

    resources: Mapping[str, float] | None
    """Of the whole cluster; None if it could not be joined."""
    num_nodes: int = 0
    problem: str = ""
    refused: bool = False
    """It is there, and did not accept this client's token."""


def check_ray(config: TrdConfig | None, joined: Joined | None) -> Finding:
    check = "Ray cluster"
    if config is None or config.ray.address == "local" or joined is None:
        return not_applicable(check, "a private one is started for each run, with a token of its own")
    if joined.resources is not None:
        return found(check, True, f"{config.ray.address}: joined, {joined.num_nodes} nodes", "")
    remedy = (
        f"give this machine the cluster's token: {_TOKEN_VARIABLE}, {_TOKEN_PATH_VARIABLE} or ~/{_TOKEN_FILE}"
        if joined.refused
        else "start the cluster (ray start --head), open its port, or correct ray.address"
    )
    return found(check, False, f"{config.ray.address}: {joined.problem}; {token_words(os.environ)}", remedy)


def check_cluster_room(config: TrdConfig | None, joined: Joined | None) -> Finding:
    check = "room in the cluster"
    if config is None or joined is None or joined.resources is None:
        return not_applicable(check, "no cluster was joined")
    bundles = placement_plan(config).bundles
    asked = {
        "CPU": sum(bundle.resources.cpus for bundle in bundles),
        "GPU": float(sum(bundle.num_gpus for bundle in bundles)),
        "memory": sum(bundle.resources.memory_gib for bundle in bundles) * _GIB,
    }
    there = {name: float(joined.resources.get(name, 0.0)) for name in asked}
    words = ", ".join(
        f"{_amount(name, amount)} of {_amount(name, there[name])} {_unit(name)}"
        for name, amount in asked.items()
        if amount
    )
    return found(
        check, all(amount <= there[name] for name, amount in asked.items()), f"asked for: {words}",
        "add nodes, or lower num_actors, num_ranks or resources.*",
    )  # fmt: skip


def _amount(name: str, amount: float) -> str:
    return f"{amount / _GIB:.1f}" if name == "memory" else f"{amount:g}"


def _unit(name: str) -> str:
    return {"CPU": "cores", "GPU": "GPUs", "memory": "GiB"}[name]


def token_words(environment: Mapping[str, str]) -> str:
    """Where a token would come from; never the token."""
    if environment.get(_TOKEN_VARIABLE):
        return f"the token is that of {_TOKEN_VARIABLE}"
    if environment.get(_TOKEN_PATH_VARIABLE):
        return f"the token is that of {_TOKEN_PATH_VARIABLE}"
    home = environment.get("HOME", "")
    if home and (Path(home) / _TOKEN_FILE).is_file():
        return f"the token is that of ~/{_TOKEN_FILE}"
    return "there is no token here"


def join(address: str, *, timeout_s: float = _JOIN_S) -> Joined:
    """Join a cluster and leave it. At most `timeout_s` seconds and a few."""
    problem = _unreachable(address)
    if problem:
        return Joined(resources=None, problem=problem)
    process = subprocess.Popen(
        [sys.executable, "-c", _JOIN, address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Joined(resources=None, problem=f"no answer to ray.init within {timeout_s:g} s")
    if process.returncode == 0:
        said = json.loads(output.strip().splitlines()[-1])
        return Joined(resources=said["resources"], num_nodes=said["nodes"])
    return refusal(errors)


def refusal(errors: str) -> Joined:
    """What Ray's client said before it gave up."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = lines[-1] if lines else "ray.init ended without a word"
    said = errors.lower()
    refused = any(word in said for word in ("unauthenticated", "authentication token", "invalidauthtoken"))
    token = os.environ.get(_TOKEN_VARIABLE)
    return Joined(resources=None, problem=last.replace(token, "***") if token else last, refused=refused)


def _unreachable(address: str) -> str:
    """Why nothing answers at HOST:PORT; empty if something does, or for an address of another kind."""
    host, separator, port = address.removeprefix("ray://").partition("/")[0].rpartition(":")
    if not separator or not port.isdigit():
        return ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        return f"nothing listens at {host}:{port} ({error})"
    return ""
