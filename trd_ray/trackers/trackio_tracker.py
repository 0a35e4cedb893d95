"""trackio: a SQLite file a project on this machine, shown by `trackio show`.

Rows are written by trackio's storage itself. Its `init` would look up the account at Hugging Face over the
network, print, sample the machine, and write from a thread that turns errors into warnings.
"""

from __future__ import annotations

import os
import uuid
import zlib
from collections.abc import Mapping

# No report of use leaves this machine. Read when the modules behind trackio are imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from trackio.sqlite_storage import SQLiteStorage

from trd_ray.trackers.session import RunEnd, TrackedRun


class TrackioTracker:
    """A `Tracker`."""

    def __init__(self, run: TrackedRun) -> None:
        self._project = run.project
        self._name = run.name
        self._run_id = run.known_id or uuid.uuid4().hex
        self._config: dict[str, object] | None = {**run.config, "tags": list(run.tags)}
        self._session = uuid.uuid4().hex
        SQLiteStorage.init_db(run.project)

    @property
    def run_id(self) -> str:
        return self._run_id

    def record(self, scalars: Mapping[str, float], *, learner_step: int) -> None:
        tags = zlib.crc32("\n".join(scalars).encode())
        SQLiteStorage.bulk_log(
            project=self._project,
            run=self._name,
            run_id=self._run_id,
            metrics_list=[dict(scalars)],
            steps=[learner_step],
            config=self._config,
            # A row that is tried again has the same id, and is there once.
            log_ids=[f"{self._session}-{learner_step}-{tags:08x}"],
        )
        self._config = None  # the first row brings it

    def close(self, ended: RunEnd) -> None:
        """Every row is in the file already."""
