"""Token ids in as few bytes as they need, for records that cross between processes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def pack_ids(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """Ids [...] >= 0 as their lowest bytes [..., W], with the smallest W in 1 to 4 that holds all."""
    if ids.size and ids.min() < 0:
        raise ValueError(f"pack_ids: the smallest id is {ids.min()}; expected 0 or more")
    width = max(1, (int(ids.max(initial=0)).bit_length() + 7) // 8)
    little = np.ascontiguousarray(ids, dtype="<u4").view(np.uint8).reshape(*ids.shape, 4)
    return np.ascontiguousarray(little[..., :width])


def unpack_ids(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """What `pack_ids` packed."""
    little = np.zeros((*packed.shape[:-1], 4), dtype=np.uint8)
    little[..., : packed.shape[-1]] = packed
    return little.view("<i4")[..., 0].astype(np.int32)
