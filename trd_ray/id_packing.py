"""Token ids in as few bits as they need, for records that cross between processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedIds:
    """Ids 0 or more of any shape, N in all. 18 bits an id for a vocabulary of 151,936 tokens."""

    shape: tuple[int, ...]
    low: npt.NDArray[np.uint8]
    """[N, W] the W lowest bytes of each id that are used in full, lowest first."""
    planes: npt.NDArray[np.uint8]
    """[B, ceil(N / 8)] the B bits above them, one plane a bit, eight ids a byte."""


def pack_ids(ids: npt.NDArray[np.int32]) -> PackedIds:
    """Loses nothing. Raises `ValueError` for a negative id."""
    if ids.size and ids.min() < 0:
        raise ValueError(f"pack_ids: the smallest id is {ids.min()}; expected 0 or more")
    num_bytes, num_planes = divmod(int(ids.max(initial=0)).bit_length(), 8)
    flat = np.ascontiguousarray(ids, dtype="<u4").reshape(-1)
    planes = [np.packbits((flat >> (8 * num_bytes + bit)) & 1 != 0) for bit in range(num_planes)]
    return PackedIds(
        shape=ids.shape,
        low=np.ascontiguousarray(flat.view(np.uint8).reshape(-1, 4)[:, :num_bytes]),
        planes=np.stack(planes) if planes else np.zeros((0, 0), dtype=np.uint8),
    )


def unpack_ids(packed: PackedIds) -> npt.NDArray[np.int32]:
    """What `pack_ids` packed."""
    num, num_bytes = packed.low.shape
    little = np.zeros((num, 4), dtype=np.uint8)
    little[:, :num_bytes] = packed.low
    ids = little.view("<u4")[:, 0]
    for bit, plane in enumerate(packed.planes):
        ids |= np.unpackbits(plane, count=num).astype(np.uint32) << (8 * num_bytes + bit)
    return ids.astype(np.int32).reshape(packed.shape)
