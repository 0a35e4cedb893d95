"""Errors of configurations quote the line, with a caret under what is wrong."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from trd_ray.config_loader import load_config, load_with_origins
from trd_ray.errors import ConfigError


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    for answer in ("where:    ", "got:      ", "expected: ", "remedy:   "):
        assert answer in message
    return message


def under(message: str) -> list[str]:
    """What the carets stand under, one text for each quoted line."""
    lines = message.splitlines()
    return [
        quoted[line.index("^") : line.rindex("^") + 1]
        for quoted, line in itertools.pairwise(lines)
        if set(line) <= {" ", "|", "^"} and "^" in line
    ]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_wrong_value_is_quoted_with_its_column(tmp_path: Path):
    path = write(tmp_path, "a.yaml", "run:\n  seed: 1\n  num_steps: many # a lot\n")
    message = refusal(path)
    assert f"run.num_steps ({path}:3:14)" in message
    assert "3 |   num_steps: many # a lot" in message
    assert under(message) == ["many"]


def test_an_unknown_key_is_quoted_with_its_column(tmp_path: Path):
    path = write(tmp_path, "a.yaml", "learner: {optimizer: {learning_rat: 1.0}}\n")
    message = refusal(path)
    assert f"{path}:1:23" in message
    assert "nearest is learner.optimizer.learning_rate" in message
    assert under(message) == ["learning_rat"]


def test_a_value_out_of_range_is_quoted_from_the_parent_that_set_it(tmp_path: Path):
    parent = write(tmp_path, "parent.yaml", "learner:\n  zero_stage: 7\n")
    middle = write(tmp_path, "middle.yaml", "extends: [parent.yaml]\n")
    child = write(tmp_path, "child.yaml", "run: {seed: 1}\nextends:\n- middle.yaml\n")
    message = refusal(child)
    assert f"learner.zero_stage ({parent}:2:15, extended by {middle}:1, extended by {child}:3)" in message
    assert under(message) == ["7"]


def test_the_last_that_set_a_value_is_quoted(tmp_path: Path):
    path = write(tmp_path, "a.yaml", "learner:\n  zero_stage: 2\n")
    message = refusal(path, "learner.zero_stage=3", "learner.zero_stage=9")
    assert "learner.zero_stage (command line)" in message
    assert "learner.zero_stage=9" in message and "zero_stage=3" not in message
    assert under(message) == ["9"]


def test_an_override_is_quoted(tmp_path: Path):
    path = write(tmp_path, "a.yaml", "")
    assert under(refusal(path, "run.num_step=3")) == ["run.num_step"]
    assert under(refusal(path, "run.num_steps=2.5")) == ["2.5"]
    assert under(refusal(path, "run.num_steps=")) == [""]
    assert under(refusal(path, "run.dir=[a, b")) == ["[a, b"]


def test_a_block_that_stands_in_several_places_is_quoted_where_it_is_wrong(tmp_path: Path):
    path = write(tmp_path, "a.yaml", "generator: {sampling: {top_p: 0.5}}\neval: {sampling: {top_p: 3}}\n")
    message = refusal(path)
    assert f"eval.sampling.top_p ({path}:2:26)" in message
    assert under(message) == ["3"]


def test_a_default_that_contradicts_a_setting_shows_the_setting(tmp_path: Path):
    path = write(tmp_path, "a.yaml", "pipeline:\n  max_staleness: 1\n")
    message = refusal(path)
    assert "pipeline.stage_barrier (its default)" in message
    assert f"beside pipeline.max_staleness ({path}:2:18)" in message
    assert under(message) == ["1"]


@pytest.mark.parametrize(
    ("text", "parts", "carets"),
    [
        ("run:\n\tseed: 1\n", ["broken YAML", ":2:1", "cannot start any token"], ["\t".replace("\t", " ")]),
        ("run: {seed: 1\nlearner: 2\n", ["broken YAML"], None),
        ("run: {seed: 1, seed: 2}\n", ["same key twice", "lines 1 and 1"], ["seed"]),
        ("run: {seed: 1}\nrun: {num_steps: 2}\n", ["same key twice", "lines 1 and 2"], ["run"]),
        ("run: {seed: {value: 1}}\n", ["no keys below it", "run.seed"], ["value"]),
        ("run: {seed: [1, 2]}\n", ["wrong type", "a list"], ["[1, 2]"]),
        ("run: &run {run: *run}\n", ["unknown option", "run.run"], None),
        ("run: {dir: &a [*a]}\n", ["wrong type", "run.dir"], None),
        ("run: {dir: 2020-01-01}\n", ["wrong type", "date", "str"], ["2020-01-01"]),
        ("extends: {a: b}\n", ["parent must be a file name"], ["{a: b}"]),
        ("extends: [none.yaml]\n", ["not found", "none.yaml"], ["none.yaml"]),
        ("extends:\n", ["parent must be a file name", "nothing"], None),
        ("- run\n", ["must hold keys", "got:      seq"], None),
        ("run:\n", ["a section has no value", "run"], ["run"]),
        ("run: {dir: !!python/object/apply:os.getcwd []}\n", ["broken YAML", "run.dir"], None),
        ("? [a, b]\n: 1\n", ["unknown option"], ["[a, b]"]),
    ],
)
def test_each_way_to_be_wrong_is_quoted(
    tmp_path: Path, text: str, parts: list[str], carets: list[str] | None
):
    path = write(tmp_path, "a.yaml", text)
    message = refusal(path)
    for part in (str(path), *parts):
        assert part in message
    if carets is not None:
        assert under(message) == carets


def test_a_long_line_is_cut_around_what_is_wrong(tmp_path: Path):
    path = write(
        tmp_path, "a.yaml", "run: {dir: " + "x" * 300 + ", num_steps: many, seed: 1" + " " * 200 + "}\n"
    )
    message = refusal(path)
    assert under(message) == ["many"]
    assert max(map(len, message.splitlines())) < 220


def test_a_missing_file_names_the_nearest(tmp_path: Path):
    write(tmp_path, "trd_opd.yaml", "")
    assert f"the nearest is {tmp_path / 'trd_opd.yaml'}" in refusal(tmp_path / "trd_odp.yaml")
    assert "Is a directory" in refusal(tmp_path)
    assert "name too long" in refusal(tmp_path / ("x" * 5000))


def test_origins_name_the_last_place_of_each_value(tmp_path: Path):
    write(tmp_path, "parent.yaml", "run: {seed: 3, num_steps: 7}\n")
    path = write(tmp_path, "child.yaml", "extends: [parent.yaml]\nrun:\n  num_steps: 9\n")
    loaded = load_with_origins(path, ["run.eval_every=2"])
    assert loaded.config == load_config(path, ["run.eval_every=2"])
    assert loaded.origins == {
        "run.seed": f"{tmp_path / 'parent.yaml'}:1:13",
        "run.num_steps": f"{path}:3:14",
        "run.eval_every": "command line",
    }
