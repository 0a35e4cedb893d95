"""What the teacher's distributions cost beside the refinement, and what they weigh on the wire.

In one run, in turns: refinements of one step's rollouts alone; with the logprobs taken along (fused);
and followed by a pass over them, in vLLM (prefill) or transformers (hidden). The prefix cache is off,
since in a run every refinement prompt is new. Each ratio is to the refinement alone of the same round.
Usage: python -m benchmarks.scoring CONFIG [key=value ...] [--repeats 9] [--top-k 64]
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import pickle
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from actors.engine import Engine, SamplingOptions
from actors.engine_options import sampling_params
from actors.engine_scoring import EngineScoring
from actors.handles import sampling_options
from benchmarks.generation import step_prompts
from launch.preflight import check_run
from launch.ray_actors import engine_options
from trd_ray.assembly import RunInputs
from trd_ray.config import EngineConfig, SamplingConfig, TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.refinement import PromptTooLong
from trd_ray.scoring import AsyncScorer, HiddenScorer
from trd_ray.types import Grade, IntArray, Rollout, TeacherCompletion, TopKTargets

_WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Refiner:
    """A teacher engine and the prompts that it refines."""

    engine: Engine
    scoring: EngineScoring
    hidden: AsyncScorer
    prompts: list[IntArray]
    sampling: SamplingConfig
    top_k: int

    async def refine(self, top_k: int | None) -> list[TeacherCompletion]:
        return await asyncio.gather(
            *(
                self.scoring.generate(
                    prompt, sampling_options(self.sampling, seed=i), f"refine-{i}", top_k=top_k
                )
                for i, prompt in enumerate(self.prompts)
            )
        )

    async def alone(self) -> None:
        await self.refine(None)

    async def fused(self) -> None:
        await self.refine(self.top_k)

    async def prefill(self) -> None:
        made = await self.refine(None)
        await asyncio.gather(
            *(
                self.scoring.score(prompt, one.completion.token_ids, top_k=self.top_k)
                for prompt, one in zip(self.prompts, made, strict=True)
            )
        )

    async def hidden_states(self) -> None:
        made = await self.refine(None)
        await asyncio.gather(
            *(
                self.hidden.score(prompt, one.completion.token_ids)
                for prompt, one in zip(self.prompts, made, strict=True)
            )
        )


def _engine(engine: EngineConfig, model: str) -> Engine:
    options = engine_options(engine, name="engine", model=model, seed=0, weight_transfer=None)
    return Engine(dataclasses.replace(options, prefix_caching=False))


async def refine_prompts(config: TrdConfig, inputs: RunInputs) -> list[IntArray]:
    """The teacher's prompts for one step's rollouts of the untrained student."""
    student = _engine(config.generator.engine, str(inputs.student_path))
    prompts = step_prompts(config, inputs)
    sampling = config.generator.sampling
    done = await asyncio.gather(
        *(
            student.generate(p.token_ids, sampling_options(sampling, seed=p.seed), f"r-{p.seed}")
            for p in prompts
        )
    )
    await student.shutdown()
    refine = [
        inputs.prompts.refine(
            Rollout(prompt=prompt, completion=made, grade=Grade(correct=False, answer=None))
        )
        for prompt, made in zip(prompts, done, strict=True)
    ]
    return [one.token_ids for one in refine if not isinstance(one, PromptTooLong)]


async def measure_time(refiner: Refiner, *, repeats: int) -> None:
    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "refine alone": refiner.alone,
        "refine, fused top-k": refiner.fused,
        "refine + prefill top-k": refiner.prefill,
        "refine + hidden states": refiner.hidden_states,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + _WARM_UP):
        names = list(ways)
        if repeat % 2:
            names.reverse()  # so that a drift of the machine's speed favours none
        for name in names:
            start = time.perf_counter()
            await ways[name]()
            if repeat >= _WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    alone = seconds["refine alone"]
    num_tokens = sum(len(one.completion.token_ids) for one in await refiner.refine(None))
    print(f"{len(refiner.prompts)} refinements, {num_tokens} tokens, top-k {refiner.top_k}, {repeats} rounds")
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, alone, strict=True)]
        print(
            f"{name:24} {1e3 * statistics.median(values):8.1f} ms   x refine alone: median "
            f"{statistics.median(ratios):.3f}  min {min(ratios):.3f}  max {max(ratios):.3f}"
        )


async def measure_payload(refiner: Refiner) -> None:
    """Bytes a token: vLLM's nested objects, pickled, against `TopKTargets`, of the same tokens."""
    prompt, top_k = refiner.prompts[0], refiner.top_k
    options = SamplingOptions(max_tokens=200, seed=0, ignore_eos=True)
    flat = (await refiner.scoring.generate(prompt, options, "flat", top_k=top_k)).targets
    params = sampling_params(options, top_k=top_k)
    params.flat_logprobs = False
    params.detokenize = True
    nested = list((await refiner.engine.run(prompt, params, "nested")).outputs[0].logprobs or ())
    assert flat is not None
    _print_payload("as the engine made them", nested, flat)
    _print_payload("with ids of a vocabulary of 151,936", *_of_large_vocabulary(len(nested), top_k))


def _of_large_vocabulary(num_tokens: int, top_k: int) -> tuple[list[object], TopKTargets]:
    """Made up as vLLM makes them: its own objects, distinct ids, words of 4 letters."""
    from vllm.logprobs import Logprob

    rng = np.random.default_rng(0)
    ids = np.stack([rng.choice(151_936, top_k, replace=False) for _ in range(num_tokens)]).astype(np.int32)
    logprobs = -np.sort(rng.exponential(5.0, (num_tokens, top_k)), axis=1).astype(np.float32)
    nested: list[object] = [
        {
            int(token): Logprob(
                logprob=float(value), rank=rank, decoded_token="".join(rng.choice(list("abcdefgh"), 4))
            )
            for rank, (token, value) in enumerate(zip(row_ids, row, strict=True), start=1)
        }
        for row_ids, row in zip(ids, logprobs, strict=True)
    ]
    flat = TopKTargets(
        topk_ids=ids, topk_logprobs=logprobs.astype(np.float16), token_logprobs=logprobs[:, 0].copy()
    )
    return nested, flat


def _print_payload(what: str, nested: list[object], flat: TopKTargets) -> None:
    num_tokens = len(nested)
    before = len(pickle.dumps(nested, protocol=5)) / num_tokens
    after = len(pickle.dumps(flat, protocol=5)) / num_tokens
    print(f"payload, {what}: nested {before:.0f}, flat {after:.0f} bytes a token, 1/{before / after:.1f}")


async def measure(config: TrdConfig, inputs: RunInputs, *, repeats: int, top_k: int) -> None:
    prompts = await refine_prompts(config, inputs)
    engine = _engine(config.teacher.engine, str(inputs.teacher_path))
    scorer = HiddenScorer.load(
        inputs.teacher_path,
        dtype=config.teacher.score_dtype,
        hidden_dtype=config.teacher.hidden_dtype,
        batch_tokens=config.teacher.score_batch_tokens,
    )
    refiner = Refiner(
        engine=engine,
        scoring=EngineScoring(engine),
        hidden=AsyncScorer(scorer),
        prompts=prompts,
        sampling=config.teacher.sampling,
        top_k=top_k,
    )
    await measure_time(refiner, repeats=repeats)
    await measure_payload(refiner)
    await engine.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--top-k", type=int, default=64)
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)
    inputs = check_run(config, no_ray=False)
    asyncio.run(measure(config, inputs, repeats=arguments.repeats, top_k=arguments.top_k))


if __name__ == "__main__":
    main()
