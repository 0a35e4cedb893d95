"""How fast stages are: tokens a second and device, measured in a run or published by others.

`rates.json` holds what is shipped, each entry with its source. A run of the user's own takes its place:
`run_rates.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import TYPE_CHECKING, Any

from trd_ray.choices import Device, DType
from trd_ray.config import TrdConfig
from trd_ray.cost.workload import Lengths
from trd_ray.stage_clock import Stage

if TYPE_CHECKING:
    from trd_ray.model_files import ModelFacts

_TABLE = "rates.json"
# A model that is larger or smaller than the measured one by more than this has other rates.
_ALIKE = 2.0


class Kind(StrEnum):
    """Where a rate comes from."""

    MEASURED = "measured"
    """In a run of trd-ray."""
    PUBLISHED = "published"
    """By others, for one role alone; trd-ray was not part of it."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """One table of rates, for one kind of device and two models."""

    name: str
    kind: Kind
    source: str
    """Run, machine and command; or the pages that published the figures."""
    device: Device
    dtype: DType
    tokens_per_s: Mapping[Stage, float]
    """Of one device: tokens written (rollout, refine), read (score), trained on (learn)."""
    student_parameters: int = 0
    """0 of a run, whose rates are taken as they are."""
    teacher_parameters: int = 0
    prompt_tokens_per_s: float | None = None
    """Of one device, tokens that engines read before they write; None: within the rates of writing."""
    token_latency_s: float | None = None
    """Between two tokens of one answer in an engine with few requests; None: not known."""
    sync_s: float | None = None
    """One push; None: not known."""
    other_s: float = 0.0
    """A step's time in no stage."""
    scales: bool = False
    """Models of another size are taken to be slower in proportion to their parameters: an assumption, which
    holds where arithmetic or memory traffic is the limit. Else rates hold for models of that size alone."""
    lengths: Lengths | None = None
    """Of the run that was measured."""

    def fits(self, config: TrdConfig, *, student: ModelFacts, teacher: ModelFacts) -> bool:
        """The table says something about this run."""
        same = config.learner.device is self.device and config.learner.dtype is self.dtype
        if self.scales or not same:
            return same
        return all(
            1 / _ALIKE <= facts.num_parameters / known <= _ALIKE
            for facts, known in ((student, self.student_parameters), (teacher, self.teacher_parameters))
        )

    def factor(self, stage: Stage, *, student: ModelFacts, teacher: ModelFacts) -> float:
        """Seconds of a stage over those of the model that was measured."""
        if not self.scales:
            return 1.0
        if stage in (Stage.REFINE, Stage.SCORE):
            return teacher.num_parameters / self.teacher_parameters
        return student.num_parameters / self.student_parameters


def shipped_rates() -> tuple[Rates, ...]:
    """The entries of `rates.json`."""
    text = (resources.files("trd_ray.cost") / _TABLE).read_text(encoding="utf-8")
    return tuple(_entry(raw) for raw in json.loads(text))


def known_rates(config: TrdConfig, *, student: ModelFacts, teacher: ModelFacts) -> Rates | None:
    """The shipped entry that fits; None if there is none."""
    return next((r for r in shipped_rates() if r.fits(config, student=student, teacher=teacher)), None)


def _entry(raw: Mapping[str, Any]) -> Rates:
    lengths = raw.get("lengths")
    return Rates(
        name=raw["name"],
        kind=Kind(raw["kind"]),
        source=raw["source"],
        device=Device(raw["device"]),
        dtype=DType(raw["dtype"]),
        student_parameters=raw["student_parameters"],
        teacher_parameters=raw["teacher_parameters"],
        tokens_per_s={Stage(stage): rate for stage, rate in raw["tokens_per_s"].items()},
        prompt_tokens_per_s=raw.get("prompt_tokens_per_s"),
        token_latency_s=raw.get("token_latency_s"),
        sync_s=raw.get("sync_s"),
        other_s=raw.get("other_s", 0.0),
        scales=raw.get("scales", False),
        lengths=None if lengths is None else Lengths(**lengths),
    )
