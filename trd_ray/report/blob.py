"""Packs columns into text that a page carries and its script unpacks.

    base64(zlib(header length | header | padding | arrays))

The header is JSON: `values`, plain columns as they are, and `arrays`, for each numeric column its type,
offset and length. Little-endian; offsets count from the first array and are multiples of 8.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_TYPES = {"int8", "uint8", "int16", "uint16", "int32", "uint32", "float32"}
"""Those that a browser has typed arrays for; `half` values travel as uint16."""
_LEVEL = 6


def pack(values: Mapping[str, object], arrays: Mapping[str, Array]) -> str:
    """ASCII without `<`, `>` or `&`. Raises `ValueError` for an array type that the page cannot read."""
    table: dict[str, tuple[str, int, int]] = {}
    parts: list[bytes] = []
    offset = 0
    for name, array in arrays.items():
        if array.dtype.name not in _TYPES or array.ndim != 1:
            raise ValueError(f"pack: {name} is {array.dtype.name} {array.shape}; expected one of {_TYPES}")
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        table[name] = (array.dtype.name, offset, len(array))
        data += b"\0" * (-len(data) % 8)
        parts.append(data)
        offset += len(data)
    header = json.dumps({"values": values, "arrays": table}, separators=(",", ":")).encode()
    header += b" " * (-(len(header) + 4) % 8)
    raw = b"".join([struct.pack("<I", len(header)), header, *parts])
    return base64.b64encode(zlib.compress(raw, _LEVEL)).decode("ascii")


def unpack(text: str) -> tuple[dict[str, object], dict[str, Array]]:
    """What `pack` was given."""
    raw = zlib.decompress(base64.b64decode(text))
    (length,) = struct.unpack_from("<I", raw)
    header = json.loads(raw[4 : 4 + length])
    start = 4 + length
    arrays = {
        name: np.frombuffer(raw, dtype=np.dtype(dtype).newbyteorder("<"), count=count, offset=start + offset)
        for name, (dtype, offset, count) in header["arrays"].items()
    }
    return header["values"], arrays


def halves(values: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
    """The bits of float16, which a script turns into numbers."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).view(np.uint16)
