"""Makes the testbed's models again from nothing.

    base ──> student            slips in its answers to plain prompts, right answers to privileged ones
      │        │
      ├────────┴──> rollouts    of training problems, by checkpoints of the base and of the student
      │                │
      └────────────> teacher    solves, and rewrites those rollouts and solutions spoiled at many rates

A weak student is trained apart, from another seed, for a few steps only: its rollouts are what
`check` measures the teacher on, and no model is ever trained on them. No held-out problem is in any
training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

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
    """How far a build is; reported after every optimizer step and every batch of rollouts."""

    stage: str
    num_done: int
    """Units of this stage done."""
    num_total: int
    loss: float | None
    """Mean loss per response token in nats; None outside training."""


Report = Callable[[BuildProgress], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """Sizes of a build. The defaults make the shipped models."""

    base: Schedule = field(default_factory=lambda: Schedule(num_steps=900, final_fraction=0.3))
    student: Schedule = field(default_factory=lambda: Schedule(num_steps=200, learning_rate=0.01))
    weak_student: Schedule = field(default_factory=lambda: Schedule(num_steps=170))
    teacher: Schedule = field(default_factory=lambda: Schedule(num_steps=900, learning_rate=0.012))
    base_checkpoints: tuple[int, ...] = (60, 100, 140, 180, 220, 300, 400)
    """Steps after which the base is half-trained enough to be worth sampling."""
    student_checkpoints: tuple[int, ...] = (40, 100, 200)
    num_rollouts: int = 1500
    """Rollouts of each checkpoint."""
    student_slip_rate: float = 0.27
    """Share of the steps that are slips in the student's corpus; a few more cannot be placed."""


_BASE_MIXTURE = Mixture(student=0.75, privileged=0.05, refine=0.15, refine_privileged=0.05)
_ROLLOUT_TEMPERATURES = (0.7, 1.0, 1.4)


def build(output_dir: Path, *, seed: int = 0, report: Report, plan: BuildPlan | None = None) -> None:
    """Train teacher, student and weak student, and write them to folders of `output_dir`.

    The same seed, thread count and machine give the same models. Uses as many threads as torch is
    set to; on a machine that has other work to do, fewer threads than cores are faster.
    """
    plan = plan or BuildPlan()
    tokenizer = build_tokenizer()
    base, checkpoints = _train_base(tokenizer, plan, seed, report)
    student, student_checkpoints = _train_student(base, tokenizer, plan, seed, report)
    save_model(student, output_dir / STUDENT)
    save_model(_train_weak_student(tokenizer, plan, seed, report), output_dir / WEAK_STUDENT)
    rollouts = _sample_rollouts([*checkpoints, *student_checkpoints], tokenizer, plan, seed, report)
    save_model(_train_teacher(base, rollouts, tokenizer, plan, seed, report), output_dir / TEACHER)


def _student_mixture(plan: BuildPlan) -> Mixture:
    return Mixture(
        student=0.6,
        privileged=0.12,
        refine=0.0,
        refine_privileged=0.28,
        student_slip_rate=plan.student_slip_rate,
    )


def _teacher_mixture(rollouts: Sequence[InitialSolution]) -> Mixture:
    return Mixture(
        student=0.4, privileged=0.05, refine=0.45, refine_privileged=0.1, rollouts=rollouts, rollout_share=0.5
    )


def _train_base(
    tokenizer: PreTrainedTokenizerFast, plan: BuildPlan, seed: int, report: Report
) -> tuple[Qwen3ForCausalLM, list[Weights]]:
    """Learn the sums; also returns the weights at `plan.base_checkpoints`."""
    model = new_model(seed=seed)
    recorder = _Recorder(model, "base", plan.base.num_steps, plan.base_checkpoints, report)
    train(model, tokenizer, _BASE_MIXTURE.draw, schedule=plan.base, seed=seed, on_step=recorder)
    return model, recorder.checkpoints


def _train_student(
    base: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, plan: BuildPlan, seed: int, report: Report
) -> tuple[Qwen3ForCausalLM, list[Weights]]:
    """Make a copy of the base slip; also returns the weights at `plan.student_checkpoints`."""
    model = copy.deepcopy(base)
    recorder = _Recorder(model, "student", plan.student.num_steps, plan.student_checkpoints, report)
    draw = _student_mixture(plan).draw
    train(model, tokenizer, draw, schedule=plan.student, seed=seed + 1, on_step=recorder)
    return model, recorder.checkpoints


def _train_weak_student(
    tokenizer: PreTrainedTokenizerFast, plan: BuildPlan, seed: int, report: Report
) -> Qwen3ForCausalLM:
    """A student that has had no base training and a few steps of its own."""
    model = new_model(seed=seed + 2)
    recorder = _Recorder(model, "weak student", plan.weak_student.num_steps, (), report)
    draw = _student_mixture(plan).draw
    train(model, tokenizer, draw, schedule=plan.weak_student, seed=seed + 2, on_step=recorder)
    return model


def _train_teacher(
    base: Qwen3ForCausalLM,
    rollouts: Sequence[InitialSolution],
    tokenizer: PreTrainedTokenizerFast,
    plan: BuildPlan,
    seed: int,
    report: Report,
) -> Qwen3ForCausalLM:
    """Make a copy of the base solve without fail and rewrite whatever it is given."""
    model = copy.deepcopy(base)
    recorder = _Recorder(model, "teacher", plan.teacher.num_steps, (), report)
    draw = _teacher_mixture(rollouts).draw
    train(model, tokenizer, draw, schedule=plan.teacher, seed=seed + 3, on_step=recorder)
    return model


def _sample_rollouts(
    checkpoints: Sequence[Weights],
    tokenizer: PreTrainedTokenizerFast,
    plan: BuildPlan,
    seed: int,
    report: Report,
) -> list[InitialSolution]:
    """Solutions to training problems by every checkpoint, at several temperatures."""
    model = new_model(seed=seed).eval()
    rng = Random(f"rollouts/{seed}")
    rollouts: list[InitialSolution] = []
    for index, weights in enumerate(checkpoints):
        model.load_state_dict(weights)
        for temperature in _ROLLOUT_TEMPERATURES:
            problems = [draw_train_terms(rng) for _ in range(plan.num_rollouts // len(_ROLLOUT_TEMPERATURES))]
            users = [make_user_message(TemplateName.STUDENT, terms) for terms in problems]
            settings = SamplerSettings(temperature=temperature, seed=rng.randrange(2**31))
            samples = sample(model, tokenizer, users, settings)
            rollouts += [
                InitialSolution(terms=terms, text=s.text) for terms, s in zip(problems, samples, strict=True)
            ]
        report(BuildProgress(stage="rollouts", num_done=index + 1, num_total=len(checkpoints), loss=None))
    return rollouts


class _Recorder:
    """Called after each optimizer step: reports it, and keeps the weights at some of them."""

    def __init__(
        self,
        model: Qwen3ForCausalLM,
        stage: str,
        num_steps: int,
        checkpoint_steps: Sequence[int],
        report: Report,
    ) -> None:
        self.checkpoints: list[Weights] = []
        self._model = model
        self._stage = stage
        self._num_steps = num_steps
        self._checkpoint_steps = frozenset(checkpoint_steps)
        self._report = report

    def __call__(self, step: int, loss: float) -> None:
        if step in self._checkpoint_steps:
            self.checkpoints.append(
                {name: torch.clone(tensor) for name, tensor in self._model.state_dict().items()}
            )
        self._report(BuildProgress(stage=self._stage, num_done=step, num_total=self._num_steps, loss=loss))
