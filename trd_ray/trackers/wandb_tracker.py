"""Weights & Biases, online or as files for `wandb sync`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from urllib.parse import urlsplit

from requests.utils import get_netrc_auth

from trd_ray.trackers.session import RunEnd, TrackedRun

# No report of errors or of use leaves this machine. Read when wandb is imported.
os.environ["WANDB_ERROR_REPORTING"] = "false"

import wandb

_OPEN_S = 30.0
_FINISH_S = 15.0
"""What is not sent by then stays in the run folder, for `wandb sync`."""
_STEP = "learner_step"
_EXIT_CODES = {RunEnd.FINISHED: 0, RunEnd.STOPPED: 255, RunEnd.FAILED: 1}
"""W&B shows 255 as killed."""


class WandbTracker:
    """A `Tracker`. The axis is `learner_step`: W&B's own step may not go back, as it does after a resume."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.known_id or uuid.uuid4().hex[:12],
            resume="allow",
            tags=list(run.tags),
            config=dict(run.config),
            allow_val_change=True,
            dir=run.folder.path,
            settings=_settings(offline=run.offline),
        )
        self._run.define_metric(_STEP, hidden=True)
        self._run.define_metric("*", step_metric=_STEP)

    @property
    def run_id(self) -> str:
        return str(self._run.id)

    def record(self, scalars: Mapping[str, float], *, learner_step: int) -> None:
        self._run.log({**scalars, _STEP: learner_step})

    def close(self, ended: RunEnd) -> None:
        self._run.finish(exit_code=_EXIT_CODES[ended])


def _settings(*, offline: bool) -> wandb.Settings:
    # What is sent is what the run measures and its configuration; nothing of the machine, its user, its
    # repository or its command line.
    return wandb.Settings(
        mode="offline" if offline else "online",
        # Its output would tear the progress display, and a captured console may hold anything.
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        save_code=False,
        program="trd-ray",
        host="",
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        init_timeout=_OPEN_S,
        finish_timeout=_FINISH_S,
    )


def is_logged_in() -> bool:
    """Whether there are credentials for the server: without, `wandb.init` would ask at the terminal."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    return get_netrc_auth(server()) is not None


def server() -> str:
    """The address that a run is sent to, without path or credentials."""
    parts = urlsplit(wandb.setup().settings.base_url)
    return f"{parts.scheme}://{parts.hostname}"
