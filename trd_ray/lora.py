"""Low-rank adapters (LoRA) around a student, and its weights as the outside sees them.

Hu et al. 2021 (arXiv 2106.09685), equation 3: a linear layer computes W x + (alpha / rank) B A x, with
W frozen and B zero at first. The adapters are peft's; what leaves the learner is the merged weight
W + (alpha / rank) B A under the layer's own name, put together on the fly. W itself never changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from trd_ray.config import LoraConfig
from trd_ray.errors import CheckpointError, ConfigError, describe

if TYPE_CHECKING:
    from peft import PeftModel

_ADAPTER = "default"
_BASE = ".base_layer."
_IN, _OUT = f".lora_A.{_ADAPTER}.", f".lora_B.{_ADAPTER}."
_WEIGHTS_FILE = "adapter_model.safetensors"
_ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class NamedWeight:
    """One weight of a model under its Hugging Face name, with the adapter that belongs to it."""

    name: str
    base: nn.Parameter
    """[out, in], or any shape without an adapter."""
    adapter: tuple[nn.Parameter, nn.Parameter] | None = None
    """A [rank, in] and B [out, rank]."""
    scaling: float = 1.0
    """alpha / rank."""

    @property
    def parts(self) -> tuple[nn.Parameter, ...]:
        """What must be whole before `merged` is called."""
        return (self.base, *(self.adapter or ()))

    def merged(self) -> Tensor:
        """The whole weight in the base's format; computed in float32. Without an adapter, no copy."""
        if self.adapter is None:
            return self.base.detach()
        first, second = (part.detach().float() for part in self.adapter)
        merged = self.base.detach().float() + (second @ first) * self.scaling
        return merged.to(self.base.dtype)


class Adapters:
    """The adapters of a model. Not a module: the model itself holds their parameters."""

    def __init__(self, peft_model: PeftModel) -> None:
        self._peft_model = peft_model

    @property
    def model(self) -> PreTrainedModel:
        """The model with the adapters in it."""
        return cast(PreTrainedModel, self._peft_model.get_base_model())

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within, the model computes what it did before it had adapters."""
        with self._peft_model.disable_adapter():
            yield

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name in the model, parameter) of each adapter matrix."""
        for name, parameter in self.model.named_parameters():
            if _IN in name or _OUT in name:
                yield name, parameter

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write `weights`, named as by `named`, in peft's layout: `PeftModel.from_pretrained` reads it."""
        folder.mkdir(parents=True, exist_ok=True)
        stored = {f"base_model.model.{_stored_name(name)}": tensor for name, tensor in weights.items()}
        save_file(stored, folder / _WEIGHTS_FILE, metadata={"format": "pt"})
        self._peft_model.peft_config[_ADAPTER].save_pretrained(str(folder))

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Restore what `save` wrote into parameters that are whole.

        Raises:
            CheckpointError: other adapters than these.
        """
        file = folder / _WEIGHTS_FILE
        stored = load_file(file) if file.is_file() else {}
        wanted = {f"base_model.model.{_stored_name(name)}": parameter for name, parameter in self.named()}
        if stored.keys() != wanted.keys():
            raise CheckpointError(
                describe(
                    "The checkpoint holds other adapters",
                    where=str(file),
                    got=f"{len(stored)} matrices, {len(stored.keys() & wanted.keys())} of them known",
                    expected=f"the {len(wanted)} that learner.lora asks for",
                    remedy="resume with the learner.lora of that run, or from another checkpoint",
                )
            )
        for name, parameter in wanted.items():
            parameter.copy_(stored[name])


def add_adapters(model: PreTrainedModel, config: LoraConfig, *, base_model: Path) -> Adapters:
    """Freeze `model` and put adapters of `config.rank` into its linear layers; changes it in place.

    The adapters are float32 also where the model is bfloat16: an update is often smaller than half
    of bfloat16's spacing, and would be lost.

    Args:
        base_model: the model's folder, noted in a saved adapter.

    Raises:
        ConfigError: `config.target` names no linear layer, or the output head or an embedding.
    """
    # Imported here: peft may import DeepSpeed, which must see its environment first.
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    target = config.target.strip()
    names = [name.strip() for name in target.split(",")]
    wanted = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_ALL_LINEAR if target == _ALL_LINEAR else names,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        peft_model = get_peft_model(model, wanted)
    except ValueError as error:
        raise _target_error(target, error) from error
    peft_model.peft_config[_ADAPTER].base_model_name_or_path = str(base_model)
    adapters = Adapters(cast("PeftModel", peft_model))
    _require_linear_targets(adapters, target)
    return adapters


def named_weights(model: nn.Module) -> list[NamedWeight]:
    """Each weight of a model with or without adapters, in the order of the plain model's own.

    A tied head comes once, as the embedding.
    """
    parameters = dict(model.named_parameters())
    weights = []
    for name, parameter in parameters.items():
        if _IN in name or _OUT in name:
            continue
        plain = name.replace(_BASE, ".")
        first = parameters.get(name.replace(_BASE, _IN)) if _BASE in name else None
        if first is None:
            weights.append(NamedWeight(name=plain, base=parameter))
            continue
        layer = model.get_submodule(name.partition(_BASE)[0])
        scaling = float(cast("dict[str, float]", layer.scaling)[_ADAPTER])
        second = parameters[name.replace(_BASE, _OUT)]
        weights.append(NamedWeight(name=plain, base=parameter, adapter=(first, second), scaling=scaling))
    return weights


def _stored_name(name: str) -> str:
    return name.replace(f".{_ADAPTER}.", ".")


def _require_linear_targets(adapters: Adapters, target: str) -> None:
    head = adapters.model.get_output_embeddings()
    others = [
        name
        for name, parameter in adapters.model.named_parameters()
        if parameter.requires_grad and _IN not in name and _OUT not in name
    ]
    if not isinstance(head, nn.Linear) or others:
        raise _target_error(target, others[0] if others else "the output head")


def _target_error(target: str, got: object) -> ConfigError:
    return ConfigError(
        describe(
            "The adapters do not fit the student",
            where="learner.lora.target",
            got=f"{target}: {got}",
            expected="names of linear layers other than the output head",
            remedy="set learner.lora.target=all-linear",
        )
    )
