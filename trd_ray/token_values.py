"""What the learner found at each token that it trained on: kept beside the trajectories, for people.

Axis letters: N loss tokens of a batch or of a rank's part of it, T response tokens of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HalfArray = npt.NDArray[np.float16]
"""Off by at most `2**-11` of a value: for the eye, not for a loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenValues:
    """Of tokens in the order of a batch (rank, micro-batch, sample, token), or of one sample's."""

    divergence: HalfArray
    """[N] each token's value in the objective, in nats: its divergence from the teacher, clipped as the
    method says, with what a gate or a reward adds."""
    student_logprobs: HalfArray
    """[N] of the tokens themselves, under the weights before the step."""

    def __post_init__(self) -> None:
        if self.divergence.shape != self.student_logprobs.shape or self.divergence.ndim != 1:
            raise ValueError(
                f"TokenValues: divergence has shape {self.divergence.shape}, student_logprobs "
                f"{self.student_logprobs.shape}; expected one and the same [N]"
            )

    def split(self, lengths: Sequence[int]) -> tuple[TokenValues, ...]:
        """Cut into parts of these lengths. Raises `ValueError` if they do not add up to N."""
        if sum(lengths) != len(self.divergence):
            raise ValueError(
                f"TokenValues: {len(self.divergence)} tokens for samples of {sum(lengths)}; expected one each"
            )
        ends = np.cumsum(lengths)[:-1]
        return tuple(
            TokenValues(divergence=divergence, student_logprobs=logprobs)
            for divergence, logprobs in zip(
                np.split(self.divergence, ends), np.split(self.student_logprobs, ends), strict=True
            )
        )


def join_ranks(parts: Sequence[TokenValues | None]) -> TokenValues | None:
    """Those of all ranks, in their order; None if none were recorded."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    return TokenValues(
        divergence=np.concatenate([part.divergence for part in known]),
        student_logprobs=np.concatenate([part.student_logprobs for part in known]),
    )
