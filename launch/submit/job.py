"""What is sent to the cluster: an entrypoint, an environment, resources, and what people see of the job."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trd_ray.config import TimeoutConfig, TrdConfig
from trd_ray.errors import ConfigError, describe

JOB_CONFIG = "trd_ray_job.yaml"
"""The resolved configuration in the job's working directory."""
STARTER = "launch/cluster/job.sh"
_GIT_S = 10.0
_SECRET = re.compile(
    r"TOKEN|SECRET|PASSW|CREDENTIAL|(API|ACCESS|PRIVATE|SIGNING|AUTH)_?KEY|_KEY$", re.IGNORECASE
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = ("PYTHONPATH", "RAY_JOB_STOP_WAIT_TIME_S", "TRD_RAY_PYTHON", "RAY_ADDRESS")
# What is left to do when a step and its checkpoint have reached their own limits.
_STOP_MARGIN_S = 60.0


@dataclass(frozen=True, kw_only=True)
class DriverOptions:
    """Where and how the job's driver runs."""

    num_cpus: float = 0.0
    """Cores kept for it. With 0 and no resources it runs on the head."""
    resources: tuple[tuple[str, float], ...] = ()
    """Further resources that its node must have."""
    python: str = ""
    """The interpreter on the cluster; empty: the one that Ray runs with there."""
    env: tuple[tuple[str, str], ...] = ()
    """Environment variables of driver and actors."""
    resume: bool = False
    """Continue the run in run.dir."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """One call of the job API, without the package."""

    submission_id: str
    """Chosen here: a call that is sent again after a lost connection cannot make a second job."""
    entrypoint: str
    env_vars: Mapping[str, str]
    metadata: Mapping[str, str]
    num_cpus: float
    resources: Mapping[str, float]


def job_request(config: TrdConfig, options: DriverOptions, *, config_name: str, folder: Path) -> JobRequest:
    """The request for one run.

    Args:
        config_name: name of the configuration file, for people.
        folder: the working directory, whose git commit is noted.
    """
    commit = git_commit(folder)
    return JobRequest(
        submission_id=f"trd_{uuid.uuid4().hex[:16]}",
        entrypoint=entrypoint(resume=options.resume),
        env_vars=_environment(config.timeouts, options),
        metadata={
            "job_name": Path(config.run.dir).name or config_name,
            "config": config_name,
            "method": config.method.sentence(),
            "run_dir": config.run.dir,
            **({} if commit is None else {"git_commit": commit}),
        },
        num_cpus=options.num_cpus,
        resources=dict(options.resources),
    )


def entrypoint(*, resume: bool = False) -> str:
    """The command that Ray gives to a shell in the job's working directory.

    It replaces that shell, so that Ray's signal to stop reaches the driver.
    """
    words = ["exec", "sh", STARTER, JOB_CONFIG, *(["--resume"] if resume else [])]
    return shlex.join(words)


def stop_wait_s(timeouts: TimeoutConfig) -> int:
    """Seconds within which a run that is asked to stop has ended its step and written a checkpoint.

    Ray kills a job 3 s after it was asked, if it is not told otherwise.
    """
    return math.ceil(timeouts.generate_s + 2 * timeouts.learn_s + timeouts.sync_s + _STOP_MARGIN_S)


def _environment(timeouts: TimeoutConfig, options: DriverOptions) -> dict[str, str]:
    return {
        **dict(options.env),
        "RAY_JOB_STOP_WAIT_TIME_S": str(stop_wait_s(timeouts)),
        **({"TRD_RAY_PYTHON": options.python} if options.python else {}),
    }


def git_commit(folder: Path) -> str | None:
    """The commit of a folder under git, with `+changes` if files differ from it; None without git."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_GIT_S, check=True
    )
    return done.stdout.strip()


def parse_env(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`NAME=VALUE` of --env. Raises `ConfigError` for what is malformed, reserved, or seems to be secret."""
    found = []
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not _NAME.fullmatch(name):
            raise _bad_env(name, "malformed", "NAME=VALUE", "write for example --env NCCL_DEBUG=INFO")
        if _SECRET.search(name):
            raise _bad_env(
                name, "looks like a secret, and whoever sees the job sees its environment", "no secret",
                "set it where `ray start` is called on the nodes, or in the cluster's own secret store",
            )  # fmt: skip
        if name in _OURS:
            raise _bad_env(name, "is set by trd-ray or Ray for each job", "another name", "leave it out")
        found.append((name, value))
    return tuple(found)


def _bad_env(name: str, got: str, expected: str, remedy: str) -> ConfigError:
    # The value is not shown: it may be the secret.
    return ConfigError(
        describe(
            "an environment variable cannot be sent",
            where="--env",
            got=f"{name or 'nothing'}: {got}",
            expected=expected,
            remedy=remedy,
        )
    )


def parse_resources(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """`NAME=AMOUNT` of --driver-resource. Raises `ConfigError`."""
    found = []
    for text in texts:
        name, _, amount = text.partition("=")
        try:
            number = float(amount)
        except ValueError:
            number = math.nan
        if not name or not math.isfinite(number) or number <= 0:
            raise ConfigError(
                describe(
                    "malformed resource", where="--driver-resource", got=text,
                    expected="NAME=AMOUNT with an amount above 0",
                    remedy="write for example --driver-resource head_room=1",
                )
            )  # fmt: skip
        found.append((name, number))
    return tuple(found)
