"""What a run reads of its task and data, and what model files show without a tokenizer being loaded.

Nothing here imports torch or transformers, so that a plan answers at once. A tokenizer is judged from its
file only as far as that is safe: `same_tokenizer_files` says yes or "not sure", and what is not sure is
left to `trd_ray.models`, which loads it and decides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trd_ray.choices import Support
from trd_ray.config import MethodConfig, TrdConfig
from trd_ray.data import ProblemStream, load_first_problems, load_problems
from trd_ray.errors import ConfigError, describe
from trd_ray.locate import require_steps
from trd_ray.tasks.base import Task
from trd_ray.tasks.registry import load_task
from trd_ray.types import Problem, TrajectorySource

_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_OTHER_FILES = (
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer.model",
)  # fmt: skip
_CHAT_KEY = "chat_template"
_CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")


def read_task(config: TrdConfig) -> Task:
    """The task. Raises `ConfigError` if there is none of that name, or it cannot do what the method asks."""
    task = load_task(config.data.task)
    if config.method.trajectory is TrajectorySource.SPLICED:
        require_steps(config.method.splice, task=task)
    return task


def read_training_problems(config: TrdConfig) -> ProblemStream:
    """Problems to train on. Raises what `load_problems` raises."""
    return load_problems(
        config.data.train,
        config.data.columns,
        task=config.data.task,
        need_reference=config.needs_reference,
        seed=config.run.seed,
    )


def read_eval_problems(config: TrdConfig) -> tuple[Problem, ...]:
    """Problems to evaluate on, () if there are none. Raises what `load_problems` raises."""
    if not config.data.eval:
        return ()
    return load_first_problems(
        config.data.eval,
        config.data.columns,
        task=config.data.task,
        need_reference=False,
        seed=config.run.seed,
        num=config.data.eval_problems,
    )


def all_problems(stream: ProblemStream, eval_problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
    """Each problem of an epoch of a finite source, then those to evaluate on. Leaves the stream as it was."""
    if stream.num_problems is None:
        return eval_problems
    before = stream.state()
    taken = tuple(problem for problem, _ in stream.take(stream.num_problems))
    stream.restore(before)
    return taken + eval_problems


def require_top_k(method: MethodConfig, *, vocab_size: int) -> None:
    """Raise `ConfigError` if the support is larger than the vocabulary."""
    if method.support is Support.TOP_K and method.top_k > vocab_size:
        raise ConfigError(
            describe(
                "the support has more entries than the vocabulary",
                where="method.top_k",
                got=method.top_k,
                expected=f"at most {vocab_size}, the tokens of the shared tokenizer",
                remedy="lower method.top_k, or set method.support=full",
            )
        )


def same_tokenizer_files(student: Path, teacher: Path) -> int | None:
    """V, where the files alone show that both models have the same tokenizer; None where they do not.

    Equal files make equal tokenizers. Different ones may still do so (names of classes, files that hold more
    than their loader reads), which is for the tokenizers themselves to say.
    """
    if any(_content(student / name) != _content(teacher / name) for name in (_TOKENIZER, *_OTHER_FILES)):
        return None
    try:
        options = _tokenizer_config(student)
        if {**options, _CHAT_KEY: None} != {**_tokenizer_config(teacher), _CHAT_KEY: None}:
            return None
        parsed = json.loads(_content(student / _TOKENIZER) or b"")
        vocab = parsed["model"]["vocab"]
        ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
        added = [token["id"] for token in parsed["added_tokens"]]
        return max(ids + added + [int(index) for index in options.get("added_tokens_decoder", {})]) + 1
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def names_chat_template(path: Path) -> bool:
    """The files of a model folder hold a chat template; whether it works is not looked at."""
    if any(_content(path / name) for name in _CHAT_TEMPLATES):
        return True
    try:
        return bool(_tokenizer_config(path).get(_CHAT_KEY))
    except (ValueError, TypeError):
        return False


def _tokenizer_config(path: Path) -> dict[str, Any]:
    """Raises `ValueError` or `TypeError` if the file is broken."""
    return dict(json.loads(_content(path / _TOKENIZER_CONFIG) or b"{}"))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
