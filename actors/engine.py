"""A vLLM engine as generators and teachers use it: one sample a call, weights updated in between.

`Engine` is a plain class. vLLM runs in child processes of the process that creates it; this one
only exchanges messages with them, so that the actor's event loop stays free. Axis letters:
P prompt tokens, T generated tokens.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import multiprocessing
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from actors.engine_errors import call_failed, call_timed_out
from actors.engine_logprobs import token_logprobs
from actors.engine_options import EngineOptions, SamplingOptions, sampling_params, start_llm
from actors.engine_sleep import change_residence
from actors.environment import set_engine_environment
from actors.weight_transfer import NCCL_BACKEND, WeightEndpoint
from trd_ray.device_turns import Residence
from trd_ray.errors import TrdRayError, WeightSyncError, describe
from trd_ray.types import Completion, IntArray, StopReason
from trd_ray.weights import WeightManifest

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["Engine", "EngineFailedError", "EngineOptions", "SamplingOptions", "WeightUpdate"]

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_RESUME_LIMIT_S = 30.0
"""Limit of the clean-up after a failed update, which needs no other process than the engine's."""
_SHUTDOWN_LIMIT_S = 2.0


class EngineFailedError(TrdRayError, RuntimeError):
    """The engine cannot serve: its process died, or its weights are of no known version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightUpdate:
    """What one update of an engine's weights did."""

    policy_version: int
    paused_s: float
    """Time in which the engine made no tokens."""
    load_s: float
    """Part of it in which weights were received and loaded."""


