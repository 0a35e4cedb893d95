"""How many tokens each stage of a step works on."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from trd_ray.choices import ScoreMethod
from trd_ray.config import TrdConfig
from trd_ray.stage_clock import Stage
from trd_ray.types import TeacherContext, TrajectorySource

_INSTRUCTION_TOKENS = 400
"""Assumed: what a refinement prompt holds beside problem, solution and rollout."""
# A forward pass takes a third of a forward and a backward pass.
_FORWARD_SHARE = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Mean tokens of one trajectory's parts; 0 for a part that the method does without."""

    prompt: float
    """As the student sees it."""
    rollout: float
    """That the student writes."""
    teacher_prompt: float
    """Before what the teacher writes."""
    refinement: float
    """That the teacher writes."""
    trajectory: float
    """That is trained on."""
    context: float
    """Before the trajectory where the teacher scores it."""
    source: str
    """Where the numbers come from, for people."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "source" and value < 0:
                raise ValueError(f"Lengths.{field.name}: got {value}; expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """Tokens of one stage of a step, over all actors."""

    written: float = 0.0
    """Generated one by one."""
    read: float = 0.0
    """Computed side by side: prompts, scored trajectories, what is trained on."""

    @property
    def counted(self) -> float:
        """The tokens that a rate is of: those written where some are, else those read."""
        return self.written or self.read


def longest_lengths(config: TrdConfig) -> Lengths:
    """Everything as long as its budget lets it be: an upper bound, and far from a mean."""
    method = config.method
    generator, teacher = config.generator, config.teacher
    prompt = generator.engine.max_model_len - generator.sampling.max_tokens
    rollout = generator.sampling.max_tokens if _student_writes(config) else 0
    refinement = teacher.sampling.max_tokens if method.teacher_generates else 0
    if method.trajectory is TrajectorySource.SPECULATIVE:
        refinement = 0  # what it replaces is among the student's
    room = teacher.engine.max_model_len - refinement
    longer = min(room, prompt + rollout + _INSTRUCTION_TOKENS)
    teacher_prompt = 0 if not refinement else longer if method.refines else prompt
    return Lengths(
        prompt=prompt,
        rollout=rollout,
        teacher_prompt=teacher_prompt,
        refinement=refinement,
        trajectory=config.max_trajectory_tokens,
        context=_context(config, prompt=prompt, teacher_prompt=longer),
        source="the longest that the options allow; give --rollout-tokens, --refinement-tokens, "
        "--prompt-tokens, or --rates RUN_DIR",
    )


def for_method(config: TrdConfig, measured: Lengths) -> Lengths:
    """The lengths of a run, which may be of another method, as this one has them: parts that it does without
    are 0, and one that was not measured is as long as it may be."""
    longest = longest_lengths(config)
    rollout = (measured.rollout or longest.rollout) if longest.rollout else 0.0
    refinement = (measured.refinement or longest.refinement) if longest.refinement else 0.0
    asked = measured.teacher_prompt if measured.refinement else longest.teacher_prompt
    trajectory = measured.trajectory or longest.trajectory
    if config.method.trajectory in (TrajectorySource.REFINED, TrajectorySource.TEACHER):
        trajectory = refinement
    elif longest.rollout and not config.method.refines:
        trajectory = rollout
    context = _context(config, prompt=measured.prompt, teacher_prompt=asked)
    if context > measured.prompt and measured.context > measured.prompt:
        context = measured.context  # likewise more than the prompt, and measured
    return replace(
        measured,
        rollout=rollout,
        teacher_prompt=(asked if config.method.refines else measured.prompt) if refinement else 0.0,
        refinement=refinement,
        trajectory=trajectory,
        context=context,
    )


def with_means(
    config: TrdConfig,
    lengths: Lengths,
    *,
    prompt: float | None = None,
    rollout: float | None = None,
    refinement: float | None = None,
) -> Lengths:
    """`lengths` with what is known of the means; the other parts follow from them."""
    given = {"prompt": prompt, "rollout": rollout, "refinement": refinement}
    known = {name: value for name, value in given.items() if value is not None}
    if not known:
        return lengths
    refines = config.method.refines
    instructions = max(0.0, lengths.teacher_prompt - lengths.prompt - lengths.rollout) if refines else 0.0
    means = replace(lengths, **known)  # type: ignore[arg-type]
    teacher_prompt = means.prompt + (means.rollout + instructions if refines else 0.0)
    trajectory = means.trajectory
    if config.method.trajectory in (TrajectorySource.REFINED, TrajectorySource.TEACHER):
        trajectory = means.refinement
    elif _student_writes(config) and not refines:
        trajectory = means.rollout
    return replace(
        means,
        teacher_prompt=teacher_prompt if means.refinement else 0.0,
        trajectory=trajectory,
        context=_context(config, prompt=means.prompt, teacher_prompt=teacher_prompt),
        source=", ".join(f"{name} {value:g}" for name, value in known.items())
        + " as given; the others follow, or are the longest that the options allow",
    )


def step_work(config: TrdConfig, lengths: Lengths) -> dict[Stage, StageWork]:
    """Tokens of each stage of a step; stages that the method does without have none."""
    num = config.pipeline.trajectories_per_step
    scored = num * (lengths.context + lengths.trajectory)
    by_learner = config.method.scores and config.teacher.score is ScoreMethod.LEARNER
    in_a_pass = config.method.scores and config.teacher.score in (ScoreMethod.HIDDEN, ScoreMethod.PREFILL)
    learned = num * (lengths.prompt + lengths.trajectory) + (scored * _FORWARD_SHARE if by_learner else 0.0)
    asked = lengths.teacher_prompt if lengths.refinement else 0.0
    return {
        Stage.ROLLOUT: StageWork(
            written=num * lengths.rollout, read=num * lengths.prompt if lengths.rollout else 0.0
        ),
        Stage.REFINE: StageWork(written=num * lengths.refinement, read=num * asked),
        Stage.SCORE: StageWork(read=scored if in_a_pass else 0.0),
        Stage.LEARN: StageWork(read=learned),
    }


def _student_writes(config: TrdConfig) -> bool:
    return config.method.makes_rollout or config.method.trajectory is TrajectorySource.SPECULATIVE


def _context(config: TrdConfig, *, prompt: float, teacher_prompt: float) -> float:
    if not config.method.scores:
        return 0.0
    return teacher_prompt if config.method.teacher_context is TeacherContext.REFINE else prompt
