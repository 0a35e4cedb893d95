"""Seeds derived from names, so that a resumed run draws what the uninterrupted one would have."""

from __future__ import annotations

import hashlib

MAX_SEED = 2**31


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**31) that depends on `seed` and every name, stable between machines."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % MAX_SEED
