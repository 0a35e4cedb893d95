"""Names, shapes and the checksum of a set of weights, the same on both ends of a push.

The learner and every generator describe the weights under their Hugging Face names. A
`WeightManifest` says what a push holds before its first byte is sent; `checksum_named` says
whether two sides hold the same weights. Needs torch and xxhash only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod

import torch
import xxhash

_CHUNK_NUMEL = 1 << 17
"""Elements hashed at once: the copy that canonicalises them stays in a core's own cache."""
_DEVICE_NUMEL = 1 << 22
"""Elements brought from an accelerator at once."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of a push, as it travels. Asked for each tensor of each push: what it computes, it keeps."""

    name: str
    dtype: str
    """A torch dtype without its prefix, for example `bfloat16`."""
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"TensorSpec: {self.name} has dtype {self.dtype!r}; expected a torch dtype name")

    @cached_property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @cached_property
    def numel(self) -> int:
        return prod(self.shape)

    @cached_property
    def num_bytes(self) -> int:
        return self.numel * self.torch_dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightManifest:
    """What a push holds, in the order in which it is sent."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.tensors]
        if len(set(names)) != len(names):
            doubled = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"WeightManifest: names occur twice: {doubled}")

    @classmethod
    def of(
        cls, named_tensors: Iterable[tuple[str, torch.Tensor]], *, dtype: str | None = None
    ) -> WeightManifest:
        """Describe tensors without reading their values.

        Args:
            dtype: the dtype on the wire if it is not that of each tensor.
        """
        return cls(
            tensors=tuple(
                TensorSpec(name=name, dtype=dtype or dtype_name(tensor.dtype), shape=tuple(tensor.shape))
                for name, tensor in named_tensors
            )
        )

    @property
    def text(self) -> str:
        """All that it says, one line a tensor."""
        return "".join(f"{spec.name}\0{spec.dtype}\0{list(spec.shape)}\n" for spec in self.tensors)

    @property
    def num_parameters(self) -> int:
        return sum(spec.numel for spec in self.tensors)

    @property
    def num_bytes(self) -> int:
        return sum(spec.num_bytes for spec in self.tensors)


def dtype_name(dtype: torch.dtype) -> str:
    """Return `float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


class WeightChecksum:
    """The checksum of named tensors that arrive one by one, in any order.

    SHA-256 over each name in sorted order with its dtype, its shape and the XXH3-128 of its bytes in
    canonical form (see `copy_canonical`). XXH3 reads ten times as fast as SHA-256, faster than bytes travel
    between processes; it makes no claim against forgers, but a change that nobody chose escapes its 128 bits
    with a probability of about 3e-39.
    """

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add one tensor of any shape, device and values.

        Raises:
            ValueError: the name was added before.
        """
        self._add(name, tensor, _canonical_chunks(tensor))

    def add_canonical(self, name: str, tensor: torch.Tensor) -> None:
        """Add, as it is, a contiguous tensor on the CPU that `copy_canonical` wrote. Raises as `add` does."""
        self._add(name, tensor, [tensor.detach().reshape(-1)])

    def _add(self, name: str, tensor: torch.Tensor, chunks: Iterable[torch.Tensor]) -> None:
        if name in self._digests:
            raise ValueError(f"WeightChecksum: {name} was added twice")
        head = f"{name}\0{dtype_name(tensor.dtype)}\0{list(tensor.shape)}\0".encode()
        digest = xxhash.xxh3_128()
        for chunk in chunks:
            digest.update(chunk.view(torch.uint8).numpy().data)
        self._digests[name] = head + digest.digest()

    def digest(self) -> bytes:
        """Return the 32 bytes of the checksum of all tensors so far."""
        total = hashlib.sha256()
        for name in sorted(self._digests):
            total.update(self._digests[name])
        return total.digest()

    def hexdigest(self) -> str:
        return self.digest().hex()


class PushChecksum:
    """The checksum of a push on its way: XXH3-128 of its manifest and of all bytes in their order.

    It finds damage as `WeightChecksum` does. How the bytes are cut into calls of `add` does not matter.
    """

    SIZE = 16
    """Bytes of a digest."""

    def __init__(self, manifest: WeightManifest) -> None:
        self._hash = xxhash.xxh3_128(manifest.text.encode())

    def add(self, raw: torch.Tensor) -> None:
        """Add the next bytes: a flat uint8 tensor on the CPU."""
        self._hash.update(raw.numpy().data)

    def digest(self) -> bytes:
        """Return the checksum of all bytes so far."""
        return self._hash.digest()


def copy_canonical(source: torch.Tensor, into: torch.Tensor) -> None:
    """Copy values of one dtype into a tensor of the same shape and dtype, in canonical form.

    Zeros of either sign and subnormal numbers become +0.0: no matrix product tells them apart, so
    an engine that keeps its weights packed can only give them back as such.
    """
    if source.dtype.is_floating_point and source.device.type == "cpu":
        # One pass over the values, nearly as fast as a plain copy.
        torch.ops.aten.hardshrink.out(source.detach(), _largest_subnormal(source.dtype), out=into)
    else:
        into.copy_(source.detach())
        if source.dtype.is_floating_point:
            into.masked_fill_(into.abs() < torch.finfo(source.dtype).tiny, 0.0)


@cache
def _largest_subnormal(dtype: torch.dtype) -> float:
    limits = torch.finfo(dtype)
    return limits.tiny * (1 - limits.eps)


def checksum_named(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the checksum of named tensors as 64 hexadecimal digits; see `WeightChecksum`.

    The order of `tensors` does not matter. A tied output head is given once, under the name of
    the embedding, as `named_parameters()` does.
    """
    checksum = WeightChecksum()
    for name, tensor in tensors:
        checksum.add(name, tensor)
    return checksum.hexdigest()


def _canonical_chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the flat values on the CPU in pieces, in canonical form; a piece is valid until the next."""
    flat = tensor.detach().contiguous().reshape(-1)
    scratch = torch.empty(min(flat.numel(), _CHUNK_NUMEL), dtype=flat.dtype)
    for piece in flat.split(_DEVICE_NUMEL):
        for chunk in piece.cpu().split(_CHUNK_NUMEL):
            canonical = scratch[: chunk.numel()]
            copy_canonical(chunk, canonical)
            yield canonical
