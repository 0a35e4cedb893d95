"""Where the shipped models are."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from trd_ray.errors import ModelError, describe

TEACHER = "teacher"
STUDENT = "student"
WEAK_STUDENT = "weak_student"


def models_path() -> Path:
    """The folder that holds one model folder each for teacher, student and weak student.

    Raises `ModelError` if the package was not unpacked into plain files.
    """
    folder = resources.files("trd_ray.testbed") / "models"
    if not isinstance(folder, Path):
        raise ModelError(
            describe(
                "The shipped models are not plain files.",
                where="trd_ray.testbed.models_path",
                got=repr(folder),
                expected="a folder on disk",
                remedy="install trd-ray unpacked, or make the models with `trd-ray testbed build`",
            )
        )
    return folder


def _model_path(name: str) -> Path:
    folder = models_path() / name
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            describe(
                f"The shipped {name} is missing.",
                where="trd_ray.testbed",
                got=f"no model.safetensors in {folder}",
                expected="a model folder",
                remedy="install trd-ray again, or make the models with `trd-ray testbed build`",
            )
        )
    return folder


def teacher_path() -> Path:
    """Folder of the shipped teacher. Raises `ModelError` if it is missing."""
    return _model_path(TEACHER)


def student_path() -> Path:
    """Folder of the shipped student. Raises `ModelError` if it is missing."""
    return _model_path(STUDENT)


def weak_student_path() -> Path:
    """Folder of the half-trained student that `check` samples bad rollouts from."""
    return _model_path(WEAK_STUDENT)
