"""Which packages each tracker needs, how it is opened, and what can be checked before a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from trd_ray.choices import TrackerKind
from trd_ray.config import TrackingConfig, TrdConfig
from trd_ray.errors import ConfigError, MissingDependencyError, describe
from trd_ray.run_folder import RunFolder
from trd_ray.trackers.session import TrackedRun, Tracker


@dataclass(frozen=True, kw_only=True)
class Packages:
    """What must be installed."""

    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    """The same, as pip knows them."""


_PACKAGES = {
    TrackerKind.TENSORBOARD: Packages(modules=("tensorboard",), distributions=("tensorboard",)),
    TrackerKind.WANDB: Packages(modules=("wandb",), distributions=("wandb",)),
    TrackerKind.MLFLOW: Packages(modules=("mlflow",), distributions=("mlflow-skinny",)),
    TrackerKind.TRACKIO: Packages(modules=("trackio",), distributions=("trackio",)),
}
# MLflow's client needs these for a database only.
_DATABASE = Packages(modules=("sqlalchemy", "alembic"), distributions=("sqlalchemy", "alembic"))


def check_trackers(config: TrdConfig) -> None:
    """Whether all that `run.trackers` names can be used.

    Raises `MissingDependencyError` or `ConfigError`.
    """
    folder = RunFolder(config.run.dir)
    for kind in dict.fromkeys(config.run.trackers):
        _check_packages(kind, _PACKAGES[kind])
        if kind is TrackerKind.MLFLOW:
            _check_mlflow(config.tracking, folder)
        if kind is TrackerKind.WANDB and not config.tracking.offline:
            _check_wandb()


def opener(kind: TrackerKind, run: TrackedRun) -> Callable[[], Tracker]:
    """Opens the run there; imports the library."""

    def open_tracker() -> Tracker:
        # Imported here: each takes seconds, and only what is asked for needs to be installed.
        match kind:
            case TrackerKind.TENSORBOARD:
                from trd_ray.trackers.tensorboard_tracker import TensorBoardTracker

                return TensorBoardTracker(run)
            case TrackerKind.WANDB:
                from trd_ray.trackers.wandb_tracker import WandbTracker

                return WandbTracker(run)
            case TrackerKind.MLFLOW:
                from trd_ray.trackers.mlflow_tracker import MlflowTracker

                return MlflowTracker(run)
            case TrackerKind.TRACKIO:
                from trd_ray.trackers.trackio_tracker import TrackioTracker

                return TrackioTracker(run)

    return open_tracker


def _check_packages(kind: TrackerKind, packages: Packages) -> None:
    missing = [
        name
        for module, name in zip(packages.modules, packages.distributions, strict=True)
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise MissingDependencyError(
            describe(
                f"the tracker {kind} is not installed",
                where="run.trackers",
                got=f"no {', no '.join(missing)}",
                expected=", ".join(packages.distributions),
                remedy=f"pip install {' '.join(missing)} (launch/setup.sh cpu trackers installs them all), "
                f"or take {kind} out of run.trackers",
            )
        )


def _check_mlflow(tracking: TrackingConfig, folder: RunFolder) -> None:
    # The address alone decides; importing mlflow to ask it would take seconds.
    from trd_ray.trackers.mlflow_address import is_server, tracking_uri

    uri = tracking_uri(folder, uri=tracking.mlflow_uri, offline=tracking.offline)
    if not is_server(uri):
        _check_packages(TrackerKind.MLFLOW, _DATABASE)


def _check_wandb() -> None:
    from trd_ray.trackers.wandb_tracker import is_logged_in, server

    if not is_logged_in():
        raise ConfigError(
            describe(
                "W&B needs an account",
                where="run.trackers: wandb",
                got=f"neither WANDB_API_KEY nor a login for {server()} in the netrc file",
                expected="one of them, or tracking.offline=true",
                remedy="run `wandb login` once, or set tracking.offline=true and send the files later with "
                "`wandb sync`",
            )
        )
