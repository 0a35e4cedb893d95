"""Models by their name on the Hugging Face hub: the copy in the local cache, or a download of it.

Only configuration, tokenizer and safetensors files are taken; no code, no pickles. `KNOWN` holds what a
plan needs of the models that the recipes name, so that `--dry-run` works where they are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from trd_ray.errors import ModelError, describe

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownModel:
    """From the config.json that the hub publishes with the model; parameters counted from it."""

    architecture: str
    vocab_size: int
    hidden_width: int
    num_layers: int
    context_length: int
    num_parameters: int
    num_kv_heads: int
    head_dim: int


def _qwen3(
    hidden_width: int, num_layers: int, num_parameters: int, context_length: int = 40960
) -> KnownModel:
    return KnownModel(
        architecture="Qwen3ForCausalLM",
        vocab_size=151936,
        hidden_width=hidden_width,
        num_layers=num_layers,
        context_length=context_length,
        num_parameters=num_parameters,
        num_kv_heads=8,
        head_dim=128,
    )


KNOWN = {
    "Qwen/Qwen3-0.6B": _qwen3(1024, 28, 596_049_920),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 28, 1_720_574_976),
    "Qwen/Qwen3-4B": _qwen3(2560, 36, 4_022_468_096),
    "Qwen/Qwen3-4B-Instruct-2507": _qwen3(2560, 36, 4_022_468_096, context_length=262_144),
    "Qwen/Qwen3-8B": _qwen3(4096, 36, 8_190_735_360),
    "Qwen/Qwen3-32B": _qwen3(5120, 64, 32_762_123_264),
}


def is_hub_name(name: str) -> bool:
    """`owner/name`, and no folder of that path is here."""
    return _NAME.fullmatch(name) is not None and not Path(name).expanduser().exists()


def cached(name: str) -> Path | None:
    """The folder of a model in the local cache; None if it is not there."""
    # Imported where a model is named by its hub name only: it takes as long as all of a plan.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def download(name: str) -> Path:
    """The folder of a model in the local cache, downloaded if it is not there or not whole.

    Raises `ModelError` if the hub cannot be reached, is switched off (HF_HUB_OFFLINE), or has no such model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        raise ModelError(
            describe(
                "the model is neither a folder here nor to be had from the hub",
                where=f"model name {name!r}",
                got=first,
                expected="a model folder in Hugging Face layout, or owner/name of a model on the hub",
                remedy="correct the path; or fetch it where the hub can be reached, give its folder",
            )
        ) from error
