"""Which of several end tokens a model says."""

from __future__ import annotations

from tests.unit.tiny_tokenizer import END, START, make_tokenizer
from trd_ray.end_token import answer_end_token


def test_the_one_that_the_template_writes_behind_an_answer_and_not_the_one_that_ends_a_document():
    tokenizer = make_tokenizer()
    turn_end, document_end = tokenizer.convert_tokens_to_ids([END, "<pad>"])
    tokenizer.eos_token = "<pad>"
    assert answer_end_token(tokenizer, {document_end, turn_end}) == turn_end


def test_a_template_that_writes_none_leaves_it_to_the_tokenizer():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{%- for m in messages -%}{{- m['content'] -}}{%- endfor -%}"
    end, start = tokenizer.convert_tokens_to_ids([END, START])
    assert answer_end_token(tokenizer, {start, end}) == end
    assert answer_end_token(tokenizer, {start}) == start
