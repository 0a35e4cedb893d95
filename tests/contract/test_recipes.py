"""Every named configuration loads, passes `--dry-run`, and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.dry_run import show_plan
from trd_ray.choices import Device
from trd_ray.config_loader import load_config

ROOT = Path(__file__).parents[2]
METHODS = sorted(path.stem for path in (ROOT / "configs/method").glob("*.yaml"))
SIZES = ("1.7b", "4b", "8b")
RECIPES = [ROOT / f"configs/experiment/qwen3/{method}_{size}.yaml" for method in METHODS for size in SIZES]
TESTBED = [ROOT / f"configs/experiment/{method}.yaml" for method in METHODS]


def test_each_method_has_its_configurations():
    found = set((ROOT / "configs/experiment/qwen3").glob("*_*.yaml"))
    assert found - {ROOT / f"configs/experiment/qwen3/qwen3_{size}.yaml" for size in SIZES} == set(RECIPES)
    assert all(path.is_file() for path in TESTBED)


@pytest.mark.parametrize("path", TESTBED + RECIPES, ids=lambda p: p.stem)
def test_dry_run_passes(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("trd_ray.planned_models.cached", lambda name: None)  # whatever this machine has
    config = load_config(path, [f"run.dir={tmp_path / 'run'}"])
    show_plan(config, no_ray=False)
    shown = capsys.readouterr().out
    assert f"method: {config.method.sentence()}" in shown
    assert "learner-0" in shown
    assert ("teacher-0" in shown) == config.teacher_group
    if path in RECIPES:
        assert "not on this machine: Qwen/Qwen3-" in shown
        assert config.learner.device is Device.CUDA


def test_the_sentences_differ():
    sentences = {load_config(path).method.sentence() for path in TESTBED}
    assert len(sentences) == len(METHODS)
