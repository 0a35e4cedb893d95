"""Frozen records to Arrow tables and back, exactly, from the type hints of their dataclasses.

    int, float, bool, str      int64, float64, bool, string
    StrEnum                    string, its value
    X | None                   a null
    numpy array                struct of dtype, shape and the bytes; ids in as few bits as they need
    dataclass                  struct of its fields
    A | B of dataclasses       struct with one member a class, all null but one

Nothing is pickled, so a table is safe to read from anywhere, and readable by any Parquet reader. Arrays
come back read-only, as they do from another process.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trd_ray.id_packing import PackedIds, pack_ids, unpack_ids

T = TypeVar("T")
V = TypeVar("V")
R = TypeVar("R")

_RECORD_KEY = b"trd_ray.record"
_NUMBER_KINDS = "biuf"
_PLAIN: dict[type, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.large_string(),
}
_ARRAY = pa.struct(
    [
        pa.field("dtype", pa.string()),
        pa.field("shape", pa.list_(pa.int64())),
        pa.field("packed_bits", pa.int8()),
        pa.field("data", pa.large_binary()),
    ]
)


class RecordSchema(Generic[T]):
    """The table of one record class: a column a field, a row a record."""

    def __init__(self, record: type[T]) -> None:
        """Raises `TypeError` naming the field whose type hint has no column type."""
        self._codec = _struct_of(record)
        self.schema = pa.schema(list(self._codec.arrow), metadata={_RECORD_KEY: record.__name__})

    def to_table(self, records: Sequence[T]) -> pa.Table:
        """One row a record, in their order. Raises `TypeError` for an array that is not of numbers."""
        rows = [self._codec.encode(record) for record in records]
        columns = [pa.array([row[field.name] for row in rows], type=field.type) for field in self.schema]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def from_table(self, table: pa.Table) -> tuple[T, ...]:
        """What `to_table` was given.

        Raises `ValueError` if the table is of another record or version, or a record refuses its fields.
        """
        if not table.schema.equals(self.schema):
            raise ValueError(f"the columns are not those of this version: {_difference(table, self.schema)}")
        return tuple(cast(T, self._codec.decode(row)) for row in table.to_pylist())


class _Codec(Protocol[V, R]):
    """Between a field's value and what Arrow takes for it."""

    @property
    def arrow(self) -> pa.DataType: ...

    def encode(self, value: V) -> R: ...

    def decode(self, raw: R) -> V: ...


_AnyCodec = _Codec[Any, Any]


@dataclass(frozen=True, kw_only=True)
class _PlainCodec:
    arrow: pa.DataType

    def encode(self, value: object) -> object:
        return value

    def decode(self, raw: object) -> object:
        return raw


@dataclass(frozen=True, kw_only=True)
class _EnumCodec:
    kind: type[StrEnum]

    @property
    def arrow(self) -> pa.DataType:
        return pa.string()

    def encode(self, value: StrEnum) -> str:
        return value.value

    def decode(self, raw: str) -> StrEnum:
        return self.kind(raw)


class _ArrayCodec:
    arrow = _ARRAY

    def encode(self, value: npt.NDArray[np.generic]) -> dict[str, object]:
        if value.dtype.kind not in _NUMBER_KINDS:
            raise TypeError(f"an array of dtype {value.dtype} has no column type; expected numbers")
        packed_bits, data = None, b""
        if value.dtype == np.int32 and value.size and value.min() >= 0:
            packed = pack_ids(cast(npt.NDArray[np.int32], value))
            packed_bits = 8 * packed.low.shape[1] + len(packed.planes)
            data = packed.low.tobytes() + packed.planes.tobytes()
        else:
            data = value.tobytes()
        return {
            "dtype": value.dtype.str,
            "shape": list(value.shape),
            "packed_bits": packed_bits,
            "data": data,
        }

    def decode(self, raw: Mapping[str, Any]) -> npt.NDArray[np.generic]:
        shape, data = tuple(raw["shape"]), raw["data"]
        if raw["packed_bits"] is None:
            return np.frombuffer(data, dtype=np.dtype(raw["dtype"])).reshape(shape)
        num = math.prod(shape)
        num_bytes, num_planes = divmod(raw["packed_bits"], 8)
        flat = np.frombuffer(data, dtype=np.uint8)
        ids = unpack_ids(
            PackedIds(
                shape=shape,
                low=flat[: num * num_bytes].reshape(num, num_bytes),
                planes=flat[num * num_bytes :].reshape(num_planes, -1) if num_planes else flat[:0],
            )
        )
        ids.flags.writeable = False
        return ids


