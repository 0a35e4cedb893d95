"""Reading problems, errors that name the row, and streams that can be resumed."""

from __future__ import annotations

import dataclasses
import gzip
import json
import time
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from trd_ray.config import ColumnsConfig
from trd_ray.data import (
    EndlessStream,
    FiniteStream,
    ProblemStream,
    SourceKind,
    StreamState,
    load_first_problems,
    load_problems,
)
from trd_ray.errors import CheckpointError, ConfigError, DataError, MissingDependencyError
from trd_ray.rows import read_rows
from trd_ray.tasks.arithmetic import Split
from trd_ray.types import Problem

COLUMNS = ColumnsConfig()
ROWS: list[dict[str, object]] = [
    {"id": f"p{i}", "problem": f"{i}+1", "answer": i + 1, "solution": f"{i}+1={i + 1}"} for i in range(7)
]


def write_lines(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(
    source: str, *, columns: ColumnsConfig = COLUMNS, need_reference: bool = False
) -> tuple[Problem, ...]:
    return read_rows(source, columns, task="arithmetic", need_reference=need_reference)


def error_of(tmp_path: Path, second_row: object, *, need_reference: bool = False) -> str:
    path = tmp_path / "rows.jsonl"
    line = second_row if isinstance(second_row, str) else json.dumps(second_row)
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        read(str(path), need_reference=need_reference)
    assert str(path) in str(error.value)
    assert "row 2" in str(error.value)
    assert "remedy" in str(error.value)
    return str(error.value)


EXPECTED = tuple(
    Problem(prompt_id=f"p{i}", problem=f"{i}+1", answer=str(i + 1), reference=f"{i}+1={i + 1}")
    for i in range(7)
)


def test_json_lines(tmp_path: Path) -> None:
    assert read(write_lines(tmp_path / "rows.jsonl", ROWS)) == EXPECTED


def test_gzipped_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    assert read(str(path)) == EXPECTED


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert read(str(path)) == EXPECTED


def test_fsspec_url(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://bucket/rows.jsonl", "wb") as file:
        file.write("".join(json.dumps(row) + "\n" for row in ROWS).encode())
    assert read("memory://bucket/rows.jsonl") == EXPECTED
    assert read(f"file://{write_lines(tmp_path / 'rows.jsonl', ROWS)}") == EXPECTED


def test_columns_are_mapped(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [{"q": "1+1", "a": "2", "s": "1+1=2", "n": 5}])
    columns = ColumnsConfig(problem="q", answer="a", solution="s", id="n")
    assert read(source, columns=columns) == (
        Problem(prompt_id="5", problem="1+1", answer="2", reference="1+1=2"),
    )


def test_row_numbers_serve_as_ids_and_count_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = json.dumps({"problem": "1+1", "answer": "2"})
    path.write_text(f"\ufeff{row}\n\n{row}\n", encoding="utf-8")
    assert [problem.prompt_id for problem in read(str(path))] == ["row-1", "row-3"]
    assert read(str(path))[0].reference is None


def test_numbers_as_answers(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"problem": "p", "answer": value} for value in (18, 18.0, 0.25, -3)]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    assert [problem.answer for problem in read(source)] == ["18", "18", "0.25", "-3"]


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ({"answer": "2"}, "problem", "data.columns.problem="),
        ({"problem": "1+1"}, "answer", "data.columns.answer="),
        ({"problem": None, "answer": "2"}, "problem", "lacks"),
        ({"problem": 5, "answer": "2"}, "problem", "wrong type"),
        ({"problem": " \n", "answer": "2"}, "problem", "empty"),
        ({"problem": "1+1", "answer": ""}, "answer", "empty"),
        ({"problem": "1+1", "answer": True}, "answer", "wrong type"),
        ({"problem": "1+1", "answer": ["2"]}, "answer", "wrong type"),
        ({"problem": "1+1", "answer": float("nan")}, "answer", "wrong type"),
        ({"problem": "1+1", "answer": "2", "solution": 3}, "solution", "wrong type"),
        ({"problem": "1+1", "answer": "2", "id": "p0"}, "id", "row 1"),
        ({"problem": "1+1", "answer": "2", "id": {}}, "id", "wrong type"),
        ({"problem": "a \ud800", "answer": "2"}, "problem", "Unicode"),
        ("{not json", "all", "not JSON"),
        ("[1, 2]", "all", "no JSON object"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, column: str, message: str) -> None:
    text = error_of(tmp_path, row)
    assert f"column {column!r}" in text
    assert message in text


def test_a_missing_reference_is_refused_only_where_it_is_needed(tmp_path: Path) -> None:
    text = error_of(tmp_path, {"problem": "1+1", "answer": "2"}, need_reference=True)
    assert "column 'solution'" in text
    assert read(str(tmp_path / "rows.jsonl"))[1].reference is None


def test_a_bad_parquet_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"problem": ["1+1", None], "answer": ["2", "3"]}), path)
    with pytest.raises(DataError, match="row 2, column 'problem'"):
        read(str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.jsonl", None),
        ("torn.jsonl.gz", gzip.compress(b'{"problem": "x", "answer": "y"}\n' * 100, mtime=0)[:-20]),
        ("other.jsonl.gz", b"not gzip"),
        ("other.parquet", b"not parquet"),
        ("empty.jsonl", b""),
        ("blank.jsonl", b"\n\n"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read(str(path))
    assert name in str(error.value)
    assert "data.train" in str(error.value)


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"problem": "a", "answer": "b"}\n{"problem": "\xff", "answer": "b"}\n')
    with pytest.raises(DataError, match="row 2"):
        read(str(path))


def test_unknown_protocols_and_names() -> None:
    with pytest.raises(DataError, match="nosuch"):
        read("nosuch://x/rows.jsonl")
    with pytest.raises(ConfigError, match="sample:gsm8k_train"):
        read("sample:gsm9k")
    with pytest.raises(ConfigError, match="testbed:held_out"):
        load_problems("testbed:test", COLUMNS, task="arithmetic", need_reference=False, seed=0)
    with pytest.raises(ConfigError, match=r"data\.task=arithmetic"):
        load_problems("testbed:train", COLUMNS, task="math", need_reference=False, seed=0)


def test_a_protocol_without_its_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def fail(*args: object, **kwargs: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "open", fail)
    with pytest.raises(MissingDependencyError, match="s3fs"):
        read("s3://bucket/rows.jsonl")


def test_the_gsm8k_sample() -> None:
    columns = ColumnsConfig(problem="question", answer="answer", solution="answer")
    train = read_rows("sample:gsm8k_train", columns, task="math", need_reference=True)
    test = read_rows("sample:gsm8k_test", columns, task="math", need_reference=True)
    assert (len(train), len(test)) == (200, 100)
    assert train[0].answer == "72"
    assert not any("<<" in (p.reference or "") or "####" in (p.reference or "") for p in (*train, *test))
    assert all(p.answer.replace(",", "").lstrip("-").isdigit() for p in (*train, *test))
    assert not {p.problem for p in train} & {p.problem for p in test}


def finite(num: int = 7, *, seed: int = 3) -> FiniteStream:
    return FiniteStream(EXPECTED[:num], seed=seed)


def test_each_epoch_holds_every_problem_once_in_another_order() -> None:
    stream = finite()
    taken = stream.take(21)
    epochs = [tuple(problem for problem, epoch in taken if epoch == which) for which in range(3)]
    assert [len(set(epoch)) for epoch in epochs] == [7, 7, 7]
    assert len(set(epochs)) == 3
    assert [epoch for _, epoch in taken] == sorted(epoch for _, epoch in taken)
    assert stream.num_problems == 7


def test_the_order_is_fixed_by_the_seed() -> None:
    assert finite().take(7) == finite().take(7)
    assert finite().take(7) != finite(seed=4).take(7)
    # Pinned, so that a run can be resumed by a later version of the code.
    assert [problem.prompt_id for problem, _ in finite().take(7)] == PINNED_ORDER


# The ids in order of sha256("3/0/<id>").
PINNED_ORDER = ["p6", "p5", "p2", "p0", "p1", "p3", "p4"]


@pytest.mark.parametrize("taken", [0, 1, 6, 7, 8, 14, 25])
def test_a_restored_finite_stream_goes_on_with_the_next_problem(taken: int) -> None:
    stream = finite()
    stream.take(taken)
    state = stream.state()
    expected = stream.take(10)
    stream.restore(state)
    assert stream.take(10) == expected
    fresh = finite()
    fresh.restore(state)
    assert fresh.take(10) == expected


@pytest.mark.parametrize("taken", [0, 1, 50])
def test_a_restored_endless_stream_goes_on_with_the_next_problem(taken: int) -> None:
    stream = EndlessStream("testbed:train", split=Split.TRAIN, seed=1)
    stream.take(taken)
    state = stream.state()
    assert state.kind is SourceKind.ENDLESS
    expected = stream.take(10)
    fresh = EndlessStream("testbed:train", split=Split.TRAIN, seed=1)
    fresh.take(3)
    fresh.restore(state)
    assert fresh.take(10) == expected
    assert fresh.state() == stream.state()


def test_restoring_an_endless_stream_is_quick() -> None:
    stream = EndlessStream("testbed:train", split=Split.TRAIN, seed=1)
    state = dataclasses.replace(stream.state(), position=20_000)
    start = time.monotonic()
    stream.restore(state)
    assert time.monotonic() - start < 10.0
    assert stream.state() == state


def restore_error(stream: ProblemStream, state: StreamState) -> str:
    before = stream.state()
    with pytest.raises(CheckpointError) as error:
        stream.restore(state)
    assert stream.state() == before
    return str(error.value)


def test_a_state_of_another_stream_is_refused() -> None:
    endless = EndlessStream("testbed:train", split=Split.TRAIN, seed=3)
    assert "remedy" in restore_error(finite(), finite(6).state())
    restore_error(finite(), finite(seed=4).state())
    restore_error(finite(), endless.state())
    restore_error(endless, EndlessStream("testbed:held_out", split=Split.HELD_OUT, seed=3).state())
    restore_error(finite(), dataclasses.replace(finite().state(), position=8))
    restore_error(finite(), dataclasses.replace(finite().state(), epoch=-1))


def test_a_changed_reference_is_other_data() -> None:
    changed = (dataclasses.replace(EXPECTED[0], reference="other"), *EXPECTED[1:])
    restore_error(FiniteStream(changed, seed=3), finite().state())


def test_sources_by_name(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", ROWS)
    stream = load_problems(source, COLUMNS, task="arithmetic", need_reference=True, seed=3)
    assert stream.take(7) == finite().take(7)
    endless = load_problems("testbed:train", COLUMNS, task="arithmetic", need_reference=True, seed=3)
    assert endless.num_problems is None
    assert all(problem.reference for problem, _ in endless.take(5))


def test_first_problems_keep_their_order(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", ROWS)

    def first(name: str, *, num: int, seed: int = 0) -> tuple[Problem, ...]:
        return load_first_problems(name, COLUMNS, task="arithmetic", need_reference=False, seed=seed, num=num)

    assert first(source, num=3) == EXPECTED[:3] == first(source, num=3, seed=9)
    assert first(source, num=99) == EXPECTED
    assert len(first("testbed:held_out", num=4)) == 4


@pytest.mark.parametrize("before", ["", "\ufeff", "\n  "])
def test_one_json_list_reads_like_lines(tmp_path: Path, before: str):
    path = tmp_path / "rows.json"
    path.write_text(before + json.dumps(ROWS, indent=2), encoding="utf-8")
    assert read(str(path)) == read(write_lines(tmp_path / "rows.jsonl", ROWS))


def test_a_json_list_names_the_object_that_is_wrong(tmp_path: Path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROWS[0], "text"]), encoding="utf-8")
    with pytest.raises(DataError, match="row 2"):
        read(str(path))
    path.write_text("[{]", encoding="utf-8")
    with pytest.raises(DataError, match="the list"):
        read(str(path))
