"""Mathematics with a short final answer: numbers, expressions, intervals, tuples.

A solution states its final answer in `\\boxed{...}`, after `####`, or after "answer is".
"""

from __future__ import annotations

from trd_ray.tasks.math.task import MathTask

__all__ = ["MathTask"]
