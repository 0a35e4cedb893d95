"""One evaluation data set, ready to be run against the current student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trd_ray.config import SamplingConfig
from trd_ray.evaluation import EvalReport, evaluate
from trd_ray.interfaces import Generator
from trd_ray.observer import Observer
from trd_ray.types import Grade, Problem, Prompt


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Asks the generators for every prompt at once; the same prompts and seeds each time."""

    generator: Generator
    prompts: tuple[Prompt, ...]
    grade: Callable[[Problem, str], Grade]
    sampling: SamplingConfig
    dataset: str
    observer: Observer

    async def evaluate(self, *, learner_step: int) -> EvalReport:
        """Evaluate the weights that the generators hold, which are those after `learner_step` steps."""
        return await evaluate(
            self.generator,
            self.prompts,
            self.grade,
            sampling=self.sampling,
            learner_step=learner_step,
            dataset=self.dataset,
            on_progress=lambda done, total: self.observer.on_stage("eval", done, total),
        )
