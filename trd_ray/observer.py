"""Who is told how a run goes: the metrics files, the progress line of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from trd_ray.evaluation import EvalReport
    from trd_ray.metrics import StepMetrics


class Observer(Protocol):
    """Told by the pipeline; never answers and never changes the run."""

    def on_stage(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` samples have ended `stage`: a `Stage`, or `eval` or `checkpoint`."""
        ...

    def on_step(self, metrics: StepMetrics) -> None:
        """An optimizer step and the push of its weights are complete."""
        ...

    def on_eval(self, report: EvalReport) -> None:
        """An evaluation is complete."""
        ...


class Observers:
    """Passes everything on to several observers, in order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def on_stage(self, stage: str, done: int, total: int) -> None:
        for observer in self._observers:
            observer.on_stage(stage, done, total)

    def on_step(self, metrics: StepMetrics) -> None:
        for observer in self._observers:
            observer.on_step(metrics)

    def on_eval(self, report: EvalReport) -> None:
        for observer in self._observers:
            observer.on_eval(report)
