"""What a resumed run must know beside the learner's own state: step, data position, prompt count."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from trd_ray.data import SourceKind, StreamState
from trd_ray.errors import CheckpointError, describe

FILE_NAME = "run_state.json"


@dataclass(frozen=True, kw_only=True)
class PromptCount:
    """Prompts since the run began. The identity `num_in = num_consumed + num_rejected + num_pending`
    holds by construction of `num_pending`, which must never be negative."""

    num_in: int = 0
    num_consumed: int = 0
    num_rejected: int = 0

    @property
    def num_pending(self) -> int:
        return self.num_in - self.num_consumed - self.num_rejected


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The driver's part of a checkpoint."""

    learner_step: int
    """Completed optimizer steps."""
    stream: StreamState
    """Position before the first prompt that has not ended."""
    prompts: PromptCount

    @classmethod
    def initial(cls, stream: StreamState) -> RunState:
        return cls(learner_step=0, stream=stream, prompts=PromptCount())

    def after_step(
        self, *, learner_step: int, stream: StreamState, num_in: int, num_consumed: int, num_rejected: int
    ) -> RunState:
        """The state after one more step. Raises `ValueError` if a prompt of it was lost or doubled."""
        count = PromptCount(
            num_in=self.prompts.num_in + num_in,
            num_consumed=self.prompts.num_consumed + num_consumed,
            num_rejected=self.prompts.num_rejected + num_rejected,
        )
        if count.num_pending != 0:
            raise ValueError(
                f"step {learner_step}: {num_in} prompts went in, {num_consumed} were consumed and "
                f"{num_rejected} rejected; a prompt was lost or counted twice"
            )
        return RunState(learner_step=learner_step, stream=stream, prompts=count)

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
                prompts=PromptCount(**raw["prompts"]),
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
