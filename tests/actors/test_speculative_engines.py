"""Speculative distillation over two real vLLM engines with the shipped models and prefix caching."""

from __future__ import annotations

import asyncio
import multiprocessing

import numpy as np
import pytest
import torch

from actors.engine import Engine, EngineOptions
from actors.engine_scoring import EngineScoring
from actors.handles import sampling_options
from trd_ray.config import SamplingConfig, SpeculativeConfig
from trd_ray.models import load_student
from trd_ray.speculative import Speculation, speculate
from trd_ray.templates import TemplateName
from trd_ray.testbed.corpus import make_user_message
from trd_ray.testbed.paths import student_path, teacher_path
from trd_ray.testbed.tokenizer import build_tokenizer
from trd_ray.testbed.training import encode, wrap_user_message
from trd_ray.types import Completion, IntArray, Problem, Prompt, StopReason

pytest.importorskip("vllm")

TOP_KS = (1, 3)
MAX_TOKENS = 60


class Student:
    """The student's engine as the loop sees it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._num = 0

    async def generate(self, prompt: Prompt, sampling: SamplingConfig) -> Completion:
        self._num += 1
        options = sampling_options(sampling, seed=prompt.seed)
        return await self._engine.generate(prompt.token_ids, options, f"draft-{self._num}")


def question(index: int) -> IntArray:
    message = wrap_user_message(make_user_message(TemplateName.STUDENT, (index + 11, 87, 9, 64)))
    return np.asarray(encode(build_tokenizer(), [message])[0], dtype=np.int32)


def start(path: str) -> Engine:
    return Engine(EngineOptions(model=path, max_model_len=512, kv_cache_gib=0.125, threads=1, block_size=32))


async def speculate_all(student: Engine, teacher: Engine, *, top_k: int) -> list[Speculation]:
    generator, scoring = Student(student), EngineScoring(teacher)
    options = SpeculativeConfig(block_tokens=5, top_k=top_k, temperature=0.0)
    prompts = [
        Prompt(
            problem=Problem(prompt_id=str(i), problem="p", answer="a"),
            epoch=0,
            sample_index=0,
            token_ids=question(i),
            seed=i,
        )
        for i in range(12)
    ]
    return await asyncio.gather(
        *(
            speculate(
                prompt,
                prompt.token_ids,
                generator=generator,  # type: ignore[arg-type]
                teacher=scoring,  # type: ignore[arg-type]
                options=options,
                sampling=SamplingConfig(max_tokens=MAX_TOKENS, temperature=1.5),
                seed=prompt.seed,
            )
            for prompt in prompts
        )
    )


async def run() -> dict[int, list[Speculation]]:
    student, teacher = start(str(student_path())), start(str(teacher_path()))
    made = {top_k: await speculate_all(student, teacher, top_k=top_k) for top_k in TOP_KS}
    await student.shutdown()
    await teacher.shutdown()
    return made


def test_answers_are_what_plain_passes_of_the_teacher_allow() -> None:
    """With k = 1 that is the teacher's greedy answer, whatever the student drafts."""
    made = asyncio.run(run())
    assert not [c.name for c in multiprocessing.active_children() if "EngineCore" in c.name]
    model = load_student(teacher_path(), torch.float32).eval()
    for top_k in TOP_KS:
        for index, one in enumerate(made[top_k]):
            assert one.num_kept + one.num_replaced == len(one.token_ids) <= MAX_TOKENS
            prompt = question(index)
            for position, token in enumerate(one.token_ids.tolist()):
                ids = torch.from_numpy(np.concatenate([prompt, one.token_ids[:position]])).long()
                with torch.no_grad():
                    logits_V = model(ids[None]).logits[0, -1]
                # At temperature 0 a replacement is the most likely token, so it lies inside too; the
                # margin is for near-ties, which sums in another order may swap.
                assert float(logits_V[token]) >= float(logits_V.topk(top_k).values[-1]) - 1e-3
            assert (one.stop_reason is StopReason.STOP) == (one.token_ids[-1] == 2)
            assert 2 not in one.token_ids[:-1]
    # Both kinds of verdict were met, and the narrower k refuses more of the same student.
    replaced = {top_k: sum(one.num_replaced for one in made[top_k]) for top_k in TOP_KS}
    assert replaced[1] > replaced[3] > 0
    assert all(sum(one.num_kept for one in made[top_k]) > 0 for top_k in TOP_KS)
