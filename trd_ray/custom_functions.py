"""Functions of the user's own in a method: loaded where they are needed, and tried before a run starts."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch

from trd_ray.choices import Divergence, RefineGate
from trd_ray.config import MethodConfig
from trd_ray.extensions import BROKEN, load_attribute, refused
from trd_ray.losses.custom import custom_terms
from trd_ray.losses.options import DivergenceFunction
from trd_ray.refine_gate import gate_function

_KEY = "method.divergence_function"
_CONTRACT = "values [N] in nats from log-probabilities of teacher and student, [N, V] each"
_TOLERANCE = 1e-4


def check_functions(method: MethodConfig) -> None:
    """Load the functions that a method names, and try what can be tried. Raises `ConfigError`."""
    if method.divergence is Divergence.CUSTOM:
        divergence_function(method.divergence_function)
    if method.refine_gate.kind is RefineGate.CUSTOM:
        gate_function(method.refine_gate.function)


@lru_cache(maxsize=8)
def divergence_function(path: str) -> DivergenceFunction:
    """The user's divergence, after a trial on made-up distributions.

    Raises `ConfigError` if it is no function of two tensors, returns another shape or numbers that are not
    finite, does not lead back to the student, or lets one token's value depend on another token.
    """
    found = load_attribute(path, key=_KEY)
    if not callable(found):
        raise refused(_KEY, f"{path}: {found!r}", f"a function: {_CONTRACT}", "name the function")
    function = cast(DivergenceFunction, found)
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    log_q, log_p = torch.log_softmax(logits, dim=-1)
    try:
        values, slope = custom_terms(log_q.clone(), log_p, function)
        alone, _ = custom_terms(log_q[:1].clone(), log_p[:1], function)
    except BROKEN as error:
        raise refused(
            _KEY, f"{path}: {type(error).__name__}: {error}", _CONTRACT, "mend the function"
        ) from error
    if not (values.isfinite().all() and slope.isfinite().all()):
        raise refused(
            _KEY, f"{path}: values {values.tolist()}, or their gradients, are not finite",
            "finite numbers for distributions without zeros", "mend the function",
        )  # fmt: skip
    if abs(float(values[0] - alone[0])) > _TOLERANCE:
        raise refused(
            _KEY, f"{path}: a token has the value {float(values[0]):g} among others and "
            f"{float(alone[0]):g} alone", "one value a token, of its own row", "sum over the last axis only",
        )  # fmt: skip
    return function
