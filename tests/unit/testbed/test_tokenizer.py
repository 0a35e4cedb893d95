"""The tokenizer that the testbed's models share."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from trd_ray.templates import TemplateName, render
from trd_ray.testbed.paths import student_path, teacher_path, weak_student_path
from trd_ray.testbed.tokenizer import TURN_END, build_tokenizer
from trd_ray.testbed.training import encode, wrap_user_message

TOKENIZER = build_tokenizer()
PRINTABLE = string.ascii_letters + string.digits + string.punctuation + " \n"


@settings(deadline=None)
@given(st.text(alphabet=PRINTABLE, max_size=80))
def test_printable_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["Keep correct steps, fix errors.", " step  by steppe", "12+7=19\n#19", "it 's , ok ."]
)
def test_words_and_spaces_round_trip(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize("template", list(TemplateName))
def test_template_words_are_single_tokens(template: TemplateName) -> None:
    text = render("arithmetic", template, problem="", reference="", initial_solution="")
    tokens = TOKENIZER.tokenize(text)
    assert [token for token in tokens if len(token) == 1 and token.isalpha()] == []


def test_chat_template() -> None:
    messages = [{"role": "user", "content": "1+2{{ x }}"}]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\n1+2{{ x }}<|im_end|>\n<|im_start|>assistant\n"
    for thinking in (True, False):
        assert text == TOKENIZER.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
    turns = [*messages, {"role": "assistant", "content": "#3"}]
    whole = TOKENIZER.apply_chat_template(turns, tokenize=False)
    assert whole == text + "#3<|im_end|>\n"


def test_training_sees_what_the_chat_template_makes() -> None:
    user = render("arithmetic", TemplateName.REFINE, problem="1+2-3", initial_solution="x {{ y }}")
    by_template = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": user}], add_generation_prompt=True, return_dict=False
    )
    assert encode(TOKENIZER, [wrap_user_message(user)]) == [by_template]


def test_size_and_end_token() -> None:
    assert 130 <= len(TOKENIZER) <= 200
    assert TOKENIZER.eos_token == TURN_END
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id


@pytest.mark.parametrize("path", [teacher_path, student_path, weak_student_path])
def test_shipped_tokenizers_are_this_one(path: object) -> None:
    assert callable(path)
    folder: Path = path()
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.is_fast
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert loaded.chat_template == TOKENIZER.chat_template
    assert loaded.decode(loaded.encode("Problem: 1+2\nx")) == "Problem: 1+2\nx"
    assert (folder / "tokenizer.json").read_bytes() == (teacher_path() / "tokenizer.json").read_bytes()
