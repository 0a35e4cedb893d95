"""What a layer computes with after a push is its own, also where nothing packs it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from actors.weight_direct_load import _PartsOfLayer


class Keeps:
    """A method that leaves a layer's weight as it is, as vLLM's plain kernel does."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        pass


class Empties:
    """One that packs it."""

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)


def loaded(method: object, memory: torch.Tensor) -> Any:
    layer: Any = torch.nn.Module()
    layer.quant_method = method
    parts = _PartsOfLayer(layer, ("q", "k"))
    parts.take("q.weight", memory[:8].view(4, 2))
    parts.take("k.weight", memory[8:].view(2, 2))
    return layer


def test_a_weight_that_is_not_packed_does_not_lie_in_the_memory_that_it_came_through() -> None:
    memory = torch.arange(12.0)
    layer = loaded(Keeps(), memory)
    memory.fill_(-1)
    assert torch.equal(layer.weight, torch.arange(12.0).view(6, 2))


def test_a_weight_that_was_packed_stays_empty() -> None:
    assert loaded(Empties(), torch.arange(12.0)).weight.numel() == 0
