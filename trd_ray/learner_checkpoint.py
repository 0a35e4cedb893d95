"""What a learner's checkpoint folder holds, and how it becomes whole in one moment.

A checkpoint is written beside its place and moved there when all of it is on disk. Its header,
`learner.json`, is the last to arrive: a folder without one is torn, and is never loaded.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from trd_ray.config import LoraConfig, MethodConfig
from trd_ray.disk import flush, saving_tensors
from trd_ray.errors import CheckpointError, describe
from trd_ray.models import load_tokenizer

HEADER_FILE = "learner.json"
HF_FOLDER = "hf"
ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointHeader:
    """What a checkpoint is, to be compared with the learner that would load it."""

    kind: str
    """`deepspeed` or `local`: who wrote it."""
    policy_version: int
    """Completed optimizer steps."""
    num_ranks: int
    zero_stage: int
    dtype: str
    num_parameters: int
    """Of the student, without adapters."""
    lora: str = ""
    """The adapters that are trained; empty if there are none."""
    moving_teacher: str = ""
    """`ema` or `periodic` if the checkpoint holds a teacher; empty if its weights do not move."""
    teacher_version: int = 0
    """Completed optimizer steps in the teacher's weights, if they move."""


def lora_words(config: LoraConfig) -> str:
    """What makes adapters loadable: their rank, scale and place."""
    return f"rank {config.rank}, alpha {config.alpha}, {config.target}" if config.rank > 0 else ""


def moving_teacher(method: MethodConfig) -> str:
    """The kind of a teacher that a checkpoint holds."""
    return method.teacher_weights.value if method.teacher_moves else ""


def partial_folder(folder: Path) -> Path:
    """Where a checkpoint is written before it is whole, on the same file system as its place."""
    return folder.with_name(f"{folder.name}.partial")


def begin(folder: Path) -> Path:
    """Make an empty partial folder for `folder`, without what a broken save may have left there."""
    partial = partial_folder(folder)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def commit(folder: Path, header: CheckpointHeader) -> None:
    """Move the partial folder's content to its place. Other files there stay as they are."""
    partial = partial_folder(folder)
    header_file = partial / HEADER_FILE
    header_file.write_text(json.dumps(dataclasses.asdict(header), indent=2), encoding="utf-8")
    flush(header_file)
    if not folder.exists():
        os.replace(partial, folder)
        return
    (folder / HEADER_FILE).unlink(missing_ok=True)
    for item in sorted(partial.iterdir(), key=lambda item: item.name == HEADER_FILE):
        target = folder / item.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(item, target)
    partial.rmdir()


def read_header(folder: Path, *, expected: CheckpointHeader) -> CheckpointHeader:
    """The header of a checkpoint that a learner described by `expected` can continue.

    Only the versions may differ: optimizer states are stored as they are
    sharded, and another stage or number of ranks would shard them otherwise.

    Raises:
        CheckpointError: missing, torn, or written by a learner of another kind.
    """
    file = folder / HEADER_FILE
    if not file.is_file():
        got = "no such folder" if not folder.is_dir() else f"no {HEADER_FILE}: it was not written to the end"
        raise _error(folder, "Not a whole checkpoint", got, "a checkpoint written by this learner",
                     "resume from another checkpoint")  # fmt: skip
    try:
        header = CheckpointHeader(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise _error(file, "Unreadable checkpoint header", error, "the fields of a header",
                     "resume from another checkpoint") from error  # fmt: skip
    for field in dataclasses.fields(CheckpointHeader):
        got, want = getattr(header, field.name), getattr(expected, field.name)
        if field.name not in ("policy_version", "teacher_version") and got != want:
            raise _error(
                folder,
                "The checkpoint belongs to another learner",
                f"{field.name} = {got or 'none'}",
                f"{field.name} = {want or 'none'}, as configured now",
                f"resume with {field.name} = {got or 'none'}, or start a new run with "
                f"student.model={folder / HF_FOLDER}",
            )
    return header


def save_hf(
    model: PreTrainedModel, folder: Path, *, tokenizer_from: Path, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write a model in Hugging Face layout: safetensors, configuration and tokenizer.

    Args:
        tokenizer_from: model folder whose tokenizer goes with the weights.
        state_dict: the weights, if the model does not hold them itself.
    """
    with saving_tensors(folder.parent):
        model.save_pretrained(folder, state_dict=state_dict)
        load_tokenizer(tokenizer_from).save_pretrained(folder)


def _error(where: Path, what: str, got: object, expected: str, remedy: str) -> CheckpointError:
    return CheckpointError(describe(what, where=str(where), got=got, expected=expected, remedy=remedy))
