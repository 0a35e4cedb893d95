"""What one learner rank writes into a checkpoint and reads from it beside what `trd_ray` defines."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from actors.learner_weights import gathered
from trd_ray.disk import saving_tensors
from trd_ray.errors import CheckpointError, describe
from trd_ray.learner_checkpoint import ADAPTER_FOLDER
from trd_ray.lora import Adapters

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine  # type: ignore[import-untyped]

_DEEPSPEED_FOLDER = "deepspeed"
_TAG = "state"


def save_engine(engine: DeepSpeedEngine, folder: Path) -> None:
    """Write weights and optimizer states as they are sharded. Collective."""
    with saving_tensors(folder):
        engine.save_checkpoint(str(folder / _DEEPSPEED_FOLDER), tag=_TAG, save_latest=False)


def load_engine(engine: DeepSpeedEngine, folder: Path, *, rank: int) -> None:
    """Restore what `save_engine` wrote. Collective.

    Raises:
        CheckpointError: nothing that this rank can read.
    """
    try:
        path, _ = engine.load_checkpoint(str(folder / _DEEPSPEED_FOLDER), tag=_TAG)
    except (RuntimeError, OSError, EOFError, UnpicklingError) as error:
        raise CheckpointError(
            describe(
                "DeepSpeed's part of the checkpoint is damaged",
                where=str(folder / _DEEPSPEED_FOLDER),
                got=f"{type(error).__name__}: {str(error).splitlines()[0]}",
                expected="what was written there",
                remedy="resume from an older checkpoint: move this folder away",
            )
        ) from error
    if path is None:
        raise CheckpointError(
            describe(
                "DeepSpeed's part of the checkpoint is missing",
                where=str(folder / _DEEPSPEED_FOLDER),
                got=f"nothing that rank {rank} can read",
                expected=f"one file a rank under {_TAG}/",
                remedy="resume from another checkpoint",
            )
        )


def save_adapters(adapters: Adapters, folder: Path, *, rank: int, zero_stage: int) -> None:
    """Write the whole adapters in peft's layout, from rank 0. Collective under ZeRO-3."""
    named = dict(adapters.named())
    with gathered(list(named.values()), zero_stage=zero_stage):
        if rank == 0:
            whole = {name: parameter.detach().cpu().clone() for name, parameter in named.items()}
            with saving_tensors(folder):
                adapters.save(folder / ADAPTER_FOLDER, whole)


def save_random(folder: Path, *, rank: int, device: torch.device) -> None:
    """Write the state of this rank's random generators."""
    state: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    with saving_tensors(folder):
        torch.save(state, _random_file(folder, rank))


def load_random(folder: Path, *, rank: int, device: torch.device) -> None:
    """Restore what `save_random` wrote."""
    state = torch.load(_random_file(folder, rank), weights_only=True)
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"])


def _random_file(folder: Path, rank: int) -> Path:
    return folder / f"random_rank_{rank}.pt"
