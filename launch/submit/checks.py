"""What of a configuration can be checked before it is sent, and which files must travel with it.

Models and data may be on the cluster alone: under an absolute path, at a URL, or by their name on the
hub. A relative path counts from the job's working directory, which is the folder that is packed here, so
what it names must be in that folder.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from launch.preflight import check_inputs, check_models, check_own_functions, check_packages
from trd_ray.assembly import read_inputs
from trd_ray.chat import check_chat_template
from trd_ray.config import TrdConfig
from trd_ray.data import load_first_problems, load_problems
from trd_ray.errors import ConfigError, describe
from trd_ray.hub import KNOWN, is_hub_name
from trd_ray.model_files import ModelFacts, model_facts, resolve_model
from trd_ray.models import load_tokenizer, shared_vocab_size
from trd_ray.placement_plan import placement_plan
from trd_ray.planned_models import missing_model, planned_facts
from trd_ray.tasks.registry import load_task

_SHIPPED = ("testbed:", "sample:")


class Whereabouts(StrEnum):
    """Where something that a configuration names is."""

    HERE = "here"
    CLUSTER = "cluster"
    """Not on this machine; whether it is there shows when the job starts."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the checks of a configuration found."""

    config: TrdConfig
    """As the job gets it."""
    needed: tuple[Path, ...]
    """Files and folders in the working directory that the configuration uses."""
    unchecked: tuple[str, ...]
    """Options whose values are on the cluster alone."""


def check_submission(config: TrdConfig, folder: Path) -> Checked:
    """Check all that can be checked here.

    Args:
        folder: the job's working directory.

    Raises `ConfigError`, `DataError`, `ModelError` or `MissingDependencyError`.
    """
    check_packages(("ray",))
    for_job = replace(config, ray=replace(config.ray, address="auto"))
    _check_results(for_job)
    named = {"student.model": for_job.student.model, "data.train": for_job.data.train}
    if for_job.teacher_model != for_job.student.model:
        named["teacher.model"] = for_job.teacher_model
    if for_job.data.eval:
        named["data.eval"] = for_job.data.eval
    places = {key: _find(key, value, folder) for key, value in named.items()}
    needed = tuple(
        folder / os.path.normpath(value)
        for key, value in named.items()
        if places[key] is Whereabouts.HERE and _is_relative(value)
    )
    # Relative paths mean here what they will mean in the job.
    with contextlib.chdir(folder):
        _check_contents(for_job, places)
    unchecked = tuple(f"{key}={named[key]}" for key, place in places.items() if place is Whereabouts.CLUSTER)
    return Checked(config=for_job, needed=needed, unchecked=unchecked)


def _check_results(config: TrdConfig) -> None:
    """The job's working directory is deleted by Ray some time after its end."""
    name = Path(config.run.dir).name or "run"
    if "://" in config.run.dir or not _is_absolute(config.run.dir):
        url = "://" in config.run.dir
        raise ConfigError(
            describe(
                "a run folder cannot be at a URL" if url else "the run folder would vanish with the job",
                where="run.dir",
                got=config.run.dir + ("" if url else ", below the job's working directory"),
                expected="an absolute path that the cluster's nodes share",
                remedy=f"add for example run.dir=/shared/runs/{name}",
            )
        )
    log_url = config.pipeline.log_url
    if log_url and "://" not in log_url and not _is_absolute(log_url):
        raise ConfigError(
            describe(
                "the buffer's log would vanish with the job", where="pipeline.log_url", got=log_url,
                expected="an absolute path or a URL; or nothing, for a place in the run folder",
                remedy="give an absolute path, or leave the option out",
            )
        )  # fmt: skip


def _find(key: str, value: str, folder: Path) -> Whereabouts:
    """Raises `ConfigError` for what cannot be on the cluster either."""
    if value.startswith(_SHIPPED):
        return Whereabouts.HERE
    if "://" in value or value.startswith("~"):
        return Whereabouts.CLUSTER
    if Path(value).is_absolute():
        return Whereabouts.HERE if Path(value).exists() else Whereabouts.CLUSTER
    inside = not os.path.normpath(value).startswith("..")
    if inside and (folder / value).exists():
        return Whereabouts.HERE
    if key.endswith(".model") and is_hub_name(value):
        return Whereabouts.CLUSTER
    raise ConfigError(
        describe(
            "a relative path that the job will not find: it is not in the folder that travels with it",
            where=f"{key}, --working-dir {folder}",
            got=value,
            expected="a path in that folder, or one that the cluster has",
            remedy="give the absolute path on the cluster, or name the folder that holds it in --working-dir",
        )
    )


def _check_contents(config: TrdConfig, places: dict[str, Whereabouts]) -> None:
    load_task(config.data.task)
    check_own_functions(config.method)
    placement_plan(config)
    models_here = all(place is Whereabouts.HERE for key, place in places.items() if key.endswith(".model"))
    train_here = places["data.train"] is Whereabouts.HERE
    if places.get("data.eval") is Whereabouts.CLUSTER:
        config = replace(config, data=replace(config.data, eval=""))
    if models_here and train_here:
        check_inputs(config, read_inputs(config))
        return
    _check_data(config, train=train_here)
    student = _facts(config.student.model, places["student.model"])
    teacher = _facts(config.teacher_model, places.get("teacher.model", places["student.model"]))
    if student is not None and teacher is not None:
        check_models(config, student=student, teacher=teacher)
    if models_here:
        _check_tokenizers(config)


def _check_data(config: TrdConfig, *, train: bool) -> None:
    """Every row of the data that is here."""
    data, seed = config.data, config.run.seed
    if train:
        load_problems(
            data.train, data.columns, task=data.task, need_reference=config.needs_reference, seed=seed
        )
    if data.eval:
        load_first_problems(
            data.eval, data.columns, task=data.task, need_reference=False, seed=seed, num=data.eval_problems
        )


def _facts(name: str, place: Whereabouts) -> ModelFacts | None:
    """Of a model that is here, or whose figures are published; None of another."""
    if place is Whereabouts.HERE:
        return model_facts(resolve_model(name))
    if name in KNOWN or (is_hub_name(name) and not missing_model(name)):
        return planned_facts(name)
    return None


def _check_tokenizers(config: TrdConfig) -> None:
    student, teacher = resolve_model(config.student.model), resolve_model(config.teacher_model)
    shared_vocab_size(student, teacher)
    for path in (student, teacher):
        check_chat_template(load_tokenizer(path), path)


def _is_absolute(value: str) -> bool:
    """`~` is the home folder of the user that Ray runs as."""
    return value.startswith(("/", "~"))


def _is_relative(value: str) -> bool:
    return not (value.startswith(_SHIPPED) or _is_absolute(value))
