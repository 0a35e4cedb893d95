"""Model folders in Hugging Face layout: what is in them, whether they fit together, loading.

Only a model that is named by its hub name is downloaded. No code from a model folder is run, and weights
are read from safetensors only. `model_facts` reads headers, so that a plan costs no memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
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
from trd_ray.hub import download, is_hub_name
from trd_ray.losses.objective import LogitTransform
from trd_ray.testbed.paths import models_path

_TESTBED_PREFIX = "testbed:"
_TESTBED_MODELS = ("student", "teacher")

_INDEX_FILE = "model.safetensors.index.json"
_WEIGHTS_FILE = "model.safetensors"
_HEAD_NAMES = ("lm_head.weight", "embed_out.weight")
_EMBEDDING_NAMES = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "word_embeddings.weight")
_HEADER_LENGTH_BYTES = 8

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


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What a model folder says about its model."""

    path: Path
    architecture: str
    vocab_size: int
    """Rows of the embedding; those beyond the tokenizer are padding."""
    hidden_width: int
    num_layers: int
    context_length: int
    """Positions that the model was made for, in tokens."""
    num_parameters: int
    """A tied output head counts once."""
    num_kv_heads: int
    """Heads of keys and values; fewer than attention heads where those share them."""
    head_dim: int
    """Numbers of one head."""
    num_bytes: int
    """Of the weights, as stored."""


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch format that an option names."""
    return {DType.FLOAT32: torch.float32, DType.BFLOAT16: torch.bfloat16}[dtype]


def resolve_model(name: str) -> Path:
    """The folder of a model that a configuration names.

    Args:
        name: `testbed:student`, `testbed:teacher`, a path, or `owner/name` of a model on the hub, which
            is downloaded unless it is in the local cache.

    Raises:
        ModelError: no such model, or the folder does not hold a model.
    """
    if name.startswith(_TESTBED_PREFIX):
        model = name.removeprefix(_TESTBED_PREFIX)
        if model not in _TESTBED_MODELS:
            raise ModelError(
                describe(
                    "Unknown testbed model",
                    where="model name",
                    got=name,
                    expected=" or ".join(_TESTBED_PREFIX + known for known in _TESTBED_MODELS),
                    remedy="use one of these, or give the path of a model folder",
                )
            )
        path = models_path() / model
    elif is_hub_name(name):
        path = download(name)
    else:
        path = Path(name).expanduser()
    _read_config(path)
    _weight_files(path)
    return path


def model_facts(path: Path) -> ModelFacts:
    """Read config.json and the headers of the weights of a model folder, no weights.

    Raises:
        ModelError: the folder does not hold a model, or its config.json lacks a number.
    """
    config = _read_config(path)
    text_config = _text_config(config)
    shapes = [spec for file in _weight_files(path) for spec in _read_header(file).values()]
    architectures = config.get("architectures")
    hidden_width = _integer(text_config, "hidden_size", path=path)
    num_heads = _integer(text_config, "num_attention_heads", path=path)
    return ModelFacts(
        path=path,
        architecture=str(architectures[0])
        if isinstance(architectures, list) and architectures
        else "unknown",
        vocab_size=_integer(text_config, "vocab_size", path=path),
        hidden_width=hidden_width,
        num_layers=_integer(text_config, "num_hidden_layers", path=path),
        context_length=_integer(text_config, "max_position_embeddings", path=path),
        num_parameters=sum(prod(shape) for shape, _ in shapes),
        # Where the file says nothing, every attention head has its own keys and values.
        num_kv_heads=cast("int", text_config.get("num_key_value_heads") or num_heads),
        head_dim=cast("int", text_config.get("head_dim") or hidden_width // num_heads),
        num_bytes=sum(num_bytes for _, num_bytes in shapes),
    )


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        ModelError: the folder is missing or holds no tokenizer.
    """
    _require_folder(path)
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise _model_error(
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
    _weight_files(path)
    logit_transform(path)
    # A bar a rank would tear the run's own progress line apart.
    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or getattr(head, "bias", None) is not None:
        raise _model_error(path, "Unsupported output head", repr(head), "a linear layer without bias")
    return cast(PreTrainedModel, model)


def load_output_head(path: Path, dtype: torch.dtype) -> Tensor:
    """[V, D] output head of a model folder; reads that one tensor. Tied embeddings serve as the head.

    Raises:
        ModelError: the folder does not hold a model, or no head is found in it.
    """
    config = _read_config(path)
    logit_transform(path)
    names = {name: file for file in _weight_files(path) for name in _read_header(file)}
    heads = [name for name in names if name.endswith(_HEAD_NAMES)]
    embeddings = [name for name in names if name.endswith(_EMBEDDING_NAMES)]
    # Where the configuration says nothing, a head of its own in the file decides.
    tied = _text_config(config).get("tie_word_embeddings", config.get("tie_word_embeddings", False))
    candidates = embeddings + heads if tied else heads + embeddings
    if not candidates:
        raise _model_error(
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
    config = _text_config(_read_config(path))
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
    return _model_error(
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
            raise _model_error(
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


def _text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """The part that describes the language model, in a model that also reads images."""
    nested = config.get("text_config")
    return cast("Mapping[str, object]", nested) if isinstance(nested, dict) else config


def _integer(config: Mapping[str, object], key: str, *, path: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int):
        raise _model_error(
            path / "config.json", "Unsupported model configuration", f"{key} = {value}", "an integer"
        )
    return value


def _require_folder(path: Path) -> None:
    if not path.is_dir():
        got = "a file" if path.exists() else "nothing there"
        raise _model_error(path, "No model folder", got, "a folder in Hugging Face layout")


def _read_config(path: Path) -> dict[str, object]:
    _require_folder(path)
    file = path / "config.json"
    if not file.is_file():
        found = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "an empty folder"
        raise _model_error(path, "No config.json", found, "config.json beside the weights")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _model_error(file, "Unreadable config.json", error, "a JSON object") from error
    if not isinstance(config, dict):
        raise _model_error(file, "Unreadable config.json", type(config).__name__, "a JSON object")
    return config


def _weight_files(path: Path) -> tuple[Path, ...]:
    """The safetensors files of a model folder, each there and not empty."""
    index = path / _INDEX_FILE
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = tuple(path / name for name in sorted(set(weight_map.values())))
    else:
        files = (path / _WEIGHTS_FILE,)
    for file in files:
        if not file.is_file() or file.stat().st_size <= _HEADER_LENGTH_BYTES:
            raise _model_error(
                path, "No weights", f"{file.name} is missing or empty", "weights in safetensors files"
            )
    return files


def _read_header(file: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Name -> (shape, bytes) of each tensor in a safetensors file."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_HEADER_LENGTH_BYTES), "little")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise _model_error(
            file, "Damaged weights", "no safetensors header", "a whole safetensors file"
        ) from error
    return {
        name: (tuple(spec["shape"]), spec["data_offsets"][1] - spec["data_offsets"][0])
        for name, spec in header.items()
        if name != "__metadata__"
    }


def _model_error(where: Path, what: str, got: object, expected: str) -> ModelError:
    return ModelError(
        describe(
            what,
            where=str(where),
            got=got,
            expected=expected,
            remedy="give the path of another model folder, or complete this one",
        )
    )
