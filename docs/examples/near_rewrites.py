"""A refinement gate: only rewrites that stay close to the student's own answer, and are right."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

from trd_ray.refine_gate import Candidate

MOST_CHANGED = 0.1
"""Share of the characters."""


def near_and_right(candidate: Candidate) -> bool:
    """True lets the rewrite through; what it refuses is counted as `gate_function`."""
    before = candidate.rollout.completion.text
    changed = Levenshtein.normalized_distance(before, candidate.text)
    return candidate.grade.correct and changed <= MOST_CHANGED
