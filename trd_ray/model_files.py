"""What the files of a model folder say, read without torch and transformers.

Only a model that is named by its hub name is downloaded. Nothing but config.json and the headers of the
weights is read here, so that a plan costs no memory and no time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import cast

from trd_ray.errors import ModelError, describe
from trd_ray.hub import download, is_hub_name
from trd_ray.paths import user_path
from trd_ray.testbed.paths import models_path

_TESTBED_PREFIX = "testbed:"
_TESTBED_MODELS = ("student", "teacher")

_INDEX_FILE = "model.safetensors.index.json"
_WEIGHTS_FILE = "model.safetensors"
_HEADER_LENGTH_BYTES = 8


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
        path = user_path(name, where="model name")
    require_model(path)
    return path


def require_model(path: Path) -> None:
    """Raise `ModelError` if the folder holds no model."""
    read_config(path)
    weight_files(path)


def model_facts(path: Path) -> ModelFacts:
    """Read config.json and the headers of the weights of a model folder, no weights.

    Raises:
        ModelError: the folder does not hold a model, or its config.json lacks a number.
    """
    config = read_config(path)
    language = text_config(config)
    shapes = [spec for file in weight_files(path) for spec in read_header(file).values()]
    architectures = config.get("architectures")
    hidden_width = _integer(language, "hidden_size", path=path)
    num_heads = _integer(language, "num_attention_heads", path=path)
    return ModelFacts(
        path=path,
        architecture=str(architectures[0])
        if isinstance(architectures, list) and architectures
        else "unknown",
        vocab_size=_integer(language, "vocab_size", path=path),
        hidden_width=hidden_width,
        num_layers=_integer(language, "num_hidden_layers", path=path),
        context_length=_integer(language, "max_position_embeddings", path=path),
        num_parameters=sum(prod(shape) for shape, _ in shapes),
        # Where the file says nothing, every attention head has its own keys and values.
        num_kv_heads=cast("int", language.get("num_key_value_heads") or num_heads),
        head_dim=cast("int", language.get("head_dim") or hidden_width // num_heads),
        num_bytes=sum(num_bytes for _, num_bytes in shapes),
    )


def text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """The part that describes the language model, in a model that also reads images."""
    nested = config.get("text_config")
    return cast("Mapping[str, object]", nested) if isinstance(nested, dict) else config


def _integer(config: Mapping[str, object], key: str, *, path: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int):
        raise model_error(
            path / "config.json", "Unsupported model configuration", f"{key} = {value}", "an integer"
        )
    return value


def require_folder(path: Path) -> None:
    """Raise `ModelError` if there is no folder."""
    if not path.is_dir():
        got = "a file" if path.exists() else "nothing there"
        raise model_error(path, "No model folder", got, "a folder in Hugging Face layout")


def read_config(path: Path) -> dict[str, object]:
    """config.json of a model folder. Raises `ModelError` if it is missing or broken."""
    require_folder(path)
    file = path / "config.json"
    if not file.is_file():
        found = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "an empty folder"
        raise model_error(path, "No config.json", found, "config.json beside the weights")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise model_error(file, "Unreadable config.json", error, "a JSON object") from error
    if not isinstance(config, dict):
        raise model_error(file, "Unreadable config.json", type(config).__name__, "a JSON object")
    return config


def weight_files(path: Path) -> tuple[Path, ...]:
    """The safetensors files of a model folder, each there and not empty."""
    index = path / _INDEX_FILE
    if index.is_file():
        files = tuple(path / name for name in _files_of_index(index))
    else:
        files = (path / _WEIGHTS_FILE,)
    for file in files:
        if not file.is_file() or file.stat().st_size <= _HEADER_LENGTH_BYTES:
            raise model_error(
                path, "No weights", f"{file.name} is missing or empty", "weights in safetensors files"
            )
    return files


def _files_of_index(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise model_error(
            index,
            "Damaged weights",
            f"{type(error).__name__}: {error}",
            "`weight_map`: tensor names and files",
        ) from error


def read_header(file: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Name -> (shape, bytes) of each tensor in a safetensors file."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_HEADER_LENGTH_BYTES), "little")
        # A file that is none of these says any number, which must not be asked of the memory.
        raw = stream.read(min(length, file.stat().st_size))
    try:
        return {
            name: (tuple(spec["shape"]), spec["data_offsets"][1] - spec["data_offsets"][0])
            for name, spec in json.loads(raw).items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise model_error(
            file, "Damaged weights", "no safetensors header", "a whole safetensors file"
        ) from error


def model_error(where: Path, what: str, got: object, expected: str) -> ModelError:
    """A model folder cannot be used."""
    return ModelError(
        describe(
            what,
            where=str(where),
            got=got,
            expected=expected,
            remedy="give the path of another model folder, or complete this one",
        )
    )
