"""Which prompts are made next, and with which seeds."""

from __future__ import annotations

from collections.abc import Callable

from trd_ray.config import PipelineConfig
from trd_ray.data import ProblemStream, StreamState
from trd_ray.seeds import derive_seed
from trd_ray.types import IntArray, Problem, Prompt


class PromptFeed:
    """Turns problems into prompts, one after the other.

    A problem's number in the run says for which step it is meant: `prompts_per_step` for each. The seed of
    a prompt depends on that and not on when it is drawn, so that a run that draws ahead, or is resumed,
    asks for the same samples.
    """

    def __init__(
        self,
        stream: ProblemStream,
        student_prompt: Callable[[Problem], IntArray],
        *,
        pipeline: PipelineConfig,
        seed: int,
    ) -> None:
        """
        Args:
            student_prompt: the [P] tokens that the student sees of a problem.
            seed: `run.seed`.
        """
        self._stream = stream
        self._student_prompt = student_prompt
        self._pipeline = pipeline
        self._seed = seed
        self._num_drawn = 0

    @property
    def num_drawn(self) -> int:
        """Problems since the run began."""
        return self._num_drawn

    def state(self) -> StreamState:
        return self._stream.state()

    def restore(self, state: StreamState, *, num_drawn: int) -> None:
        """Go on from a checkpoint. Raises `CheckpointError` if it belongs to other data."""
        self._stream.restore(state)
        self._num_drawn = num_drawn

    def draw(self, num: int) -> tuple[Prompt, ...]:
        """The prompts of the next `num` problems: `rollouts_per_prompt` for each."""
        return tuple(
            prompt for problem, epoch in self._stream.take(num) for prompt in self._prompts(problem, epoch)
        )

    def _prompts(self, problem: Problem, epoch: int) -> tuple[Prompt, ...]:
        step = 1 + self._num_drawn // self._pipeline.prompts_per_step
        self._num_drawn += 1
        token_ids = self._student_prompt(problem)
        return tuple(
            Prompt(
                problem=problem,
                epoch=epoch,
                sample_index=sample_index,
                token_ids=token_ids,
                seed=derive_seed(self._seed, step, epoch, problem.prompt_id, sample_index),
            )
            for sample_index in range(self._pipeline.rollouts_per_prompt)
        )

    def again(self, problem: Problem, *, epoch: int, sample_index: int, seed: int) -> Prompt:
        """A prompt that was drawn before, as a checkpoint names it."""
        return Prompt(
            problem=problem,
            epoch=epoch,
            sample_index=sample_index,
            token_ids=self._student_prompt(problem),
            seed=seed,
        )
