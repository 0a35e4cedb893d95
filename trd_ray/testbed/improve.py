"""Shows that the student can be improved: the method's loop, small enough to read at a glance.

rollouts of training problems -> the teacher's rewrites of them -> forward KL along the rewrites,
the teacher reading them under the student's prompt or under its own. It is here to tune the
testbed, not to train: no actors, no staleness, no checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from trd_ray.losses import token_divergence
from trd_ray.tasks.arithmetic import ArithmeticTask, Split, generate_problems
from trd_ray.tasks.arithmetic.problems import parse_problem
from trd_ray.templates import TemplateName
from trd_ray.testbed.corpus import make_user_message
from trd_ray.testbed.sampling import Sample, SamplerSettings, sample
from trd_ray.testbed.training import IGNORED, Schedule, make_batch
from trd_ray.types import Problem, TeacherContext

_TASK = ArithmeticTask()
_PAD_ID = 0
"""Any token will do: what is padded is never read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImproveStep:
    """One optimizer step."""

    learner_step: int
    loss: float
    """Mean forward KL per response token, in nats."""
    rollout_accuracy: float
    refined_accuracy: float


def improve(
    student: Qwen3ForCausalLM,
    teacher: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    schedule: Schedule,
    context: TeacherContext,
    seed: int,
    on_step: Callable[[ImproveStep], None],
) -> None:
    """Train `student` in place with AdamW (0.9, 0.95), gradients clipped at 1.

    `context` is `prompt` or `refine`: what the teacher reads before the rewrite when it scores it.
    """
    optimizer = torch.optim.AdamW(student.parameters(), betas=(0.9, 0.95), weight_decay=0.005)
    problems = generate_problems(seed=seed, split=Split.TRAIN, num=None)
    for step in range(schedule.num_steps):
        batch = list(islice(problems, schedule.batch_size))
        settings = SamplerSettings(seed=seed * 100_003 + step)
        rollouts = _answer(student, tokenizer, batch, None, settings)
        refined = _answer(teacher, tokenizer, batch, rollouts, settings)
        sources = refined if context is TeacherContext.REFINE else rollouts
        loss = _divergence(
            student,
            teacher,
            student_prompts=[r.prompt_ids for r in rollouts],
            teacher_prompts=[s.prompt_ids for s in sources],
            responses=[r.token_ids for r in refined],
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate_at(step)
        optimizer.step()
        on_step(
            ImproveStep(
                learner_step=step + 1,
                loss=loss.item(),
                rollout_accuracy=accuracy(batch, rollouts),
                refined_accuracy=accuracy(batch, refined),
            )
        )


def accuracy(problems: Sequence[Problem], samples: Sequence[Sample]) -> float:
    """Share of right solutions."""
    grades = [_TASK.grade(p, s.text) for p, s in zip(problems, samples, strict=True)]
    return sum(g.correct for g in grades) / len(grades)


def held_out_accuracy(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    num_problems: int,
    seed: int,
    temperature: float = 1.0,
) -> float:
    """Share of held-out problems solved."""
    problems = list(generate_problems(seed=seed, split=Split.HELD_OUT, num=num_problems))
    settings = SamplerSettings(seed=seed, temperature=temperature)
    return accuracy(problems, _answer(model, tokenizer, problems, None, settings))


def _answer(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    initial: Sequence[Sample] | None,
    settings: SamplerSettings,
) -> list[Sample]:
    """Solve each problem, or rewrite `initial`."""
    template = TemplateName.STUDENT if initial is None else TemplateName.REFINE
    texts = [""] * len(problems) if initial is None else [s.text for s in initial]
    users = [
        make_user_message(template, parse_problem(problem.problem), initial_solution=text)
        for problem, text in zip(problems, texts, strict=True)
    ]
    return sample(model, tokenizer, users, settings)


def _divergence(
    student: Qwen3ForCausalLM,
    teacher: Qwen3ForCausalLM,
    *,
    student_prompts: Sequence[Sequence[int]],
    teacher_prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
) -> Tensor:
    """KL(teacher || student) of each response token [N], in nats."""
    student_logits = _response_logits(student, student_prompts, responses)
    with torch.no_grad():
        teacher_logits = _response_logits(teacher, teacher_prompts, responses)
    return token_divergence(student_logits, teacher_logits, divergence="forward_kl")


def _response_logits(
    model: Qwen3ForCausalLM, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> Tensor:
    """Logits that predict each response token, row after row [N, V]."""
    inputs, targets = make_batch(prompts, responses, _PAD_ID)
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    logits: Tensor = model.lm_head(hidden[targets != IGNORED])
    return logits
