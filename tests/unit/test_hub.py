"""Models by their hub name, without a hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from trd_ray import hub
from trd_ray.errors import ModelError
from trd_ray.model_files import model_facts, resolve_model
from trd_ray.planned_models import missing_model, planned_facts
from trd_ray.testbed.paths import student_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Nothing is cached and the hub cannot be reached; returns what was asked for."""
    asked: list[dict[str, object]] = []

    def nothing(name: str, **options: object) -> str:
        asked.append({"name": name, **options})
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", nothing)
    return asked


def test_names_and_paths_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine").mkdir()
    assert hub.is_hub_name("Qwen/Qwen3-8B")
    assert not any(map(hub.is_hub_name, ("models/mine", "/models/mine", "a/b/c", "~/x", "testbed:student")))


def test_a_model_that_cannot_be_had_is_an_error_that_says_both_ways(offline):
    with pytest.raises(ModelError, match="neither a folder here nor to be had from the hub"):
        resolve_model("models/misspelt")


def test_only_data_files_are_downloaded(offline):
    with pytest.raises(ModelError):
        hub.download("owner/name")
    patterns = offline[0]["allow_patterns"]
    assert isinstance(patterns, list)
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in patterns)


def test_a_plan_knows_the_published_figures_of_the_recipes_models(offline):
    assert missing_model("Qwen/Qwen3-8B")
    facts = planned_facts("Qwen/Qwen3-8B")
    # 36 layers of width 4096, untied head: 2 x 151,936 x 4,096 for embedding and head, the rest 6.95e9.
    assert facts.num_parameters == 8_190_735_360
    assert facts.num_bytes == 2 * facts.num_parameters
    with pytest.raises(ModelError, match="a plan does not download it"):
        planned_facts("owner/unknown")


def test_a_model_that_is_here_is_planned_from_its_own_files(offline):
    assert planned_facts(str(student_path())) == model_facts(student_path())
    assert offline == []