@dataclass(frozen=True, kw_only=True)
class _OptionalCodec:
    inner: _AnyCodec

    @property
    def arrow(self) -> pa.DataType:
        return self.inner.arrow

    def encode(self, value: object) -> object:
        return None if value is None else self.inner.encode(value)

    def decode(self, raw: object) -> object:
        return None if raw is None else self.inner.decode(raw)


@dataclass(frozen=True, kw_only=True)
class _StructCodec:
    record: type
    fields: Mapping[str, _AnyCodec]

    @property
    def arrow(self) -> pa.DataType:
        return pa.struct([pa.field(name, codec.arrow) for name, codec in self.fields.items()])

    def encode(self, value: object) -> dict[str, object]:
        return {name: codec.encode(getattr(value, name)) for name, codec in self.fields.items()}

    def decode(self, raw: Mapping[str, object]) -> object:
        values = {}
        for name, codec in self.fields.items():
            if raw[name] is None and not isinstance(codec, _OptionalCodec):
                raise ValueError(f"{self.record.__name__}.{name} is null; expected a value")
            values[name] = codec.decode(raw[name])
        return self.record(**values)


@dataclass(frozen=True, kw_only=True)
class _UnionCodec:
    members: tuple[_StructCodec, ...]

    @property
    def arrow(self) -> pa.DataType:
        return pa.struct([pa.field(member.record.__name__, member.arrow) for member in self.members])

    def encode(self, value: object) -> dict[str, object]:
        return {
            member.record.__name__: member.encode(value) if type(value) is member.record else None
            for member in self.members
        }

    def decode(self, raw: Mapping[str, Mapping[str, object] | None]) -> object:
        found = [(member, part) for member in self.members if (part := raw[member.record.__name__])]
        if len(found) != 1:
            names = ", ".join(member.record.__name__ for member in self.members)
            raise ValueError(f"{len(found)} of {names} have a value; expected one")
        member, part = found[0]
        return member.decode(part)


def _struct_of(record: type) -> _StructCodec:
    if not dataclasses.is_dataclass(record) or not dataclasses.fields(record):
        raise TypeError(f"{record.__name__} has no column type; expected a dataclass with fields")
    hints = typing.get_type_hints(record)
    return _StructCodec(
        record=record,
        fields={
            field.name: _codec_of(hints[field.name], where=f"{record.__name__}.{field.name}")
            for field in dataclasses.fields(record)
        },
    )


def _codec_of(hint: object, *, where: str) -> _AnyCodec:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _union_of(typing.get_args(hint), where=where)
    if origin is np.ndarray:
        return _ArrayCodec()
    if isinstance(hint, type):
        if hint in _PLAIN:
            return _PlainCodec(arrow=_PLAIN[hint])
        if issubclass(hint, StrEnum):
            return _EnumCodec(kind=hint)
        if dataclasses.is_dataclass(hint):
            return _struct_of(hint)
    raise TypeError(f"{where} has the type {hint}, which has no column type")


def _union_of(arguments: tuple[object, ...], *, where: str) -> _AnyCodec:
    kinds = [kind for kind in arguments if kind is not type(None)]
    inner = (
        _codec_of(kinds[0], where=where)
        if len(kinds) == 1
        else _UnionCodec(members=tuple(_member_of(kind, where=where) for kind in kinds))
    )
    return inner if len(kinds) == len(arguments) else _OptionalCodec(inner=inner)


def _member_of(kind: object, *, where: str) -> _StructCodec:
    codec = _codec_of(kind, where=where)
    if not isinstance(codec, _StructCodec):
        raise TypeError(f"{where}: {kind} in a union has no column type; expected dataclasses")
    return codec


def _difference(table: pa.Table, schema: pa.Schema) -> str:
    """The first column that differs, in words."""
    for field in schema:
        index = table.schema.get_field_index(field.name)
        if index < 0:
            return f"{field.name} is missing"
        if table.schema.field(index).type != field.type:
            return f"{field.name} is {table.schema.field(index).type}, not {field.type}"
    return f"{', '.join(sorted(set(table.schema.names) - set(schema.names))) or 'their order'} is unexpected"
