"""Records go to Parquet and come back as they were."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.record_strategies import same, trajectories
from tests.unit.trajectory_records import trajectory
from trd_ray.record_schema import RecordSchema
from trd_ray.types import TopKTargets, Trajectory

SCHEMA = RecordSchema(Trajectory)


def through_parquet(schema, records):
    file = io.BytesIO()
    pq.write_table(schema.to_table(records), file)
    return schema.from_table(pq.read_table(file))


@settings(deadline=None)
@given(st.lists(trajectories(), max_size=3))
def test_any_trajectories_come_back_as_they_were(records):
    back = through_parquet(SCHEMA, records)
    assert len(back) == len(records)
    assert all(same(a, b) for a, b in zip(back, records, strict=True))


class Colour(StrEnum):
    NONE = ""
    RED = "red"


@dataclass(frozen=True)
class Left:
    x: float


@dataclass(frozen=True)
class Right:
    x: float


@dataclass(frozen=True)
class Record:
    number: int
    share: float
    flag: bool
    colour: Colour
    side: Left | Right
    values: npt.NDArray[np.generic]
    note: str | None = None


RECORD = Record(
    number=-(2**62), share=-0.0, flag=False, colour=Colour.NONE, side=Right(x=1.5), values=np.zeros(0)
)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((0, 7), dtype=np.float16),
        np.asarray(3.5),
        np.asarray([[1, 2], [3, 4]], dtype=np.int64).T,
        np.arange(6, dtype=">i4"),
        np.asarray([-1, 5], dtype=np.int32),
        np.asarray([[0, 0, 0]], dtype=np.int32),
        np.asarray([0x7FC0, 0xFFFF], dtype=np.uint16),
        np.asarray([0x7FC00001, 0xFFC00000], dtype=np.uint32).view(np.float32),
        np.asarray([True, False]),
    ],
)  # fmt: skip
def test_an_array_keeps_type_shape_and_bits(values):
    (back,) = through_parquet(RecordSchema(Record), [replace(RECORD, values=values)])
    assert back.values.dtype == values.dtype and back.values.shape == values.shape
    assert back.values.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"share": math.nan},
        {"share": -math.inf},
        {"flag": True},
        {"side": Left(x=0.0)},
        {"note": ""},
        {"note": "ü\0"},
    ],
)
def test_plain_fields_keep_type_and_value(change):
    record = replace(RECORD, **change)
    (back,) = through_parquet(RecordSchema(Record), [record])
    assert same(back, record)


def test_zero_keeps_its_sign():
    (back,) = through_parquet(RecordSchema(Record), [RECORD])
    assert math.copysign(1.0, back.share) == -1.0


def test_token_ids_take_no_more_bits_than_the_largest_needs():
    # 151,935 needs 18 bits: 1000 ids are 2,250 bytes, not 4,000.
    ids = np.full(1000, 151_935, dtype=np.int32)
    (row,) = SCHEMA.to_table([replace(trajectory(correct=True), token_ids=ids)]).to_pylist()
    assert row["token_ids"]["packed_bits"] == 18
    assert len(row["token_ids"]["data"]) == 1000 * 18 // 8


def test_arrays_come_back_read_only():
    (back,) = through_parquet(SCHEMA, [trajectory(correct=True)])
    with pytest.raises(ValueError, match="read-only"):
        back.token_ids[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        back.rollout.completion.logprobs[0] = 1


def test_objects_are_refused_and_not_pickled():
    with pytest.raises(TypeError, match="dtype object"):
        RecordSchema(Record).to_table([replace(RECORD, values=np.asarray([{}]))])


def test_a_type_without_column_is_refused_by_its_field():
    @dataclass(frozen=True)
    class Broken:
        parts: dict

    with pytest.raises(TypeError, match=r"Broken\.parts"):
        RecordSchema(Broken)


def test_a_table_of_another_version_is_refused_by_its_column():
    table = SCHEMA.to_table([trajectory(correct=True)])
    with pytest.raises(ValueError, match="num_kept is missing"):
        SCHEMA.from_table(table.drop_columns(["num_kept"]))
    with pytest.raises(ValueError, match="extra is unexpected"):
        SCHEMA.from_table(table.append_column("extra", table["text"]))


def test_a_null_where_a_value_must_be_is_refused_by_its_field():
    table = SCHEMA.to_table([trajectory(correct=True)])
    index = table.schema.get_field_index("text")
    nulls = table.set_column(index, table.schema.field(index), pa.nulls(1, pa.large_string()))
    with pytest.raises(ValueError, match=r"Trajectory\.text is null"):
        SCHEMA.from_table(nulls)


def test_a_record_that_does_not_fit_together_is_refused():
    good = replace(
        trajectory(correct=True, text="ab"),
        target=TopKTargets(
            topk_ids=np.zeros((2, 1), np.int32), topk_logprobs=np.zeros((2, 1), np.float32),
            token_logprobs=np.zeros(2, np.float32),
        ),
    )  # fmt: skip
    one = SCHEMA.to_table([good])
    other = SCHEMA.to_table([trajectory(correct=True, text="abc")])
    index = one.schema.get_field_index("target")
    with pytest.raises(ValueError, match="2 positions for 3 tokens"):
        SCHEMA.from_table(other.set_column(index, one.schema.field(index), one["target"]))
