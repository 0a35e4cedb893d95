"""Values of sweep files: texts keep their spelling, nothing is filled in, and nothing stands twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.sweep.sweep_files import sweep_of, write
from trd_ray.errors import ConfigError
from trd_ray.sweep.spec import load_sweep
from trd_ray.sweep.trials import checked_trials


def test_texts_keep_their_spelling(tmp_path: Path):
    text = (
        "axes: {tracking.name: [1.10, 1.1, on, 1e-4]}\nset: {tracking: {tags: [2.10], project: 007}}\n"
        "zip: [{data.columns.id: [007, 08], run.num_steps: [3, 4]}]\n"
    )
    configs = [config for _, config in checked_trials(sweep_of(tmp_path, text)).values()]
    assert {c.tracking.name for c in configs} == {"1.10", "1.1", "on", "1e-4"}
    assert {(c.data.columns.id, c.run.num_steps) for c in configs} == {("007", 3), ("08", 4)}
    assert {(c.tracking.tags, c.tracking.project) for c in configs} == {(("2.10",), "007")}
    path = write(tmp_path, "")
    assert load_sweep(path, ["sweep.dir=1.10"]).options.dir == "1.10"
    assert load_sweep(path, ["sweep.dir=out #2"]).options.dir == "out #2"


def test_a_method_with_a_name_like_a_number(tmp_path: Path):
    write(tmp_path, "")
    (tmp_path / "method" / "1.10.yaml").write_text("method: {trajectory: rollout, teacher_context: prompt}\n")
    assert list(checked_trials(sweep_of(tmp_path, "axes: {method: [1.10]}\n"))) == ["1.10"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("axes: {tracking.name: ['${foo}']}", ["file.yaml:2 axes.tracking.name", "refers to another"]),
        ("axes: {run.num_steps: ['???']}", ["file.yaml:2 axes.run.num_steps", "left open"]),
        ("zip: [{run.num_steps: ['${foo}']}]", ["file.yaml:2 zip.run.num_steps", "refers to another"]),
        ("set: {tracking.name: '${foo}'}", ["tracking.name", "file.yaml:2:22", "refers to another"]),
        ("set: {tracking.tags: ['${foo}']}", ["tracking.tags", "file.yaml:2:22", "refers to another"]),
        ("dir: '${foo}'", ["dir", "file.yaml:2:6", "refers to another"]),
        ("seeds: [2024-02-30]", ["seeds", "file.yaml:2", "unreadable value", "'2024-02-30'"]),
        ("seeds: [!foo 1]", ["seeds", "file.yaml:2", "broken YAML", "!foo"]),
        ("axes: {run.num_steps: [0x_]}", ["axes.run.num_steps", "unreadable value", "'0x_'"]),
        (
            f"axes: {{learner.optimizer.learning_rate: {{uniform: [0, {'9' * 400}]}}}}",
            ["axes.learner.optimizer.learning_rate", "unreadable value", "300 digits"],
        ),
        ("axes: {learner.optimizer.learning_rate: {uniform: [0, .inf]}}", ["two ends"]),
        ("axes: {run.num_steps: [2]}\naxes: {run.eval_every: [2]}", ["same key twice", "axes", "2 and 3"]),
        ("seeds: [0]\nseeds: [1]", ["same key twice", "seeds (", "file.yaml:3:1"]),
        ("dir: a\ndir: b", ["same key twice", "dir (", "file.yaml:3:1"]),
        ("search: {seed: 1}\nsearch.seed: 2", ["same option twice", "search.seed", "file.yaml:3:1"]),
        ("axes:\n  run.num_steps: [2]\n  run.num_steps: [3]", ["same key twice", "file.yaml:4:3"]),
        ("zip:\n- run.num_steps: [2]\n  run.num_steps: [3]", ["same key twice", "file.yaml:4:3"]),
        ("set:\n  run.num_steps: 2\n  run.num_steps: 3", ["same key twice", "file.yaml:4:3"]),
        ("set:\n  run.num_steps: 2\n  run: {num_steps: 3}", ["same option twice", "file.yaml:4:9"]),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_bad_values_are_refused_with_their_place(tmp_path: Path, text: str, parts: list[str]):
    with pytest.raises(ConfigError) as error:
        checked_trials(load_sweep(write(tmp_path, text + "\n")))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "sweep.set={run.num_steps: 2, run.num_steps: 3}",
        "sweep.axes={run.num_steps: [2], run.num_steps: [3]}",
        "sweep.zip=[{run.num_steps: [2], run.num_steps: [3]}]",
    ],
)
def test_what_stands_twice_on_the_command_line_is_not_said_of_the_file(tmp_path: Path, override: str):
    with pytest.raises(ConfigError, match=r"same key twice[^|]*run\.num_steps \(command line:1:") as error:
        sweep_of(tmp_path, "", override)
    assert "file.yaml" not in str(error.value)
