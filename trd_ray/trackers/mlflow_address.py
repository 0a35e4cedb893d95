"""Where MLflow records a run."""

from __future__ import annotations

import os

from trd_ray.run_folder import RunFolder

_SERVERS = ("http://", "https://", "databricks", "uc:")


def tracking_uri(folder: RunFolder, *, uri: str, offline: bool) -> str:
    """`uri`, else `MLFLOW_TRACKING_URI`, else a SQLite file in the run folder; offline no server counts."""
    given = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if given and not (offline and is_server(given)):
        return given
    return f"sqlite:///{folder.path.resolve() / 'mlflow.db'}"


def is_server(uri: str) -> bool:
    """Whether it is reached over HTTP; all else is a database."""
    return uri.startswith(_SERVERS)
