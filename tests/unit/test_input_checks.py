"""What files show of a tokenizer must be what the tokenizer says, or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.tiny_models import make_tiny_qwen3
from trd_ray.config_loader import load_config
from trd_ray.input_checks import (
    all_problems,
    names_chat_template,
    read_eval_problems,
    read_training_problems,
    same_tokenizer_files,
)
from trd_ray.model_files import resolve_model
from trd_ray.models import load_tokenizer, shared_vocab_size


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen3(tmp_path_factory.mktemp("tiny"))


def copy(folder: Path, name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / name))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_size_is_that_of_the_loaded_tokenizer(tiny: Path, tmp_path: Path):
    pairs = [
        (tiny, copy(tiny, "again", tmp_path)),
        (resolve_model("testbed:student"), resolve_model("testbed:teacher")),
    ]
    for student, teacher in pairs:
        assert same_tokenizer_files(student, teacher) == shared_vocab_size(student, teacher)


def test_a_token_that_only_the_configuration_adds_counts(tiny: Path, tmp_path: Path):
    student = copy(tiny, "student", tmp_path)
    tokenizer = load_tokenizer(student)
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(student)
    teacher = copy(student, "teacher", tmp_path)
    assert same_tokenizer_files(student, teacher) == len(tokenizer) == 129


def test_what_differs_is_left_to_the_tokenizers(tiny: Path, tmp_path: Path):
    other = copy(tiny, "other", tmp_path)
    edit(other / "tokenizer_config.json", padding_side="left", eos_token="x")
    assert same_tokenizer_files(tiny, other) is None
    (other / "tokenizer_config.json").write_text("{")
    assert same_tokenizer_files(other, other) is None
    (other / "tokenizer.json").unlink()
    assert same_tokenizer_files(other, other) is None


def test_chat_templates_may_differ(tiny: Path, tmp_path: Path):
    other = copy(tiny, "other", tmp_path)
    (other / "chat_template.jinja").unlink(missing_ok=True)
    edit(other / "tokenizer_config.json", chat_template="{{ messages }}")
    assert same_tokenizer_files(tiny, other) is not None
    assert names_chat_template(other)
    edit(other / "tokenizer_config.json", chat_template=None)
    assert not names_chat_template(other)
    (other / "tokenizer_config.json").write_text("[1]")
    assert not names_chat_template(other)


def test_all_problems_leave_the_stream_where_it_was():
    config = load_config(
        Path(__file__).parents[2] / "configs/experiment/trd_opsd_gsm8k_smollm2.yaml", ["data.eval_problems=2"]
    )
    stream, held_out = read_training_problems(config), read_eval_problems(config)
    before = stream.state()
    problems = all_problems(stream, held_out)
    assert len(problems) == (stream.num_problems or 0) + 2
    assert stream.state() == before
