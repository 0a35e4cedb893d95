"""Loading a push into an unquantised vLLM model on one CPU worker without vLLM's loaders.

vLLM's layerwise reload costs about 0.4 ms of Python for each tensor, and copies each: more than the
transfer itself for small models. Here each tensor goes to its layer by its name, and the layer's own
`process_weights_after_loading` packs it. Which layers, parts and shapes there are is read off the
model once; whatever does not match this in all points is left to vLLM's reload.
Axis letters: N outputs, K inputs, V vocabulary, D hidden width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.platforms import current_platform

from actors.weight_readback import linear_parts
from trd_ray.weights import WeightManifest

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = logging.getLogger(__name__)

_Take = Callable[[torch.Tensor], object]
"""Loads one tensor, which is valid during the push only: what a layer computes with must not lie in it."""


class NotUnderstoodError(ValueError):
    """A model has a part that vLLM's own reload must load."""


@dataclass(frozen=True)
class _Slot:
    """Where one tensor of a push goes."""

    shape: tuple[int, ...]
    take: _Take


@dataclass
class _PartsOfLayer:
    """The parts of one linear layer as they arrive, in the order of its rows."""

    layer: LinearBase
    names: tuple[str, ...]
    arrived: dict[str, torch.Tensor] = field(default_factory=dict)

    def take(self, name: str, tensor: torch.Tensor) -> None:
        self.arrived[name] = tensor
        biases = [f"{part}.bias" for part in self.names] if _bias(self.layer) is not None else []
        weights = [f"{part}.weight" for part in self.names]
        if len(self.arrived) < len(weights) + len(biases):
            return
        parts, self.arrived = self.arrived, {}
        if biases:
            dtype = parts[weights[0]].dtype
            # Its own memory: the packed kernel reads the bias where it lies.
            _bias(self.layer).data = torch.cat([parts[bias] for bias in biases]).to(dtype)
        weight_NK = _joined([parts[weight] for weight in weights])
        self.layer.weight = torch.nn.Parameter(weight_NK, requires_grad=False)
        cast("Any", self.layer.quant_method).process_weights_after_loading(self.layer)
        if self.layer.weight.numel():  # not packed: the layer computes with the rows themselves
            self.layer.weight.data = self.layer.weight.data.clone()


class DirectLoader:
    """What a model needs of a push, by name."""

    def __init__(self, model: torch.nn.Module) -> None:
        """
        Raises:
            NotUnderstoodError: a part of the model is of a kind that is not known here.
        """
        self._model = model
        self._slots: dict[str, _Slot] = {}
        self._layers: list[_PartsOfLayer] = []
        self._sharing: dict[int, list[VocabParallelEmbedding]] = {}
        for path, module in model.named_modules():
            if isinstance(module, LinearBase):
                self._add_linear(path, module)
            elif isinstance(module, VocabParallelEmbedding):
                self._add_embedding(path, module)
            else:
                self._add_plain(path, module)

    @classmethod
    def of(cls, model: torch.nn.Module, config: VllmConfig) -> DirectLoader | None:
        """Return the loader of a model; None if vLLM's reload must load it."""
        # Compiled code may hold the kernels that a load replaces.
        eager = config.model_config.enforce_eager
        if config.parallel_config.world_size != 1 or config.quant_config is not None or not eager:
            return None
        if current_platform.is_zen_cpu():  # its kernels may compute with the rows that they are given
            return None
        try:
            return cls(model)
        except NotUnderstoodError as error:
            logger.info("weights are loaded by vLLM's own reload: %s", error)
            return None

    def fits(self, manifest: WeightManifest, dtype: torch.dtype) -> bool:
        """Whether a push holds exactly the tensors that the model needs, in its own format."""
        shapes = {name: slot.shape for name, slot in self._slots.items()}
        return shapes == {spec.name: spec.shape for spec in manifest.tensors} and all(
            spec.torch_dtype == dtype for spec in manifest.tensors
        )

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load each tensor as it comes; returns the names of all of them."""
        for layer in self._layers:
            layer.arrived.clear()  # of a push that broke off
        loaded = set()
        for name, tensor in tensors:
            self._slots[name].take(tensor)
            loaded.add(name)
        return loaded

    def _add_linear(self, path: str, layer: LinearBase) -> None:
        if type(layer.quant_method) is not UnquantizedLinearMethod:
            raise NotUnderstoodError(f"{path} has {layer.quant_method}")
        parts = linear_parts(self._model, path, layer)
        whole = _PartsOfLayer(layer, tuple(name for name, _ in parts))
        self._layers.append(whole)
        width = int(cast("Any", layer).input_size)
        for name, size in parts:
            self._slots[f"{name}.weight"] = _Slot((size, width), partial(whole.take, f"{name}.weight"))
            if _bias(layer) is not None:
                self._slots[f"{name}.bias"] = _Slot((size,), partial(whole.take, f"{name}.bias"))

    def _add_embedding(self, path: str, module: VocabParallelEmbedding) -> None:
        if type(module.quant_method) is not UnquantizedEmbeddingMethod or _bias(module) is not None:
            raise NotUnderstoodError(f"{path} has a bias, or {module.quant_method}")
        # A tied output head is a module of its own with the same rows, and a packed copy of them.
        sharing = self._sharing.setdefault(id(module.weight), [])
        sharing.append(module)
        if len(sharing) > 1:
            return
        weight = cast("torch.Tensor", module.weight)

        def take(tensor_VD: torch.Tensor) -> None:
            weight.data[: module.org_vocab_size].copy_(tensor_VD)
            for packed in sharing:
                cast("Any", packed.quant_method).process_weights_after_loading(packed)

        self._slots[f"{path}.weight"] = _Slot((module.org_vocab_size, weight.shape[1]), take)

    def _add_plain(self, path: str, module: torch.nn.Module) -> None:
        if hasattr(module, "process_weights_after_loading") and not isinstance(module, Attention):
            raise NotUnderstoodError(f"{path} is a {type(module).__name__}")
        for name, parameter in module.named_parameters(recurse=False):
            if hasattr(parameter, "weight_loader"):
                raise NotUnderstoodError(f"{path}.{name} has a loader of its own")
            self._slots[f"{path}.{name}"] = _Slot(tuple(parameter.shape), parameter.data.copy_)


def _bias(layer: torch.nn.Module) -> Any:  # noqa: ANN401 - torch types a module's attributes as modules
    return getattr(layer, "bias", None)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return tensors of shape [N_i, K] as one [N, K]; without a copy where they lie in a row."""
    first = parts[0]
    end = first.data_ptr()
    storage = first.untyped_storage().data_ptr()
    for part in parts:
        if part.data_ptr() != end or part.untyped_storage().data_ptr() != storage:
            return torch.cat(parts)
        end += part.numel() * part.element_size()
    return first.as_strided((sum(len(part) for part in parts), first.shape[1]), first.stride())
