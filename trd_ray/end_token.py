"""The tokens with which a model says that its answer is over."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from trd_ray.errors import ModelError, describe

_ANSWER = "TrdRayAssistantMessage"
"""Stands for an answer. Contains nothing that a template or a tokenizer would treat in a special way."""


def end_token_ids(path: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end an answer: the tokenizer's end token and those of generation_config.json.

    Raises `ModelError` if the model has none: it would never stop.
    """
    ids = {tokenizer.eos_token_id}
    if (path / "generation_config.json").is_file():
        configured = GenerationConfig.from_pretrained(path, local_files_only=True).eos_token_id
        ids |= set(configured) if isinstance(configured, list) else {configured}
    ids.discard(None)
    if not ids:
        raise ModelError(
            describe(
                "the model has no end token",
                where=str(path),
                got="none in the tokenizer and none in generation_config.json",
                expected="eos_token_id",
                remedy="set eos_token in tokenizer_config.json",
            )
        )
    return frozenset(ids)


def answer_end_token(tokenizer: PreTrainedTokenizerBase, end_ids: Set[int]) -> int:
    """Of the tokens at which an engine stops, the one that the chat template writes behind an answer.

    A model may stop at several and say only one of them in a chat: `eos_token` of some tokenizers ends
    a document, while the turn ends with a token of its own.

    Args:
        end_ids: all at which the engine stops, at least one.

    Returns:
        Where the template writes none of them, `eos_token` if the engine stops there, else the
        smallest.
    """
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    behind = tokenizer.encode(text.rpartition(_ANSWER)[2], add_special_tokens=False)
    for token_id in behind:
        if token_id in end_ids:
            return int(token_id)
    if tokenizer.eos_token_id in end_ids:
        return int(tokenizer.eos_token_id)
    return min(end_ids)
