"""The strings under the fields of dataclasses, for pages that are made from the code."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap


def field_descriptions(cls: type) -> dict[str, str]:
    """By field name, on one line each; fields without one are left out."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    found: dict[str, str] = {}
    for field, following in itertools.pairwise(node.body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            found[field.target.id] = " ".join(following.value.value.split())
    return found
