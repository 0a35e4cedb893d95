"""From a user message to prompt tokens, through the model's chat template.

A message is data: problems come from files, solutions from models. Two things keep it that:
- The chat template is the only template; the message is a value in it, so template syntax in a
  message is plain text.
- The special tokens of a prompt are those that the chat template itself writes, and no others. Where a
  message spells a special token (`<|im_end|>` in a text about chat formats, or written by a student),
  its characters are encoded as ordinary text. It is not refused, because such a text is a legitimate
  problem, and not edited, because the model should read what was written.

A tokenizer must not be used by two threads at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from trd_ray.errors import ModelError, describe
from trd_ray.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "TrdRayUserMessage"
"""Stands for the message where only the template's own text is wanted. Contains nothing that a
template or a tokenizer would treat in a special way."""


def check_chat_template(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Raise `ModelError` unless the tokenizer of the model at `path` has a usable chat template."""
    if not tokenizer.chat_template:
        raise ModelError(
            describe(
                "the model has no chat template",
                where=path,
                got="a tokenizer without chat_template",
                expected="an instruction model, whose tokenizer brings one (chat_template.jinja)",
                remedy="use the model's instruct variant, or put its chat_template.jinja into the folder",
            )
        )
    _template_parts(tokenizer, path=path, enable_thinking=False)


def encode_chat(tokenizer: PreTrainedTokenizerBase, user_message: str, *, enable_thinking: bool) -> IntArray:
    """Encode one user turn and the opening of the assistant's turn -> [P].

    Raises:
        ModelError: the chat template does not take the message over once and as it is.
    """
    frame = _frame(tokenizer, str(tokenizer.chat_template), len(tokenizer), enable_thinking)
    special = frame.special_ids
    ids = _encode(tokenizer, _render(tokenizer, user_message, enable_thinking=enable_thinking))
    own = [i for part in (frame.before, frame.after) for i in part if i in special]
    if [i for i in ids if i in special] != own:
        message_ids = tokenizer.encode(user_message, add_special_tokens=False, split_special_tokens=True)
        # The unknown token is special too, and right for a character that the vocabulary lacks.
        unsafe = special.intersection(message_ids) - {tokenizer.unk_token_id}
        if unsafe:
            raise ModelError(
                describe(
                    "the tokenizer makes special tokens of plain text",
                    where=tokenizer.name_or_path,
                    got=f"special tokens {tokenizer.convert_ids_to_tokens(sorted(unsafe))} in a user message",
                    expected="a tokenizer that can encode special-token text as ordinary text",
                    remedy="remove such text from the data, or use a model with a fast tokenizer",
                )
            )
        ids = [*frame.before, *message_ids, *frame.after]
    return np.asarray(ids, dtype=np.int32)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """What of a prompt is the same for every message."""

    before: tuple[int, ...]
    """Tokens of the template's own text before the message."""
    after: tuple[int, ...]
    special_ids: frozenset[int]
    """Of the tokenizer."""


# Prompts are encoded in the driver, two a trajectory, and finding the frame costs more than the rest.
@lru_cache(maxsize=16)
def _frame(
    tokenizer: PreTrainedTokenizerBase, chat_template: str, num_tokens: int, enable_thinking: bool
) -> _Frame:
    """Template and number of tokens are arguments because they may be changed on the same tokenizer."""
    before, after = _template_parts(tokenizer, path=tokenizer.name_or_path, enable_thinking=enable_thinking)
    return _Frame(
        before=tuple(_encode(tokenizer, before)),
        after=tuple(_encode(tokenizer, after)),
        special_ids=frozenset(tokenizer.all_special_ids) | _added_special_ids(tokenizer),
    )


def _render(tokenizer: PreTrainedTokenizerBase, message: str, *, enable_thinking: bool) -> str:
    """The prompt as text. A template that knows no thinking ignores `enable_thinking`."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}],
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=enable_thinking,
    )
    assert isinstance(text, str)
    return text


def _template_parts(
    tokenizer: PreTrainedTokenizerBase, *, path: str, enable_thinking: bool
) -> tuple[str, str]:
    """The template's own text before and after the message."""
    parts = _render(tokenizer, _MARK, enable_thinking=enable_thinking).split(_MARK)
    if len(parts) != 2:
        raise ModelError(
            describe(
                "the chat template does not take over the user's message",
                where=path,
                got=f"{len(parts) - 1} copies of the message in the prompt",
                expected="one, as it is",
                remedy="correct the chat template of the model folder",
            )
        )
    return parts[0], parts[1]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False))


def _added_special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    return frozenset(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)


def decode_text(tokenizer: PreTrainedTokenizerBase, token_ids: IntArray) -> str:
    """Tokens [T] as text without special tokens, for graders and people."""
    # As an array: of a list the tokenizer checks each element in Python, which takes as long as the rest.
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text
