"""The arithmetic testbed: a pair of tiny models that show in minutes what large ones show in days.

A student that makes mistakes in the middle of well-formed solutions, and a teacher that solves the
problems and rewrites any attempt at them. Both are shipped; `build` makes them again from nothing
and `check` measures them.
"""

from __future__ import annotations

from trd_ray.testbed.paths import student_path, teacher_path

__all__ = ["student_path", "teacher_path"]
