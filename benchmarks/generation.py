"""Tokens per second of the generator actor against the same vLLM engine alone, in turns in one run.

Both get the same batch: one step's prompts of a configuration, with the same seeds and sampling. The
engine alone is vLLM's offline `LLM.generate` in this process; the generator is reached over Ray, one
call a sample. Usage: python -m benchmarks.generation CONFIG [key=value ...] [--repeats 15]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from actors.environment import set_engine_environment
from launch.preflight import check_run
from launch.wiring_ray import ray_generators
from trd_ray.assembly import RunInputs
from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.interfaces import Generator
from trd_ray.types import Prompt


def step_prompts(config: TrdConfig, inputs: RunInputs) -> list[Prompt]:
    """The prompts of one step."""
    return [
        Prompt(
            problem=problem, epoch=epoch, sample_index=0, token_ids=inputs.prompts.student(problem), seed=i
        )
        for i, (problem, epoch) in enumerate(inputs.stream.take(config.pipeline.trajectories_per_step))
    ]


async def over_ray(generator: Generator, prompts: list[Prompt], config: TrdConfig) -> float:
    """Tokens per second, from the first call to the last answer."""
    start = time.perf_counter()
    done = await asyncio.gather(*(generator.generate(p, config.generator.sampling) for p in prompts))
    return sum(len(c.token_ids) for c in done) / (time.perf_counter() - start)


class EngineAlone:
    """The same engine settings without actors."""

    def __init__(self, config: TrdConfig, inputs: RunInputs) -> None:
        engine = config.generator.engine
        set_engine_environment(device=engine.device.value, threads=engine.threads)
        import torch
        from vllm import LLM

        torch.set_num_threads(engine.threads)
        self._sampling = config.generator.sampling
        self._llm = LLM(
            model=str(inputs.student_path),
            dtype=engine.dtype.value,
            max_model_len=engine.max_model_len,
            max_num_seqs=engine.max_num_seqs,
            enforce_eager=engine.enforce_eager,
            enable_prefix_caching=engine.prefix_caching,
            kv_cache_memory_bytes=int(engine.kv_cache_gib * 2**30),
            disable_log_stats=True,
        )

    def tokens_per_s(self, prompts: list[Prompt]) -> float:
        from vllm import SamplingParams

        sampling = self._sampling
        params = [
            SamplingParams(
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=prompt.seed,
                logprobs=0,
                detokenize=False,
            )
            for prompt in prompts
        ]
        inputs = [{"prompt_token_ids": prompt.token_ids.tolist()} for prompt in prompts]
        start = time.perf_counter()
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return sum(len(o.outputs[0].token_ids) for o in outputs) / (time.perf_counter() - start)


async def measure(config: TrdConfig, inputs: RunInputs, *, repeats: int) -> None:
    prompts = step_prompts(config, inputs)
    alone = EngineAlone(config, inputs)
    ratios, ours, theirs = [], [], []
    async with ray_generators(config, inputs) as generator:
        for repeat in range(repeats + 2):
            a, b = await over_ray(generator, prompts, config), alone.tokens_per_s(prompts)
            if repeat >= 2:  # the first rounds warm both up
                ours.append(a)
                theirs.append(b)
                ratios.append(a / b)
    for name, values in (
        ("generator actor, tokens/s", ours),
        ("engine alone, tokens/s", theirs),
        ("ratio", ratios),
    ):
        print(
            f"{name:26} median {statistics.median(values):.2f}  min {min(values):.2f}  max {max(values):.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)
    asyncio.run(measure(config, check_run(config, no_ray=False), repeats=arguments.repeats))


if __name__ == "__main__":
    main()
