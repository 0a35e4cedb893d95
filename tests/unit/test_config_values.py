"""Values mean what is written: texts keep their spelling, nothing is filled in, and no value is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_config_places import refusal
from trd_ray.config_loader import dump_config, load_config

SPELLINGS = ("1.10", "007", "12:30", "on", "no", "1_000", "0x10", "1e-4", "=", "<<", "9" * 5000)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    return path


@pytest.mark.parametrize("text", SPELLINGS, ids=lambda text: text[:10])
def test_a_text_keeps_its_spelling(empty: Path, tmp_path: Path, text: str):
    path = tmp_path / "a.yaml"
    path.write_text(f"run:\n  dir: {text} # a comment of the file\n")
    for config in (load_config(path), load_config(empty, [f"run.dir={text}"])):
        assert config.run.dir == text
        (tmp_path / "dump.yaml").write_text(dump_config(config))
        assert load_config(tmp_path / "dump.yaml") == config


def test_texts_of_a_list_keep_theirs_and_other_options_stay_what_they_are(empty: Path):
    config = load_config(empty, ["tracking.tags=[2.10, on, 'x']", "run.num_steps=007", "ray.dashboard=on"])
    assert config.tracking.tags == ("2.10", "on", "x")
    assert (config.run.num_steps, config.ray.dashboard) == (7, True)


def test_nothing_is_not_a_text(empty: Path):
    for text in ("", "null", "~"):
        assert "without a value" in refusal(empty, f"run.dir={text}")
    assert load_config(empty, ["run.dir='null'"]).run.dir == "null"
    assert "wrong type" in refusal(empty, "tracking.tags=[null]")


@pytest.mark.parametrize("text", ["runs/lr test #2", "#2", "1 #2", "null #2", "a#b"])
def test_no_comment_begins_on_the_command_line(empty: Path, text: str):
    assert load_config(empty, [f"run.dir={text}"]).run.dir == text


@pytest.mark.parametrize(
    "override", ['run.dir="a" #b', "run.dir=!!str 5 #b", "tracking.tags=[a] #b", "tracking.tags=- a #2"]
)
def test_what_would_be_cut_off_is_refused(empty: Path, override: str):
    assert "broken YAML in a value" in refusal(empty, override)


def test_a_number_with_a_comment_is_of_the_wrong_type(empty: Path):
    assert "'5 # five' (str)" in refusal(empty, "run.num_steps=5 # five")
    assert load_config(empty, ["tracking.project='x'", "run.dir='a #b'"]).run.dir == "a #b"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("run.dir", "???"),
        ("run.dir", "runs/${run.num_steps}"),
        ("run.dir", "${foo}"),
        ("run.num_steps", "???"),
        ("method.divergence", "${x}"),
        ("tracking.tags", "[a, '???']"),
        ("tracking.tags", "['${oc.env:HOME}']"),
    ],
)
def test_no_value_refers_to_another(empty: Path, tmp_path: Path, key: str, text: str):
    path = tmp_path / "a.yaml"
    path.write_text(f"{key}: {text}\n")
    for message in (refusal(path), refusal(empty, f"{key}={text}")):
        assert "refers to another, or is left open" in message and key in message
    assert f"{path}:1:{len(key) + 3}" in refusal(path)
    assert "command line" in refusal(empty, f"{key}={text}")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("run.dir=2024-02-30", ["unreadable value", "'2024-02-30', read as timestamp", "quotes"]),
        ("run.dir=2024-02-03", ["wrong type", "date", "quotes"]),
        ("run.num_steps=0x_", ["unreadable value", "'0x_', read as int"]),
        (f"run.num_steps={'9' * 5000}", ["unreadable value", "300 digits"]),
        (f"run.num_steps=0x{'f' * 5000}", ["unreadable value", "300 digits"]),
        (f"learner.optimizer.learning_rate={'9' * 400}", ["unreadable value", "300 digits"]),
        ("run.dir=!!bool maybe", ["unreadable value", "'maybe', read as bool"]),
        ("run.num_steps=!!int ''", ["unreadable value", "read as int"]),
        ("run.dir=!!timestamp soon", ["unreadable value", "'soon'"]),
        ("run.dir=!foo 1", ["broken YAML", "!foo"]),
        ("tracking.tags=[2024-02-30]", ["unreadable value", "'2024-02-30'"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_read_is_refused(empty: Path, override: str, parts: list[str]):
    message = refusal(empty, override)
    for part in (override.partition("=")[0], "command line", *parts):
        assert part in message
    assert len(message) < 1000


def test_an_option_in_two_spellings_is_refused_in_one_file_alone(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("run.num_steps: 5\nrun:\n  num_steps: 7\n")
    message = refusal(path)
    assert "the same option twice" in message
    assert f"{path}:3:3" in message and f"beside run.num_steps ({path}:1:1)" in message
    path.write_text("run.num_steps: 5\nrun: {seed: 7}\n")
    (tmp_path / "child.yaml").write_text("extends: a.yaml\nrun: {num_steps: 6}\n")
    config = load_config(tmp_path / "child.yaml", ["run.seed=1", "run.seed=2"])
    assert (config.run.num_steps, config.run.seed) == (6, 2)