class Engine:
    """One vLLM engine. All methods but the constructor belong to one event loop."""

    def __init__(self, options: EngineOptions, *, policy_version: int = 0) -> None:
        """Start the engine; takes seconds to minutes.

        Args:
            policy_version: version of the weights in the model folder.

        Raises:
            MissingDependencyError: vLLM is not installed, or is built for another device.
        """
        set_engine_environment(device=options.device, threads=options.threads)
        self._options = options
        self._policy_version = policy_version
        self._version_is_set = False
        self._failure: str | None = None
        self._residence = Residence.AWAKE
        self._update_lock = asyncio.Lock()
        self._in_flight: set[str] = set()
        self._llm: AsyncLLM | None = start_llm(options)
        self._tokenizer = self._llm.get_tokenizer()

    @property
    def vocab_size(self) -> int:
        return int(self._live("vocab_size").model_config.get_vocab_size())

    @property
    def policy_version(self) -> int:
        """Version of the weights that the next token is made with."""
        return self._policy_version

    async def start(self) -> None:
        """Label the weights with their version; the first call of another method does it too."""
        if self._version_is_set:
            return
        self._version_is_set = True
        await self._live("start").update_weight_version(str(self._policy_version))
        if self._options.device == "cpu" and self._options.tensor_parallel_size > 1:
            await self._ask_workers("unlink_shared_memory", (), _RESUME_LIMIT_S)

    async def generate(self, prompt_ids: IntArray, sampling: SamplingOptions, request_id: str) -> Completion:
        """Generate one answer; any number of calls may run at once and are batched.

        The log-probabilities are the model's own: before temperature, top-p and top-k. Tokens and
        log-probabilities come from the engine as they are.

        Args:
            prompt_ids: [P], P + 1 <= `max_model_len`.
            request_id: unique among the requests in flight.

        Returns:
            [T] tokens with T <= `max_tokens`, fewer if `max_model_len` is reached. On `STOP` the
            last of them is the end token.

        Raises:
            EngineFailedError: the engine's process died, or a weight update failed.
            ValueError: the prompt is empty or too long, or a sampling option is out of range.
        """
        return self.completion(await self.run(prompt_ids, sampling_params(sampling), request_id))

    async def run(self, prompt_ids: IntArray, params: SamplingParams, request_id: str) -> RequestOutput:
        """One request in vLLM's own terms. Raises as `generate` does."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        where = f"generate, request {request_id}"
        await self.start()
        self._require_usable(where)
        llm = self._live(where)
        if self._residence is not Residence.AWAKE:
            raise RuntimeError(f"{where}: this engine is {self._residence.value}; it is not its turn")
        self._in_flight.add(request_id)
        final: RequestOutput | None = None
        try:
            prompt = TokensPrompt(prompt_token_ids=prompt_ids.tolist())
            async for output in llm.generate(prompt, params, request_id):
                final = output
        except VLLMClientError as error:
            raise ValueError(f"{where}: {error}") from error
        except (EngineDeadError, EngineGenerateError) as error:
            raise self._failed(where, f"{error!r}") from error
        finally:
            self._in_flight.discard(request_id)
        if final is None or final.outputs[0].finish_reason == StopReason.ABORT.value:
            # Requests in flight are aborted when an update fails: their weights are unknown.
            self._require_usable(where)
        if final is None:
            raise self._failed(where, "no output")
        return final

    def completion(self, final: RequestOutput) -> Completion:
        """The record of what `run` generated."""
        output = final.outputs[0]
        token_ids = np.asarray(output.token_ids, dtype=np.int32)
        # vLLM labels each step's tokens with the version that was set when they were made, and the
        # version changes only while no step runs. So these are exact, not bounds. A request cut
        # by an update is computed anew from its first token on with the new weights, whose
        # log-probabilities are thus those of the new weights after the whole text so far.
        versions = [int(span.version) for span in output.weight_versions or ()]
        return Completion(
            token_ids=token_ids,
            logprobs=token_logprobs(output.logprobs, len(token_ids)),
            text=self._tokenizer.decode(token_ids.tolist(), skip_special_tokens=True),
            stop_reason=StopReason(str(output.finish_reason)),
            policy_version_min=min(versions, default=self._policy_version),
            policy_version_max=max(versions, default=self._policy_version),
        )

    async def reside(self, residence: Residence, *, timeout_s: float) -> None:
        """Hold so much of the devices; without sleep mode, only refuse requests unless awake.

        Raises `ActorTimeoutError` after `timeout_s` seconds.
        """
        await self.start()
        async with self._update_lock:
            if self._options.sleep_mode:
                change = change_residence(self._live("reside"), self._residence, residence)
                await self._limited(change, f"reside({residence.value})", timeout_s)
            self._residence = residence

    async def init_weight_transfer(self, endpoint: WeightEndpoint) -> None:
        """Join the sender's group; leaves an earlier one. Runs while the sender opens.

        Raises:
            ActorTimeoutError: the sender or another generator did not come in time.
            WeightSyncError: the engine cannot join.
        """
        await self.start()
        info = dataclasses.asdict(endpoint)
        timeout_s = info.pop("timeout_s")
        if info.pop("backend") == NCCL_BACKEND:
            info |= {"packed": True, "packed_buffer_size_bytes": info.pop("bucket_bytes")}
        else:
            info["timeout_s"] = timeout_s
        await self._ask_workers("init_weight_transfer", (info,), timeout_s + _RESUME_LIMIT_S)

    async def update_weights(
        self, manifest: WeightManifest, policy_version: int, *, timeout_s: float = 600.0
    ) -> WeightUpdate:
        """Receive the weights that the sender sends at the same time, between two steps.

        Requests in flight are kept and go on with the new weights; what was computed for them is
        dropped, as is the prefix cache. If it fails before a weight was touched, the engine goes
        on as before. If it fails later, the engine's weights are of no version: requests in flight
        and later ones raise `EngineFailedError`, until a later update succeeds.

        Args:
            timeout_s: limit of each wait: for the pause, the loading and the resumption.

        Raises:
            ActorTimeoutError: a wait took longer; names it.
            WeightSyncError: the weights did not arrive whole, or do not fit the model.
        """
        await self.start()
        async with self._update_lock:
            llm = self._live("update_weights")
            start = time.perf_counter()
            touched = finished = False
            try:
                # Clears the caches too: they hold what the old weights computed. This is
                # `pause_generation` without the 20 ms that it sleeps so that callers see outputs in order.
                pause = llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=True)
                await self._limited(pause, "pause_generation", timeout_s)
                touched = True
                loading = time.perf_counter()
                await self._load(manifest, policy_version, timeout_s)
                load_s = time.perf_counter() - loading
                self._policy_version = policy_version
                await self._limited(self._resume_as(policy_version), "resume_generation", timeout_s)
                self._failure = None
                finished = True
            finally:
                if not finished:
                    await self._after_failed_update(policy_version, touched)
        return WeightUpdate(
            policy_version=policy_version, paused_s=time.perf_counter() - start, load_s=load_s
        )

    async def _load(self, manifest: WeightManifest, policy_version: int, timeout_s: float) -> None:
        info: dict[str, object] = {
            "names": [spec.name for spec in manifest.tensors],
            "dtype_names": [spec.dtype for spec in manifest.tensors],
            "shapes": [list(spec.shape) for spec in manifest.tensors],
        }
        if self._options.weight_transfer_backend != NCCL_BACKEND:
            info["policy_version"] = policy_version
        await self._ask_workers("update_weights", (info,), timeout_s)

    async def _resume_as(self, policy_version: int) -> None:
        """Go on with weights of a version, which labels each token from here on."""
        llm = self._live("update_weights")
        # The engine takes its messages in the order in which they are sent: no token is made between the two.
        await asyncio.gather(llm.update_weight_version(str(policy_version)), llm.resume_generation())

    async def _after_failed_update(self, policy_version: int, touched: bool) -> None:
        """Resume an engine whose weights are whole; else end its requests and refuse others."""
        llm = self._live("update_weights")
        what = f"the update to policy version {policy_version} failed"
        if touched:
            self._failure = what + " while weights were loaded"
            logger.error("%s; the engine serves nothing until an update succeeds", self._failure)
            await self._limited(llm.abort(list(self._in_flight)), "abort", _RESUME_LIMIT_S)
        elif self._failure is None:
            self._failure = what + " and generation was not resumed"
            await self._limited(llm.resume_generation(), "resume_generation", _RESUME_LIMIT_S)
            self._failure = None

    async def weight_checksum(self, *, timeout_s: float = 600.0) -> str:
        """Return the checksum of the weights that the engine computes with.

        They are read out of the model, packed layers through their own kernels, under the names
        of the Hugging Face model: equal to `checksum_named` of the sender's tensors in the
        engine's dtype. Runs between two steps; costs a forward pass over about as many tokens
        as the model is wide.

        Raises:
            ActorTimeoutError: it took longer than `timeout_s`.
            WeightSyncError: the weights cannot be read back, or workers disagree.
        """
        await self.start()
        checksums = set(await self._ask_workers("weight_checksum", (), timeout_s))
        if len(checksums) != 1:
            raise WeightSyncError(
                describe(
                    "The workers of an engine hold different weights",
                    where=f"{self._options.name}.weight_checksum, model {self._options.model}",
                    got=sorted(checksums),
                    expected="one checksum",
                    remedy="restart the engine",
                )
            )
        return str(checksums.pop())

    async def check_health(self) -> None:
        """Return if the engine can serve: its process answers between two steps.

        While weights are loaded it has no time to answer, and the update has limits of its own.

        Raises:
            EngineFailedError: it cannot.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        self._require_usable("check_health")
        try:
            await self._live("check_health").check_health()
            if not self._update_lock.locked():
                await self._live("check_health").is_sleeping()
        except EngineDeadError as error:
            raise self._failed("check_health", f"{error!r}") from error

    async def shutdown(self) -> None:
        """Stop the engine's processes and wait until they are gone; safe to call again."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        children = multiprocessing.active_children()
        if llm.output_handler is not None:
            # Else it reports the engine's end as a failure.
            llm.output_handler.cancel()
            await asyncio.wait([llm.output_handler])
        await asyncio.to_thread(llm.shutdown, _SHUTDOWN_LIMIT_S)
        for child in children:
            if child.name.startswith("EngineCore"):
                await asyncio.to_thread(child.join, _SHUTDOWN_LIMIT_S)
        # Its finaliser must not run when the interpreter is half gone; it is part of a cycle.
        del llm
        gc.collect()

    async def _ask_workers(self, name: str, arguments: tuple[object, ...], limit_s: float) -> list[str]:
        """What all workers answer to a method of `WorkerExtension`; the first error is raised."""
        start = time.perf_counter()
        call = self._live(name).collective_rpc(f"trd_{name}", args=arguments)
        answers: list[tuple[str, str]] = await self._limited(call, name, limit_s)
        for _, wrong in answers:
            if wrong:
                elapsed_s = time.perf_counter() - start
                raise call_failed(self._options, name, got=wrong, limit_s=limit_s, elapsed_s=elapsed_s)
        return [answer for answer, _ in answers]

    async def _limited(self, call: Awaitable[_Result], name: str, limit_s: float) -> _Result:
        """Await one call of the engine within its limit, with this project's errors."""
        from vllm.v1.engine.exceptions import EngineDeadError

        start = time.perf_counter()
        try:
            return await asyncio.wait_for(call, limit_s)
        except TimeoutError as error:
            elapsed_s = time.perf_counter() - start
            raise call_timed_out(
                self._options, name, got="no answer", limit_s=limit_s, elapsed_s=elapsed_s
            ) from error
        except EngineDeadError as error:
            raise self._failed(name, f"{error!r}") from error
        except Exception as error:
            # vLLM hands on an error of its engine as a plain Exception with its text; it is raised on.
            if type(error) is not Exception:
                raise
            elapsed_s = time.perf_counter() - start
            raise call_failed(
                self._options, name, got=str(error), limit_s=limit_s, elapsed_s=elapsed_s
            ) from error

    def _live(self, where: str) -> AsyncLLM:
        if self._llm is None:
            raise self._failed(where, "it was shut down")
        return self._llm

    def _require_usable(self, where: str) -> None:
        if self._failure is not None:
            raise self._failed(where, self._failure)

    def _failed(self, where: str, got: str) -> EngineFailedError:
        return EngineFailedError(
            describe(
                "The engine cannot serve",
                where=f"{self._options.name}.{where}, model {self._options.model}",
                got=got,
                expected="a live engine with weights of one version",
                remedy="retry the request elsewhere; push the weights again or restart the engine",
            )
        )
