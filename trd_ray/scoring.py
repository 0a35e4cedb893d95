"""The scoring side of the teacher: final hidden states along a trajectory, in batches.

The states are those after the final norm, so that `hidden @ head.T` gives the teacher's exact
logits (`models.load_student` refuses a model for which it would not). Axis letters: T response
tokens, Dt teacher width.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from trd_ray.batching import encode_hidden, pack_lengths, pad_right
from trd_ray.choices import DType
from trd_ray.micro_batcher import MicroBatcher
from trd_ray.models import load_student, torch_dtype
from trd_ray.types import IntArray, TeacherHidden


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """One trajectory to be scored."""

    context_ids: IntArray
    """[P] tokens before the response, at least one."""
    token_ids: IntArray
    """[T] response tokens, at least one."""


class HiddenScorer:
    """Computes the hidden states that predict each response token. Not thread-safe."""

    def __init__(self, model: PreTrainedModel, *, hidden_dtype: DType, batch_tokens: int) -> None:
        """
        Args:
            model: a causal language model; its output head is not used.
            hidden_dtype: format in which the states are returned.
            batch_tokens: most tokens computed at once, padding included.
        """
        # Padding is never looked at, so the id need not be the tokenizer's.
        self._pad_id = 0
        self._body = model.get_decoder().eval()
        self._device = model.device
        self._hidden_dtype = torch_dtype(hidden_dtype)
        self._batch_tokens = batch_tokens

    @classmethod
    def load(
        cls, path: Path, *, dtype: DType, hidden_dtype: DType, batch_tokens: int, device: str = "cpu"
    ) -> HiddenScorer:
        """Load the model of a folder in `dtype`.

        Raises:
            ModelError: the folder does not hold a usable model.
        """
        model = load_student(path, torch_dtype(dtype)).to(torch.device(device))  # type: ignore[arg-type]
        return cls(model, hidden_dtype=hidden_dtype, batch_tokens=batch_tokens)

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherHidden]:
        """One record a request, in their order.

        Raises:
            ValueError: a request without context or without tokens.
        """
        for index, request in enumerate(requests):
            if len(request.context_ids) == 0 or len(request.token_ids) == 0:
                raise ValueError(
                    f"score: request {index} has {len(request.context_ids)} context and "
                    f"{len(request.token_ids)} response tokens; expected at least one of each"
                )
        lengths = [len(request.context_ids) + len(request.token_ids) for request in requests]
        scored: dict[int, TeacherHidden] = {}
        for group in pack_lengths(lengths, budget=self._batch_tokens):
            hidden = self._forward([requests[index] for index in group])
            for index, states in zip(group, hidden, strict=True):
                scored[index] = encode_hidden(states)
        return [scored[index] for index in range(len(requests))]

    def move(self, device: str) -> None:
        """Put the model on another device; not while it scores."""
        self._device = torch.device(device)
        self._body.to(self._device)
        if torch.cuda.is_available():
            # Freed memory would stay with this process's allocator.
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _forward(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        """[T, Dt] of each request, computed together with padding on the right."""
        # The last token predicts nothing that is scored, so it is not fed in.
        inputs = [np.concatenate([request.context_ids, request.token_ids[:-1]]) for request in requests]
        input_ids, attention_mask = pad_right(inputs, pad_id=self._pad_id)
        output = self._body(
            input_ids=input_ids.to(self._device),
            attention_mask=attention_mask.to(self._device),
            use_cache=False,
        )
        hidden = output.last_hidden_state.to(self._hidden_dtype).cpu()
        # Copies, so that one record does not keep the whole padded batch in memory.
        return [
            hidden[row, len(request.context_ids) - 1 : len(inputs[row])].clone()
            for row, request in enumerate(requests)
        ]


class AsyncScorer:
    """Scores single trajectories that are asked for at the same time together, in one thread.

    A call is waiting, computing or done; those waiting are bounded by what their callers have in
    flight, and keep their order of arrival.
    """

    def __init__(self, scorer: HiddenScorer, *, max_batch: int = 64) -> None:
        """
        Args:
            max_batch: most trajectories taken at once; the scorer splits them by tokens.
        """
        self._scorer = scorer
        self._batcher = MicroBatcher(scorer.score, max_batch=max_batch)

    async def move(self, device: str) -> None:
        """Put the model on another device; not while a call waits."""
        await asyncio.to_thread(self._scorer.move, device)

    async def score(self, context_ids: IntArray, token_ids: IntArray) -> TeacherHidden:
        """Final hidden states that predict each of `token_ids` [T] after `context_ids` [P] -> [T, Dt].

        Raises:
            ValueError: no context or no tokens.
        """
        return await self._batcher.submit(ScoreRequest(context_ids=context_ids, token_ids=token_ids))
