"""A full disk, and one that may not be written to."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tests.fakes import FakeLearner
from tests.unit.tiny_tokenizer import make_tokenizer
from trd_ray.disk import flush_tree, saving_tensors, write_whole, writing
from trd_ray.errors import ActorTimeoutError, DiskError
from trd_ray.json_lines import JsonLinesWriter, read_lines
from trd_ray.recorder import write_checkpoint
from trd_ray.run_folder import RunFolder
from trd_ray.trace_file import TraceFile


@contextmanager
def no_file_longer_than(num_bytes: int) -> Iterator[None]:
    """As if the disk were full there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "is full.*free some space"), (errno.EROFS, "cannot be written.*make it writable")],
)
def test_what_the_disk_refuses_is_an_error_that_says_where_and_what_to_do(number: int, words: str):
    with pytest.raises(DiskError, match=f"(?s){words}.*--resume") as raised, writing(Path("runs/a")):
        raise OSError(number, "no")
    assert "runs/a" in str(raised.value)


def test_a_call_that_took_too_long_is_no_matter_of_the_disk():
    with pytest.raises(ActorTimeoutError), writing(Path("runs/a")):
        raise ActorTimeoutError("slow")


def test_a_line_that_does_not_fit_leaves_nothing_behind_and_the_file_goes_on_when_there_is_room(
    tmp_path: Path,
):
    path = tmp_path / "metrics.jsonl"
    with JsonLinesWriter(path) as lines:
        lines.write({"learner_step": 1})
        with no_file_longer_than(25), pytest.raises(DiskError, match=r"metrics\.jsonl"):
            lines.write({"learner_step": 2})
        assert path.read_text().count("\n") == 1 and path.read_text().endswith("\n")
        lines.write({"learner_step": 3})
    assert read_lines(path) == ['{"learner_step": 1}', '{"learner_step": 3}']


async def test_a_checkpoint_that_cannot_be_written_is_none_and_says_so(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run")
    await write_checkpoint(folder, FakeLearner(), learner_step=1, state=None, keep=2)

    class Full(FakeLearner):
        async def save(self, folder: Path) -> None:
            (folder / "half").write_text("x")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskError, match=r"(?s)is full.*step_2"):
        await write_checkpoint(folder, Full(), learner_step=2, state=None, keep=2)
    assert [c.learner_step for c in folder.complete_checkpoints()] == [1]


async def test_a_checkpoint_is_on_the_disk_before_its_name_and_before_an_old_one_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = RunFolder.create(tmp_path / "run")
    await write_checkpoint(folder, FakeLearner(), learner_step=1, state=None, keep=1)
    flushed: list[Path] = []

    def flush(descriptor: int) -> None:
        assert folder.checkpoint(1).exists()
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr("trd_ray.disk.os.fsync", flush)
    await write_checkpoint(folder, FakeLearner(), learner_step=2, state=None, keep=1)
    unfinished = folder.checkpoints / "step_2.unfinished"
    assert flushed == [unfinished / "fake.txt", unfinished, folder.checkpoints]
    assert not folder.checkpoint(1).exists()


def test_a_file_system_that_cannot_flush_folders_is_put_up_with_for_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("trd_ray.disk.os.fsync", refuse)
    flush_tree(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        flush_tree(tmp_path)


async def test_an_old_checkpoint_that_cannot_be_deleted_is_no_fault_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    folder = RunFolder.create(tmp_path / "run")

    def refuse(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("trd_ray.run_folder.shutil.rmtree", refuse)
        for step in (1, 2):
            await write_checkpoint(folder, FakeLearner(), learner_step=step, state=None, keep=1)
    assert folder.complete_checkpoints()[-1].learner_step == 2
    assert "was not deleted" in caplog.text and "step_1" in caplog.text
    await write_checkpoint(folder, FakeLearner(), learner_step=3, state=None, keep=1)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step_3"]


def test_a_trace_that_the_disk_refuses_ends_with_whole_events_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    trace = TraceFile(tmp_path / "trace.json", max_bytes=10**6)
    trace.write({"ts": 1})
    trace.flush()
    with no_file_longer_than(20):
        trace.write({"ts": 2, "name": "long" * 9})
        trace.flush()
        assert trace.is_full
    trace.write({"ts": 3})
    trace.close()
    assert "trace.json is not continued" in caplog.text
    again = TraceFile(tmp_path / "trace.json", max_bytes=10**6)
    assert again.last_us == 1
    again.write({"ts": 4})
    again.close()
    assert json.loads((tmp_path / "trace.json").read_text()) == [{"ts": 1}, {"ts": 4}]


def test_a_text_that_does_not_fit_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "deeper" / "config.yaml"
    write_whole(path, "old")
    with no_file_longer_than(5), pytest.raises(DiskError, match=r"config\.yaml"):
        write_whole(path, "new and longer")
    assert path.read_text() == "old"
    write_whole(path, "neu: ä")
    assert path.read_text(encoding="utf-8") == "neu: ä"


def test_a_disk_that_is_full_for_a_tokenizer_is_named_as_one_that_is_full_for_tensors(tmp_path: Path):
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    tokenizer = make_tokenizer()
    with pytest.raises(DiskError, match="is full"), writing(tmp_path), saving_tensors(tmp_path):
        tokenizer.save_pretrained(tmp_path)


def test_what_could_not_be_saved_for_want_of_room_is_known_by_its_words_where_there_is_room_again(
    tmp_path: Path,
):
    with pytest.raises(OSError, match="No space left"), saving_tensors(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError, match="dtype"), saving_tensors(tmp_path):
        raise SafetensorError("dtype is not known")
