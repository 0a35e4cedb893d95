"""Makes the testbed's models again from nothing.

    base ───────> draft ─────────────────────> teacher   solves; rewrites whatever it is given
      │             │                             │
      │             └──> student                  │      slips in its answers to plain prompts,
      │                     │                     │      answers privileged ones without slips
      └──> rollouts ────────┴──> rollouts ────────┘      of training problems, by half-trained
                                                         checkpoints of base and student

The base learns the sums, the draft to rewrite the rollouts of the half-trained base. The student is
a copy of the draft that was taught to slip, so what it has to lose in training are its slips. The
teacher is the draft trained on, with the student's rollouts as well.

A weak student is trained apart, from another seed and for a few steps only. `check` has the teacher
rewrite its rollouts, and no model is ever trained on them. No held-out problem is in any training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from trd_ray.templates import TemplateName
from trd_ray.testbed.corpus import InitialSolution, Mixture, draw_train_terms, make_user_message
from trd_ray.testbed.model import new_model, save_model
from trd_ray.testbed.paths import STUDENT, TEACHER, WEAK_STUDENT
from trd_ray.testbed.sampling import SamplerSettings, sample
from trd_ray.testbed.tokenizer import build_tokenizer
from trd_ray.testbed.training import Schedule, train

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildProgress:
    """How far a build is; reported after every optimizer step, and when a checkpoint has been sampled."""

    stage: str
    num_done: int
    """Units of this stage done."""
    num_total: int
    loss: float | None
    """Mean loss per response token in nats; None outside training."""


Report = Callable[[BuildProgress], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """Sizes of a build. The defaults take 20 to 25 minutes of one core."""

    base: Schedule = field(default_factory=lambda: Schedule(num_steps=800, final_fraction=0.3))
    draft: Schedule = field(default_factory=lambda: Schedule(num_steps=600, learning_rate=0.012))
    student: Schedule = field(default_factory=lambda: Schedule(num_steps=320, learning_rate=0.009))
    teacher: Schedule = field(default_factory=lambda: Schedule(num_steps=500, learning_rate=0.009))
    weak_student: Schedule = field(default_factory=lambda: Schedule(num_steps=170, batch_size=64))
    base_checkpoints: tuple[int, ...] = (60, 100, 140, 180, 220, 260)
    """Steps after which the rollouts of the base are sampled; it solves 0 to 14% then."""
    student_checkpoints: tuple[int, ...] = (20, 60, 120, 320)
    num_rollouts: int = 900
    """Rollouts of each checkpoint."""
    student_slip_rate: float = 0.27
    """Share of the steps that are slips in the student's corpus, before those that cannot be made
    because a total would leave its range."""


_BASE_MIXTURE = Mixture(student=0.75, privileged=0.05, refine=0.15, refine_privileged=0.05)
_ROLLOUT_TEMPERATURES = (0.7, 1.0, 1.4)


def build(output_dir: Path, *, seed: int = 0, report: Report, plan: BuildPlan | None = None) -> None:
    """Train teacher, student and weak student, and write them to folders of `output_dir`.

    The same seed, thread count and machine give the same models. Uses as many threads as torch is
    set to; on a machine that has other work to do, fewer threads than cores are faster.
    """
    plan = plan or BuildPlan()
    builder = _Builder(plan, seed, report)
    model = new_model(seed=seed)
    base_weights = builder.train(
        model, "base", plan.base, _BASE_MIXTURE, checkpoint_steps=plan.base_checkpoints
    )
    rollouts = builder.sample_rollouts(base_weights, "rollouts of the base")
    builder.train(model, "draft", plan.draft, _teacher_mixture(rollouts))

    student = copy.deepcopy(model)
    student_weights = builder.train(
        student, "student", plan.student, _student_mixture(plan), checkpoint_steps=plan.student_checkpoints
    )
    save_model(student, output_dir / STUDENT)

    rollouts += builder.sample_rollouts(student_weights, "rollouts of the student")
    builder.train(model, "teacher", plan.teacher, _teacher_mixture(rollouts))
    save_model(model, output_dir / TEACHER)

    weak_student = new_model(seed=seed + 1)
    builder.train(weak_student, "weak student", plan.weak_student, _student_mixture(plan))
    save_model(weak_student, output_dir / WEAK_STUDENT)


def _student_mixture(plan: BuildPlan) -> Mixture:
    return Mixture(
        student=0.45,
        privileged=0.2,
        refine=0.0,
        refine_privileged=0.35,
        student_slip_rate=plan.student_slip_rate,
    )


def _teacher_mixture(rollouts: Sequence[InitialSolution]) -> Mixture:
    return Mixture(
        student=0.4, privileged=0.05, refine=0.45, refine_privileged=0.1, rollouts=rollouts, rollout_share=0.5
    )


class _Builder:
    """What all stages of one build share."""

    def __init__(self, plan: BuildPlan, seed: int, report: Report) -> None:
        self._plan = plan
        self._seed = seed
        self._report = report
        self._tokenizer = build_tokenizer()

    def train(
        self,
        model: Qwen3ForCausalLM,
        stage: str,
        schedule: Schedule,
        mixture: Mixture,
        *,
        checkpoint_steps: Sequence[int] = (),
    ) -> list[Weights]:
        """Train `model` in place; returns copies of its weights after each of `checkpoint_steps`."""
        checkpoints: list[Weights] = []

        def on_step(step: int, loss: float) -> None:
            if step in checkpoint_steps:
                checkpoints.append({n: torch.clone(t) for n, t in model.state_dict().items()})
            self._report(BuildProgress(stage=stage, num_done=step, num_total=schedule.num_steps, loss=loss))

        train(
            model,
            self._tokenizer,
            mixture.draw,
            schedule=schedule,
            seed=f"{self._seed}/{stage}",
            on_step=on_step,
        )
        return checkpoints

    def sample_rollouts(self, checkpoints: Sequence[Weights], stage: str) -> list[InitialSolution]:
        """Solutions to training problems by every checkpoint, at several temperatures."""
        model = new_model(seed=0).eval()
        rng = Random(f"{self._seed}/{stage}")
        num = self._plan.num_rollouts // len(_ROLLOUT_TEMPERATURES)
        rollouts: list[InitialSolution] = []
        for index, weights in enumerate(checkpoints):
            model.load_state_dict(weights)
            for temperature in _ROLLOUT_TEMPERATURES:
                problems = [draw_train_terms(rng) for _ in range(num)]
                users = [make_user_message(TemplateName.STUDENT, terms) for terms in problems]
                settings = SamplerSettings(temperature=temperature, seed=rng.randrange(2**31))
                samples = sample(model, self._tokenizer, users, settings)
                rollouts += [
                    InitialSolution(terms=terms, text=answer.text)
                    for terms, answer in zip(problems, samples, strict=True)
                ]
            self._report(
                BuildProgress(stage=stage, num_done=index + 1, num_total=len(checkpoints), loss=None)
            )
        return rollouts
