"""Per-token divergences between teacher and student: the one copy of the loss.

- `options.py`     what may be asked for, checked once
- `divergences.py` the divergences, from `[N, V]` logits
- `chunked.py`     the same values and gradients from hidden states, without `[N, V]`
- `reference.py`   the same again in float64, one token at a time, written to be read
"""

from trd_ray.losses.chunked import chunked_token_divergence
from trd_ray.losses.divergences import token_divergence
from trd_ray.losses.options import DivergenceOptions

__all__ = ["DivergenceOptions", "chunked_token_divergence", "token_divergence"]
