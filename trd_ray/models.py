"""Model folders in Hugging Face layout: what is in them, whether they fit together, loading.

No code from a model folder is run, and weights are read from safetensors only. What needs neither torch nor
transformers is in `trd_ray/model_files.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from trd_ray.choices import DType
from trd_ray.errors import ModelError, describe
from trd_ray.losses.objective import LogitTransform
from trd_ray.model_files import (
    model_error,
    model_facts,
    read_config,
    read_header,
    require_folder,
    text_config,
    weight_files,
)

_HEAD_NAMES = ("lm_head.weight", "embed_out.weight")
_EMBEDDING_NAMES = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "word_embeddings.weight")

# A model that does more than `hidden @ head.T` to get its logits names it in its configuration. What
# a key means is the architecture's choice (`logits_scaling` divides in Granite and multiplies in
# HyperCLOVA X), so it is understood for these architectures only, and refused elsewhere.
_SOFTCAP_KEY = "final_logit_softcapping"
_SCALE_KEYS = ("logits_scaling", "logit_scale", "lm_head_multiplier")
_SOFTCAPPED = ("gemma2", "gemma3", "gemma3_text", "vaultgemma", "nanochat")
_MULTIPLIED = {"cohere": "logit_scale", "cohere2": "logit_scale", "falcon_h1": "lm_head_multiplier"}
_DIVIDED = dict.fromkeys(
    ("granite", "granite_swa", "granitemoe", "granitemoehybrid", "granitemoeshared"), "logits_scaling"
)


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch format that an option names."""
    return {DType.FLOAT32: torch.float32, DType.BFLOAT16: torch.bfloat16}[dtype]


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        ModelError: the folder is missing or holds no tokenizer.
    """
    require_folder(path)
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise model_error(
            path, "No tokenizer", "no tokenizer.json and no tokenizer_config.json", "a tokenizer"
        )
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_student(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The causal language model of a folder with its weights in `dtype`, in evaluation mode, on the CPU.

    Raises:
        ModelError: the folder does not hold a model, or its logits are not made of final hidden
            states in a way that `logit_transform` knows.
    """
    weight_files(path)
    logit_transform(path)
    # A bar a rank would tear the run's own progress line apart.
    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or getattr(head, "bias", None) is not None:
        raise model_error(path, "Unsupported output head", repr(head), "a linear layer without bias")
    return cast(PreTrainedModel, model)


def load_output_head(path: Path, dtype: torch.dtype) -> Tensor:
    """[V, D] output head of a model folder; reads that one tensor. Tied embeddings serve as the head.

    Raises:
        ModelError: the folder does not hold a model, or no head is found in it.
    """
    config = read_config(path)
    logit_transform(path)
    names = {name: file for file in weight_files(path) for name in read_header(file)}
    heads = [name for name in names if name.endswith(_HEAD_NAMES)]
    embeddings = [name for name in names if name.endswith(_EMBEDDING_NAMES)]
    # Where the configuration says nothing, a head of its own in the file decides.
    tied = text_config(config).get("tie_word_embeddings", config.get("tie_word_embeddings", False))
    candidates = embeddings + heads if tied else heads + embeddings
    if not candidates:
        raise model_error(
            path,
            "No output head",
            f"{len(names)} tensors, none of them a head or an embedding",
            f"a tensor named {' or '.join(_HEAD_NAMES + _EMBEDDING_NAMES)}",
        )
    with safe_open(names[candidates[0]], framework="pt") as file:
        return cast(Tensor, file.get_tensor(candidates[0])).to(dtype)


def logit_transform(path: Path) -> LogitTransform:
    """What the model of a folder does with `hidden @ head.T` to get its logits.

    Soft-capping is cap * tanh(logits / cap) (Gemma Team 2024, arXiv 2408.00118, section 2); scaling
    multiplies (Cohere, Falcon-H1) or divides (Granite).

    Raises:
        ModelError: config.json asks for more than that, or in an architecture for which it is not
            known what a key means.
    """
    config = text_config(read_config(path))
    kind = str(config.get("model_type", ""))
    scale, softcap = 1.0, None
    for key in (_SOFTCAP_KEY, *_SCALE_KEYS):
        known = (
            kind in _SOFTCAPPED if key == _SOFTCAP_KEY else key in (_MULTIPLIED.get(kind), _DIVIDED.get(kind))
        )
        # Where the file says nothing, the architecture's default holds, which need not be 1.
        value = (
            config.get(key) if key in config or not known else getattr(AutoConfig.for_model(kind), key, None)
        )
        if value is None or (value == 1 and key != _SOFTCAP_KEY):
            continue
        if not known or not isinstance(value, int | float) or value <= 0:
            raise _unknown_transform(path, key, value, kind)
        if key == _SOFTCAP_KEY:
            softcap = float(value)
        else:
            scale = float(value) if kind in _MULTIPLIED else 1.0 / value
    return LogitTransform(scale=scale, softcap=softcap)


def _unknown_transform(path: Path, key: str, value: object, kind: str) -> ModelError:
    return model_error(
        path,
        "Unsupported output head",
        f"{key} = {value} in config.json of a {kind or 'nameless'} model",
        "logits that are final hidden states times the output head, or a scale or soft cap of Gemma, "
        "Cohere, Falcon-H1 or Granite",
    )


def shared_vocab_size(student: Path, teacher: Path) -> int:
    """V, the size of the tokenizer that both models share; rows of a head beyond it are padding.

    Two tokenizers are the same if each token has the same id and the end token is the same. The
    chat templates may differ, and so may the padding token: masks come from lengths.

    Raises:
        ModelError: the tokenizers differ (names both folders and the first token that does), or
            a model has fewer rows than the tokenizer has tokens.
    """
    student_tokenizer, teacher_tokenizer = load_tokenizer(student), load_tokenizer(teacher)
    require_same_tokenizer(student_tokenizer, teacher_tokenizer, student=student, teacher=teacher)
    vocab = max(student_tokenizer.get_vocab().values()) + 1
    for path in (student, teacher):
        rows = model_facts(path).vocab_size
        if rows < vocab:
            raise model_error(
                path,
                "Model and tokenizer do not fit",
                f"{rows} rows in the embedding",
                f"at least {vocab}, the tokens of its tokenizer",
            )
    return vocab


def require_same_tokenizer(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    *,
    student: Path,
    teacher: Path,
) -> None:
    """Raise ModelError unless both give each token the same id and end with the same token."""
    difference = _first_difference(student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab())
    if difference is None and student_tokenizer.eos_token_id != teacher_tokenizer.eos_token_id:
        ends = student_tokenizer.eos_token, teacher_tokenizer.eos_token
        difference = f"end token {ends[0]!r} (student) and {ends[1]!r} (teacher)"
    if difference is not None:
        raise ModelError(
            describe(
                "Student and teacher have different tokenizers",
                where=f"student {student}, teacher {teacher}",
                got=difference,
                expected="one tokenizer, because the divergence compares the models token by token",
                remedy="choose a teacher of the student's model family",
            )
        )


def _first_difference(student: Mapping[str, int], teacher: Mapping[str, int]) -> str | None:
    """What each side has at the smallest id at which they differ."""
    differing = student.items() ^ teacher.items()
    if not differing:
        return None
    first = min(index for _, index in differing)
    sides = (
        f"{[token for token, index in vocab.items() if index == first] or 'no token'} ({side})"
        for side, vocab in (("student", student), ("teacher", teacher))
    )
    return f"id {first}: {', '.join(sides)}"
