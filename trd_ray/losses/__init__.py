"""The loss of a token: the one copy of its mathematics.

- `options.py`     what may be asked for, checked once
- `entries.py`     the divergences, an entry of the vocabulary at a time, with their derivatives
- `custom.py`      the same for a function of the user's own, by autograd
- `supports.py`    sums of those over the teacher's top k
- `estimators.py`  what looks at the sampled token only: KL estimates, policy gradients
- `rows.py`        all terms of a few tokens from their logits, and the gradient to the logits
- `divergences.py` `token_divergence`, from `[N, V]` logits
- `products.py`    matrix products in float32, scale and soft-cap of logits
- `objective.py`   the records that go into and come out of an objective
- `chunked.py`     the same values and gradients from hidden states, without `[N, V]`
- `reference.py`   the same again in float64, one token at a time, written to be read
"""

from trd_ray.losses.chunked import chunked_objective, chunked_token_divergence
from trd_ray.losses.divergences import token_divergence
from trd_ray.losses.estimators import clipped_policy_loss, sampled_divergence
from trd_ray.losses.objective import (
    HiddenTeacher,
    LogitTransform,
    ObjectiveOutput,
    TeacherSide,
    TokenBatch,
    TopKTeacher,
)
from trd_ray.losses.options import DivergenceOptions, GateOptions, ObjectiveOptions, RewardOptions

__all__ = [
    "DivergenceOptions",
    "GateOptions",
    "HiddenTeacher",
    "LogitTransform",
    "ObjectiveOptions",
    "ObjectiveOutput",
    "RewardOptions",
    "TeacherSide",
    "TokenBatch",
    "TopKTeacher",
    "chunked_objective",
    "chunked_token_divergence",
    "clipped_policy_loss",
    "sampled_divergence",
    "token_divergence",
]
