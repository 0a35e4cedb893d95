"""Exactly once: every prompt that was drawn ends as consumed or rejected, or is pending.

The ledger is told of each prompt when it is drawn and of each trajectory when it ends; a prompt that ends
twice, or was never drawn, is an error of the program and raises. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trd_ray.outcomes import Outcome
from trd_ray.types import Prompt, Trajectory

PromptKey = tuple[str, int, int]
"""`prompt_id`, `epoch`, `sample_index`: unique in a run."""


def prompt_key(prompt: Prompt) -> PromptKey:
    return prompt.problem.prompt_id, prompt.epoch, prompt.sample_index


@dataclass(frozen=True, kw_only=True)
class PromptCount:
    """Prompts since the run began. `num_in = num_consumed + num_rejected + num_pending` must hold."""

    num_in: int = 0
    num_consumed: int = 0
    num_rejected: int = 0
    num_pending: int = 0

    def require_whole(self) -> None:
        """Raises `ValueError` unless the identity holds."""
        ended = self.num_consumed + self.num_rejected
        if self.num_in != ended + self.num_pending:
            raise ValueError(
                f"{self.num_in} prompts went in; {self.num_consumed} were consumed, {self.num_rejected} "
                f"rejected and {self.num_pending} are pending; a prompt was lost or counted twice"
            )


class PromptLedger:
    """Counts prompts of one run, and knows which are pending, in the order in which they were drawn."""

    def __init__(self) -> None:
        self._num_in = self._num_consumed = self._num_rejected = 0
        self._pending: dict[PromptKey, tuple[int, Prompt]] = {}
        self._num_ordered = 0

    def restore(self, count: PromptCount) -> None:
        """Go on from a checkpoint's count; its pending prompts are then to be `admit_again`ed."""
        self._num_in = count.num_in
        self._num_consumed = count.num_consumed
        self._num_rejected = count.num_rejected

    def admit(self, prompts: Iterable[Prompt]) -> None:
        """New prompts were drawn. Raises `ValueError` if one is pending already."""
        for prompt in prompts:
            self.admit_again(prompt)
            self._num_in += 1

    def admit_again(self, prompt: Prompt) -> None:
        """A prompt that was counted before the run was resumed is pending again."""
        key = prompt_key(prompt)
        if key in self._pending:
            raise ValueError(f"prompt {key} was drawn again while it is pending")
        self._pending[key] = (self._num_ordered, prompt)
        self._num_ordered += 1

    def order(self, trajectories: Iterable[Trajectory]) -> tuple[Trajectory, ...]:
        """Pending trajectories in the order in which their prompts were drawn."""
        return tuple(sorted(trajectories, key=lambda t: self._entry(t)[0]))

    def end(self, trajectories: Sequence[Trajectory]) -> PromptCount:
        """These are consumed or rejected. Raises `ValueError` if one of them is not pending."""
        for trajectory in trajectories:
            self._entry(trajectory)
            del self._pending[prompt_key(trajectory.prompt)]
            if trajectory.outcome is Outcome.CONSUMED:
                self._num_consumed += 1
            else:
                self._num_rejected += 1
        count = self.count
        count.require_whole()
        return count

    def _entry(self, trajectory: Trajectory) -> tuple[int, Prompt]:
        key = prompt_key(trajectory.prompt)
        if key not in self._pending:
            raise ValueError(f"prompt {key} ended, and is not pending: it ended before or was never drawn")
        return self._pending[key]

    @property
    def pending(self) -> tuple[Prompt, ...]:
        """In the order in which they were drawn."""
        return tuple(prompt for _, prompt in self._pending.values())

    @property
    def count(self) -> PromptCount:
        return PromptCount(
            num_in=self._num_in,
            num_consumed=self._num_consumed,
            num_rejected=self._num_rejected,
            num_pending=len(self._pending),
        )
