"""Reads what the report shows from a run folder, also while the run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trd_ray.config import MethodConfig
from trd_ray.errors import ConfigError, DataError, describe
from trd_ray.evaluation import EvalReport
from trd_ray.metrics import StepMetrics, read_evals, read_metrics
from trd_ray.run_folder import RunFolder
from trd_ray.trajectory_log import logged_steps


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Everything but the trajectories, which are read step by step."""

    name: str
    options: Mapping[str, str]
    """Resolved configuration by dotted path; empty if config.yaml is not there yet."""
    method: str | None
    """The method in one sentence; None if the configuration does not tell."""
    steps: tuple[StepMetrics, ...]
    evals: tuple[EvalReport, ...]
    trajectory_steps: tuple[int, ...]
    has_trace: bool = False
    """There is a trace.json."""

    @property
    def num_steps(self) -> int:
        """Steps the run is to have; those it has if the configuration does not tell."""
        planned = self.options.get("run.num_steps", "")
        return int(planned) if planned.isdecimal() else len(self.steps)

    @property
    def refines(self) -> bool:
        return any(step.refined_accuracy is not None for step in self.steps)


def load_run(folder: RunFolder) -> RunData:
    """Read a run folder. `ConfigError` if it holds no run, `DataError` if a file cannot be read."""
    folder = RunFolder.open(folder.path)
    tree = _read_tree(folder.config)
    options = _flatten(tree, "")
    return RunData(
        name=folder.path.resolve().name,
        options=options,
        method=_method_sentence(tree),
        steps=read_metrics(folder.metrics),
        evals=read_evals(folder.eval),
        trajectory_steps=logged_steps(folder.trajectories),
        has_trace=folder.trace.is_file(),
    )


def _read_tree(path: Path) -> dict[object, object]:
    if not path.exists():
        return {}
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, KeyError) as error:  # PyYAML lets errors of conversions through
        tree = error
    if not isinstance(tree, dict):
        raise DataError(
            describe(
                "config.yaml cannot be read", where=str(path), got=tree, expected="a YAML mapping",
                remedy="restore the file that the run wrote",
            )
        )  # fmt: skip
    return tree


def _flatten(tree: Mapping[object, object], prefix: str) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _show(value)
    return flat


def _show(value: object) -> str:
    """As one would write it in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _method_sentence(tree: Mapping[object, object]) -> str | None:
    try:
        # This section alone: the checks of the whole tree take seconds, and the run has passed them.
        given = OmegaConf.create({"method": tree.get("method", {})})
        merged = OmegaConf.merge(OmegaConf.structured(MethodConfig), given.method)
        method = OmegaConf.to_object(merged)
        return method.sentence() if tree and isinstance(method, MethodConfig) else None
    except (ConfigError, OmegaConfBaseException, ValueError):
        # A run of another version, or one that has no file yet: what options there are tell the rest.
        return None
