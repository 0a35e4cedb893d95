"""Collects each token's values where they are computed, without a wait for the device.

Axis letters: N loss tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trd_ray.token_values import TokenValues


class TokenTape:
    """Collects the values of a step's micro-batches where they are computed."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, divergence: Tensor, student_logprobs: Tensor) -> None:
        """[N] each. They stay on their device until the end of the step: no wait for it here."""
        self._parts.append(torch.stack([divergence.detach(), student_logprobs.detach()]).half())

    def take(self) -> TokenValues:
        """All that was added since the last call."""
        parts, self._parts = self._parts, []
        both = torch.cat(parts, dim=1).cpu().numpy() if parts else np.zeros((2, 0), dtype=np.float16)
        return TokenValues(divergence=both[0], student_logprobs=both[1])
