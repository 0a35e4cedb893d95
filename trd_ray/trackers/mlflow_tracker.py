"""MLflow: a tracking server, or a SQLite file in the run folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping

from trd_ray.trackers.mlflow_address import tracking_uri
from trd_ray.trackers.session import RunEnd, TrackedRun

# No report of use leaves this machine. Read when mlflow is imported.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# Its own waits (7 tries of 2 minutes) are longer than ours; we try again ourselves.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
# It looks for git at its import, and complains at length where there is none; nothing here asks git.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from mlflow.entities import Metric, Param, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

_PARAMS_A_CALL = 100
_PARAM_CHARS = 6000
_STATUS = {
    RunEnd.FINISHED: RunStatus.FINISHED,
    RunEnd.STOPPED: RunStatus.KILLED,
    RunEnd.FAILED: RunStatus.FAILED,
}


class MlflowTracker:
    """A `Tracker`."""

    def __init__(self, run: TrackedRun) -> None:
        # It tells of each table that it makes.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri(run.folder, uri=run.mlflow_uri, offline=run.offline))
        self._run_id = self._known(run) or self._new(run)

    @property
    def run_id(self) -> str:
        return self._run_id

    def record(self, scalars: Mapping[str, float], *, learner_step: int) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [Metric(tag, value, now_ms, learner_step) for tag, value in scalars.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, ended: RunEnd) -> None:
        self._client.set_terminated(self._run_id, RunStatus.to_string(_STATUS[ended]))

    def _known(self, run: TrackedRun) -> str | None:
        """Go on with the run that this store has already; None if it has none."""
        if run.known_id is None:
            return None
        try:
            self._client.get_run(run.known_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # another server than before
        self._client.update_run(run.known_id, status=RunStatus.to_string(RunStatus.RUNNING))
        # Parameters of a run cannot change; the options that a resume may change stand in the run folder.
        self._client.set_tag(run.known_id, "trd_ray.resumed_before_step", str(run.first_step))
        return run.known_id

    def _new(self, run: TrackedRun) -> str:
        experiment = self._client.get_experiment_by_name(run.project)
        experiment_id = (
            experiment.experiment_id
            if experiment is not None
            else self._client.create_experiment(run.project)
        )
        tags = dict.fromkeys(run.tags, "true")
        run_id = self._client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id
        params = [Param(key, value[:_PARAM_CHARS]) for key, value in run.flat_config().items()]
        for start in range(0, len(params), _PARAMS_A_CALL):
            self._client.log_batch(run_id, params=params[start : start + _PARAMS_A_CALL])
        return str(run_id)
