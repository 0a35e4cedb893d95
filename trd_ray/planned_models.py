"""What a plan knows of a model that is not on this machine."""

from __future__ import annotations

from pathlib import Path

from trd_ray.errors import ModelError, describe
from trd_ray.hub import KNOWN, cached, is_hub_name
from trd_ray.model_files import ModelFacts, model_facts, resolve_model

_BFLOAT16_BYTES = 2


def missing_model(name: str) -> bool:
    """The model is named by its hub name, and no copy of it is here."""
    return is_hub_name(name) and cached(name) is None


def planned_facts(name: str) -> ModelFacts:
    """Facts of a model that is here, or the published figures of one that is not; nothing is downloaded.

    Raises `ModelError` for a model that is neither here nor among those whose figures are known.
    """
    if not missing_model(name):
        return model_facts(resolve_model(name))
    if name not in KNOWN:
        raise ModelError(
            describe(
                "the model is not on this machine, and a plan does not download it",
                where=f"model name {name!r}",
                got="no folder of that path, and no copy in the hub's local cache",
                expected=f"a model folder, a downloaded model, or one of {', '.join(KNOWN)}",
                remedy="correct the path, or download the model first",
            )
        )
    known = KNOWN[name]
    return ModelFacts(
        path=Path(name),
        architecture=known.architecture,
        vocab_size=known.vocab_size,
        hidden_width=known.hidden_width,
        num_layers=known.num_layers,
        context_length=known.context_length,
        num_parameters=known.num_parameters,
        num_kv_heads=known.num_kv_heads,
        head_dim=known.head_dim,
        num_bytes=known.num_parameters * _BFLOAT16_BYTES,
    )
