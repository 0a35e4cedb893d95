"""Log-probabilities from vLLM's messages to flat arrays, with no Python object an entry.

vLLM's engine process sends, for each step and request, arrays [1, K + 1] of token ids and
log-probabilities: first the sampled (or prompt) token, then the K most likely ones in falling order,
among which the first may occur again. Its front end turns each number into a Python object: with
K = 64 that costs more than the forward pass of a small model. Here the arrays are kept as they come.
Axis letters: P prompt tokens, T positions, K most likely tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trd_ray.types import FloatArray, TopKTargets

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
    from vllm.v1.engine.async_llm import AsyncLLM


@dataclass(kw_only=True, slots=True)
class LogprobArrays:
    """The rows of one request, in order of position."""

    num_logprobs: int
    """K. Rows of a step have more columns if another request of it asked for more."""
    token_ids: list[npt.NDArray[Any]] = field(default_factory=list)
    """Each [1 or more, K + 1]."""
    logprobs: list[npt.NDArray[Any]] = field(default_factory=list)

    def add(self, token_ids: npt.NDArray[Any], logprobs: npt.NDArray[Any]) -> None:
        # Copies: the rows are views of an array that holds the whole batch.
        self.token_ids.append(token_ids[:, : self.num_logprobs + 1].copy())
        self.logprobs.append(logprobs[:, : self.num_logprobs + 1].copy())

    def stack(self) -> tuple[npt.NDArray[Any], FloatArray]:
        """Token ids and log-probabilities of all positions, [T, K + 1]; column 0 is the token's own."""
        if not self.logprobs:
            shape = (0, self.num_logprobs + 1)
            return np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32)
        return np.concatenate(self.token_ids), np.concatenate(self.logprobs).astype(np.float32, copy=False)


class ArrayLogprobsProcessor:
    """Stands in for vLLM's `LogprobsProcessor` of one request that is answered in one message."""

    def __init__(self, *, num_logprobs: int | None, num_prompt_logprobs: int | None) -> None:
        self.logprobs = None if num_logprobs is None else LogprobArrays(num_logprobs=num_logprobs)
        self.prompt_logprobs = (
            None if num_prompt_logprobs is None else LogprobArrays(num_logprobs=num_prompt_logprobs)
        )
        self.cumulative_logprob: float | None = None
        self.prompt_token_id_logprobs: None = None

    def update_from_output(self, output: EngineCoreOutput) -> None:
        if output.new_logprobs is not None and self.logprobs is not None:
            self.logprobs.add(output.new_logprobs.logprob_token_ids, output.new_logprobs.logprobs)
        tensors = output.new_prompt_logprobs_tensors
        if tensors is not None and self.prompt_logprobs is not None:
            self.prompt_logprobs.add(tensors.logprob_token_ids.numpy(), tensors.logprobs.numpy())


def collect_arrays(llm: AsyncLLM) -> AsyncLLM:
    """Make an engine's outputs carry `LogprobArrays` for flat logprobs, not lists of numbers; returns it."""
    processor: Any = llm.output_processor
    add_request = processor.add_request

    def add(request: EngineCoreRequest, *args: object, **kwargs: object) -> None:
        add_request(request, *args, **kwargs)
        params = request.sampling_params
        if params is not None and params.flat_logprobs:
            # No output of the request can be there: it is sent to the engine after this call.
            processor.request_states[request.request_id].logprobs_processor = ArrayLogprobsProcessor(
                num_logprobs=params.num_logprobs, num_prompt_logprobs=params.prompt_logprobs
            )

    processor.add_request = add
    return llm


def token_logprobs(arrays: object, num_tokens: int) -> FloatArray:
    """The [T] log-probability of each generated token."""
    return np.ascontiguousarray(_rows(arrays, num_tokens)[1][:, 0])


def topk_targets(arrays: object, num_tokens: int) -> TopKTargets:
    """Targets of the last `num_tokens` positions: of generated tokens, or of a prompt's last ones.

    Log-probabilities of the K are rounded to float16, which halves what crosses to the learner.
    """
    token_ids, logprobs = _rows(arrays, num_tokens)
    return TopKTargets(
        topk_ids=token_ids[:, 1:].astype(np.int32),
        topk_logprobs=logprobs[:, 1:].astype(np.float16),
        token_logprobs=np.ascontiguousarray(logprobs[:, 0]),
    )


def _rows(arrays: object, num_tokens: int) -> tuple[npt.NDArray[Any], FloatArray]:
    if not isinstance(arrays, LogprobArrays):
        raise ValueError(f"vLLM returned {type(arrays).__name__} for log-probabilities; expected arrays")
    token_ids, logprobs = arrays.stack()
    if len(logprobs) < num_tokens:
        raise ValueError(f"vLLM returned {len(logprobs)} rows for {num_tokens} tokens; expected one a token")
    return token_ids[len(token_ids) - num_tokens :], logprobs[len(logprobs) - num_tokens :]
