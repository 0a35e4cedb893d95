"""The durable log: whole segments or none, in order, with targets; damage is named."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.record_strategies import same, trajectories
from tests.unit.trajectory_records import refined, trajectory
from trd_ray import buffer_log
from trd_ray.buffer_log import BufferLog, read_records, run_log, write_records
from trd_ray.config import PipelineConfig
from trd_ray.errors import ConfigError, DataError, MissingDependencyError, RunFailedError
from trd_ray.outcomes import RejectReason
from trd_ray.recorder import Recorder
from trd_ray.run_folder import RunFolder
from trd_ray.trajectory_log import logged_steps
from trd_ray.types import TeacherHidden


def scored(text: str = "abc", *, width: int = 4, prompt_id: str = "p"):
    hidden = np.random.default_rng(len(text)).normal(size=(len(text), width)).astype(np.float32)
    return dataclasses.replace(
        trajectory(correct=True, text=text, prompt_id=prompt_id), target=TeacherHidden(hidden=hidden)
    )


@pytest.fixture(params=["folder", "memory URL"])
def log(request, tmp_path: Path):
    if request.param == "folder":
        yield BufferLog(str(tmp_path / "log [1]"))
        return
    yield BufferLog(f"memory://{tmp_path.name}/log")
    memory = fsspec.filesystem("memory")
    if memory.exists(f"/{tmp_path.name}"):
        memory.rm(f"/{tmp_path.name}", recursive=True)


def test_steps_come_back_in_their_order_on_any_file_system(log: BufferLog):
    assert log.steps() == ()
    written = {step: tuple(scored(f"{step}{name}", prompt_id=name) for name in "zab") for step in (10, 9, 1)}
    for step, records in written.items():
        log.write_step(records, learner_step=step)
    assert log.steps() == (1, 9, 10)
    for step, records in written.items():
        back = log.read_step(step)
        assert [t.prompt.problem.prompt_id for t in back] == ["z", "a", "b"]
        assert all(same(a, b) for a, b in zip(back, records, strict=True))


def test_rejected_trajectories_are_there_without_their_targets(log: BufferLog):
    refused = refined("ab", "cd", gate_reason=RejectReason.REFINEMENT_WRONG)
    target = TeacherHidden(hidden=np.ones((2, 4), dtype=np.float32))
    log.write_step([dataclasses.replace(refused, target=target), scored()], learner_step=1)
    first, second = log.read_step(1)
    assert same(first, refused) and first.target is None
    assert isinstance(second.target, TeacherHidden)


def test_a_step_is_read_back_whole_from_many_row_groups(log: BufferLog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(buffer_log, "_ROW_GROUP_BYTES", 100)
    records = [scored("x" * length) for length in (1, 9, 2, 3, 12)]
    log.write_step(records, learner_step=1)
    assert all(same(a, b) for a, b in zip(log.read_step(1), records, strict=True))


def test_row_groups_are_bounded_by_the_bytes_of_their_targets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(buffer_log, "_ROW_GROUP_BYTES", 100)
    # 4 floats of 4 bytes a token: 16, 144, 32, 48 and 192 bytes.
    groups = buffer_log._groups([scored("x" * length) for length in (1, 9, 2, 3, 12)])
    assert [[len(t.token_ids) for t in group] for group in groups] == [[1], [9], [2, 3], [12]]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(trajectories(), max_size=2))
def test_records_of_a_checkpoint_come_back_as_they_were(tmp_path: Path, records):
    write_records(tmp_path / "buffer.parquet", records)
    back = read_records(tmp_path / "buffer.parquet")
    assert len(back) == len(records)
    assert all(same(a, b) for a, b in zip(back, records, strict=True))


def test_an_empty_step_is_a_segment(log: BufferLog):
    log.write_step([], learner_step=3)
    assert log.steps() == (3,) and log.read_step(3) == ()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_a_truncated_segment_is_refused_by_its_name(tmp_path: Path, kept: float):
    log = BufferLog(str(tmp_path))
    path = Path(log.write_step([scored()], learner_step=2))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=r"(?s)damaged.*step_000002\.parquet.*move this file"):
        log.read_step(2)


def test_a_flipped_bit_in_a_target_is_refused(tmp_path: Path):
    log = BufferLog(str(tmp_path))
    path = Path(log.write_step([scored("x" * 200, width=16)], learner_step=1))
    row_group = pq.read_metadata(path).row_group(0)
    columns = [row_group.column(i) for i in range(row_group.num_columns)]
    (hidden,) = [c for c in columns if c.path_in_schema == "target.TeacherHidden.hidden.data"]
    content = bytearray(path.read_bytes())
    content[hidden.data_page_offset + hidden.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"step_000001\.parquet"):
        log.read_step(1)


def test_another_parquet_file_is_refused(tmp_path: Path):
    from trd_ray.trajectory_log import write_trajectories

    write_trajectories(tmp_path, [scored()], learner_step=1)
    with pytest.raises(DataError, match=r"(?s)step_000001\.parquet.*prompt is missing"):
        BufferLog(str(tmp_path)).read_step(1)


def test_a_missing_segment_is_refused_by_its_name(log: BufferLog):
    with pytest.raises(DataError, match=r"(?s)missing.*step_000005\.parquet"):
        log.read_step(5)


def test_a_missing_file_of_a_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"(?s)buffer\.parquet.*older checkpoint"):
        read_records(tmp_path / "buffer.parquet")


def test_what_a_killed_writer_left_does_not_count_and_is_deleted_by_the_next(tmp_path: Path):
    log = BufferLog(str(tmp_path))
    log.write_step([scored()], learner_step=1)
    left_over = tmp_path / ".step_000002.parquet.tmp"
    left_over.write_bytes(b"half")
    other = tmp_path / "notes.txt"
    other.write_text("kept")
    assert BufferLog(str(tmp_path)).steps() == (1,)
    assert left_over.exists(), "a reader does not touch the file that a run may be writing"
    BufferLog(str(tmp_path)).open_for_writing()
    assert not left_over.exists() and other.exists() and log.steps() == (1,)


def test_a_full_disk_ends_the_run_with_what_to_do_and_leaves_no_segment(tmp_path: Path):
    log = BufferLog(str(tmp_path))
    # The kernel's own answer to a write on a full disk.
    (tmp_path / ".step_000001.parquet.tmp").symlink_to("/dev/full")
    with pytest.raises(RunFailedError, match=r"(?s)full.*step_000001\.parquet.*log_targets=false"):
        log.write_step([scored()], learner_step=1)
    assert list(tmp_path.iterdir()) == []
    log.write_step([scored()], learner_step=1)
    assert log.steps() == (1,)


def test_a_step_that_cannot_be_written_anew_stays_as_it_was(tmp_path: Path):
    log = BufferLog(str(tmp_path))
    log.write_step([scored("old")], learner_step=1)
    (tmp_path / ".step_000001.parquet.tmp").symlink_to("/dev/full")
    with pytest.raises(RunFailedError):
        log.write_step([scored("newer")], learner_step=1)
    assert log.read_step(1)[0].text == "old"


def test_a_place_that_is_no_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailedError, match="cannot be written"):
        BufferLog(str(tmp_path / "file" / "log")).open_for_writing()


def test_rewind_moves_later_segments_aside_and_loses_none(log: BufferLog):
    for step in (1, 2, 3):
        log.write_step([scored(f"first {step}")], learner_step=step)
    assert log.rewind(1) == 2
    assert log.steps() == (1,)
    log.write_step([scored("second 2")], learner_step=2)
    assert log.rewind(1) == 1
    assert log.rewind(1) == 0
    aside = BufferLog(f"{log.url}/set_aside/resume_1_from_step_1")
    assert aside.read_step(2)[0].text == "first 2" and aside.read_step(3)[0].text == "first 3"
    assert BufferLog(f"{log.url}/set_aside/resume_2_from_step_1").read_step(2)[0].text == "second 2"


def test_a_log_of_another_run_is_refused(log: BufferLog):
    log.require_empty()
    log.write_step([scored()], learner_step=1)
    with pytest.raises(ConfigError, match=r"pipeline\.log_url"):
        log.require_empty()


def test_a_log_that_another_run_has_claimed_is_refused_before_its_first_segment(
    log: BufferLog, tmp_path: Path
):
    for _ in range(2):
        log.claim(tmp_path / "a")  # as a resume does
    RunFolder.create(tmp_path / "a").config.write_text("")
    with pytest.raises(ConfigError, match=f"(?s)belongs to another run.*{tmp_path}/a.*delete the file"):
        log.claim(tmp_path / "b")
    assert log.owner() == str(tmp_path / "a") and log.steps() == ()


def test_the_claim_of_a_run_that_never_began_keeps_nobody_out(log: BufferLog, tmp_path: Path):
    log.claim(tmp_path / "a")
    log.claim(tmp_path / "b")
    assert log.owner() == str(tmp_path / "b")
    log.write_step([scored()], learner_step=1)
    with pytest.raises(ConfigError, match="belongs to another run"):
        log.claim(tmp_path / "a")


def test_a_claim_that_cannot_be_written_is_a_fault_of_the_configuration(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"(?s)pipeline\.log_url.*log_targets=false"):
        BufferLog(str(tmp_path / "file" / "log")).claim(tmp_path)


def test_an_unknown_protocol_is_a_fault_of_the_configuration():
    with pytest.raises(ConfigError, match=r"pipeline\.log_url"):
        BufferLog("nosuch://bucket/log")


def test_a_protocol_without_its_package_names_what_to_install(monkeypatch: pytest.MonkeyPatch):
    def no_package(url: str) -> object:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(buffer_log, "url_to_fs", no_package)
    with pytest.raises(MissingDependencyError, match="Install s3fs"):
        BufferLog("s3://bucket/log")


def test_the_log_is_in_the_run_folder_unless_a_url_is_given(tmp_path: Path):
    folder = RunFolder(tmp_path)
    assert run_log(PipelineConfig(), folder).url == str(tmp_path / "buffer_log")
    assert run_log(PipelineConfig(log_url="memory://elsewhere"), folder).url == "memory://elsewhere"


async def test_the_recorder_writes_both_files_of_a_step_in_another_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    log = BufferLog(str(tmp_path / "log"))
    folder = RunFolder(tmp_path)
    recorder = Recorder(folder, keep_checkpoints=1, buffer_log=log)
    writing, may_go_on = threading.Event(), threading.Event()
    write_step = BufferLog.write_step

    def slow(self, trajectories, *, learner_step: int):
        writing.set()
        assert may_go_on.wait(30)
        return write_step(self, trajectories, learner_step=learner_step)

    monkeypatch.setattr(BufferLog, "write_step", slow)
    recording = asyncio.create_task(recorder.trajectories([scored()], learner_step=7))
    # The loop is free while the segment is written, and the record counts only once it is there.
    assert await asyncio.to_thread(writing.wait, 30)
    assert not recording.done() and log.steps() == ()
    may_go_on.set()
    await recording
    assert log.steps() == logged_steps(folder.trajectories) == (7,)


async def test_a_recorder_without_a_log_writes_none(tmp_path: Path):
    folder = RunFolder(tmp_path)
    await Recorder(folder, keep_checkpoints=1).trajectories([scored()], learner_step=1)
    assert logged_steps(folder.trajectories) == (1,) and not folder.buffer_log.exists()
