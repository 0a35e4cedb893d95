"""Hypothesis strategies of whole trajectories: every part that may be missing, every kind of target."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.types import (
    Completion,
    DeferredTarget,
    Grade,
    Problem,
    Prompt,
    Refinement,
    RefinePrompt,
    Rollout,
    StopReason,
    Target,
    TeacherContext,
    TeacherHidden,
    TopKTargets,
    Trajectory,
    TrajectorySource,
)

_TEXT = st.text(max_size=8)
_SMALL = st.integers(0, 2**31 - 1)
_IDS = st.integers(0, 2**31 - 1) | st.integers(0, 300)


def _ids(length: int | None = None, *, width: int | None = None) -> st.SearchStrategy[Any]:
    shape: Any = st.integers(0, 9) if length is None else (length,) if width is None else (length, width)
    return hnp.arrays(np.int32, shape, elements=_IDS)


def _floats(shape: Any, dtype: Any = np.float32) -> st.SearchStrategy[Any]:
    return hnp.arrays(dtype, shape, elements=hnp.from_dtype(np.dtype(dtype)))


@st.composite
def completions(draw: st.DrawFn) -> Completion:
    ids = draw(_ids())
    low, high = sorted((draw(_SMALL), draw(_SMALL)))
    return Completion(
        token_ids=ids,
        logprobs=draw(_floats(len(ids))),
        text=draw(_TEXT),
        stop_reason=draw(st.sampled_from(StopReason)),
        policy_version_min=low,
        policy_version_max=high,
    )


_PROMPTS = st.builds(
    Prompt,
    problem=st.builds(
        Problem, prompt_id=_TEXT, problem=_TEXT, answer=_TEXT, reference=st.none() | _TEXT
    ),
    epoch=_SMALL, sample_index=_SMALL, token_ids=_ids(), seed=_SMALL,
)  # fmt: skip
_GRADES = st.builds(
    Grade,
    correct=st.booleans(), answer=st.none() | _TEXT, num_steps=_SMALL,
    first_wrong_step=st.none() | _SMALL, first_wrong_char=st.none() | _SMALL,
)  # fmt: skip
_REFINEMENTS = st.builds(
    Refinement,
    prompt=st.builds(
        RefinePrompt, token_ids=_ids(), num_cut_rollout_tokens=_SMALL, num_cut_reference_tokens=_SMALL
    ),
    completion=completions(), grade=_GRADES,
)  # fmt: skip


@st.composite
def targets(draw: st.DrawFn, length: int) -> Target:
    kind = draw(st.sampled_from(["float32", "bfloat16 bits", "top_k", "deferred"]))
    width = draw(st.integers(0, 5))
    if kind == "deferred":
        return DeferredTarget(context_ids=draw(_ids()))
    if kind == "top_k":
        return TopKTargets(
            topk_ids=draw(_ids(length, width=width)),
            topk_logprobs=draw(_floats((length, width), draw(st.sampled_from([np.float16, np.float32])))),
            token_logprobs=draw(_floats(length)),
        )
    return TeacherHidden(
        hidden=draw(_floats((length, width), np.float32 if kind == "float32" else np.uint16))
    )


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    prompt = draw(_PROMPTS)
    ids = draw(_ids())
    rejected = draw(st.booleans())
    return Trajectory(
        prompt=prompt,
        rollout=draw(
            st.none() | st.builds(Rollout, prompt=st.just(prompt), completion=completions(), grade=_GRADES)
        ),
        refinement=draw(st.none() | _REFINEMENTS),
        source=draw(st.sampled_from(TrajectorySource)),
        token_ids=ids,
        text=draw(_TEXT),
        grade=draw(st.none() | _GRADES),
        policy_version_min=draw(st.none() | _SMALL),
        policy_version_max=draw(st.none() | _SMALL),
        num_kept=draw(_SMALL),
        teacher_context=draw(st.sampled_from(TeacherContext)),
        teacher_context_ids=draw(_ids()),
        outcome=Outcome.REJECTED if rejected else Outcome.CONSUMED,
        reason=draw(st.sampled_from([r for r in RejectReason if r])) if rejected else RejectReason.NONE,
        gate_reason=draw(st.sampled_from(RejectReason)),
        target=draw(st.none() | targets(len(ids))),
    )


def same(left: object, right: object) -> bool:
    """Equal in type and value, arrays bit for bit (`==` knows no NaN and no arrays)."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        alike = left.dtype.str == right.dtype.str and left.shape == right.shape
        return alike and left.tobytes() == right.tobytes()
    if dataclasses.is_dataclass(left):
        return all(same(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left))
    return left == right or (left != left and right != right)
