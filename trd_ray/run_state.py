"""What a resumed run must know beside the learner's own state: step, data position, prompts."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from trd_ray.data import SourceKind, StreamState
from trd_ray.errors import CheckpointError, describe
from trd_ray.feed import PromptFeed
from trd_ray.ledger import PromptCount
from trd_ray.types import Problem, Prompt

FILE_NAME = "run_state.json"


@dataclass(frozen=True, kw_only=True)
class PendingPrompt:
    """A prompt that was drawn and has not ended. Its tokens are made anew from the problem."""

    problem: Problem
    epoch: int
    sample_index: int
    seed: int

    @classmethod
    def of(cls, prompt: Prompt) -> PendingPrompt:
        return cls(
            problem=prompt.problem, epoch=prompt.epoch, sample_index=prompt.sample_index, seed=prompt.seed
        )

    def prompt(self, feed: PromptFeed) -> Prompt:
        return feed.again(self.problem, epoch=self.epoch, sample_index=self.sample_index, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The driver's part of a checkpoint."""

    learner_step: int
    """Completed optimizer steps."""
    stream: StreamState
    """Position of the next problem to be drawn."""
    num_drawn: int
    """Problems that were drawn since the run began."""
    num_extra: int
    """Trajectories beyond those of the steps themselves: in place of dropped or refused ones."""
    prompts: PromptCount
    pending: tuple[PendingPrompt, ...]
    """In the order in which they were drawn."""

    def write(self, folder: Path) -> None:
        (folder / FILE_NAME).write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> RunState:
        """Raises `CheckpointError` if the file is missing or is not what `write` wrote."""
        path = folder / FILE_NAME
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                learner_step=raw["learner_step"],
                stream=StreamState(**{**raw["stream"], "kind": SourceKind(raw["stream"]["kind"])}),
                num_drawn=raw["num_drawn"],
                num_extra=raw["num_extra"],
                prompts=PromptCount(**raw["prompts"]),
                pending=tuple(
                    PendingPrompt(**{**each, "problem": Problem(**each["problem"])})
                    for each in raw["pending"]
                ),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                describe(
                    "the checkpoint's run state cannot be read",
                    where=str(path),
                    got=f"{type(error).__name__}: {error}",
                    expected="a file written with the checkpoint",
                    remedy="resume from an older checkpoint: move this folder away",
                )
            ) from error
