"""The arithmetic testbed: a pair of tiny models that show in minutes what large ones show in days.

A student that makes mistakes in the middle of well-formed solutions, and a teacher that solves the
problems and rewrites any attempt at them. Both are shipped; `build` makes them again from nothing,
`check` measures them.

What they are not, for whoever draws conclusions from them:

- The student was taught to slip. Most of its errors are probability that it puts on a dropped carry,
  a misread sign and the like, beside the right result; at temperature 0 it solves twice as many
  problems as at temperature 1. A method that does no more than sharpen it gains a lot.
- A problem has exactly one right solution. So a right rewrite keeps the right steps of necessity,
  and a teacher may find it without a look at the initial solution.
- Student and teacher come from the same half-trained model and share its habits.
"""

from __future__ import annotations

from trd_ray.testbed.paths import student_path, teacher_path

__all__ = ["student_path", "teacher_path"]
