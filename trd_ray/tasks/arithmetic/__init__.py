"""The arithmetic testbed's task: sums in steps, generated without end, graded step by step."""

from __future__ import annotations

from trd_ray.tasks.arithmetic.grader import ArithmeticTask
from trd_ray.tasks.arithmetic.problems import Split, generate_problems, solve, split_of

__all__ = ["ArithmeticTask", "Split", "generate_problems", "solve", "split_of"]
