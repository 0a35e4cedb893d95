"""The environment, the switches and the configuration that DeepSpeed needs, a reason beside each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from actors.meeting_place import interface_of
from actors.weight_transfer_group import local_address_towards
from trd_ray.choices import Device, DType
from trd_ray.config import LearnerConfig
from trd_ray.memory_plan import REDUCE_BUCKET_NUMEL

_SHARED_MEMORY_OP = "deepspeed_shm_comm"


def set_learner_environment(
    *, device: str, rank: int, world_size: int, master_address: str, master_port: int, threads: int
) -> None:
    """Set what DeepSpeed and gloo read from the environment in this process.

    Must run before DeepSpeed is first imported, which transformers may do while it loads a model.

    Args:
        device: `cpu` or `cuda`.
        rank: of this process among `world_size` learner ranks.
        threads: OpenMP threads of this rank on a CPU.
    """
    # Without it DeepSpeed guesses, and takes any accelerator that it finds, or MPI if it finds none.
    os.environ["DS_ACCELERATOR"] = device
    os.environ["RANK"] = str(rank)
    os.environ["WORLD_SIZE"] = str(world_size)
    # Ray shows a process its own GPUs only, numbered from 0.
    os.environ["LOCAL_RANK"] = "0"
    os.environ["MASTER_ADDR"] = master_address
    os.environ["MASTER_PORT"] = str(master_port)
    # Models are folders on disk; a look-up on a hub would only delay the error that names a folder.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Rank 0's info lines would fill the run's log; a user who debugs DeepSpeed sets info.
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    if device == "cpu":
        os.environ["OMP_NUM_THREADS"] = str(threads)
        interface = interface_of(local_address_towards(master_address, master_port))
        if interface is not None:
            # gloo would listen on the address of the host name, which others than the ranks may reach,
            # and the ranks on other nodes may not.
            os.environ["GLOO_SOCKET_IFNAME"] = interface


def import_deepspeed() -> ModuleType:
    """Import DeepSpeed, but not MLflow: its tuner would, for seconds, and is not used here."""
    with absent("mlflow"):
        import deepspeed  # type: ignore[import-untyped]
    module: ModuleType = deepspeed
    return module


@contextmanager
def absent(name: str) -> Iterator[None]:
    """While the block runs a package cannot be imported, unless it is already."""
    is_loaded = name in sys.modules
    if not is_loaded:
        sys.modules[name] = None  # type: ignore[assignment]  # so says Python's own documentation
    try:
        yield
    finally:
        if not is_loaded:
            del sys.modules[name]


def skip_shared_memory_op() -> None:
    """Keep DeepSpeed from compiling its shared-memory op at the first start on a CPU.

    It speeds up one collective of inference, which training never calls, and it costs a C++
    compiler and the better part of a minute. DeepSpeed asks this table before it builds an op.
    """
    import deepspeed.ops  # type: ignore[import-untyped]

    deepspeed.ops.__compatible_ops__[_SHARED_MEMORY_OP] = False


def deepspeed_config(config: LearnerConfig) -> dict[str, object]:
    """DeepSpeed's own configuration; each value follows from ours."""
    return {
        # Both are nominal: packing decides what a micro-batch holds, and how many there are.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": REDUCE_BUCKET_NUMEL,
            # There is one stream on a CPU.
            "overlap_comm": config.device is Device.CUDA,
        },
        # It would turn float32 adapters into bfloat16 too. Without it DeepSpeed leaves each weight in
        # its format, and the optimizer sees float32 alone, since the bfloat16 ones are frozen.
        "bf16": {"enabled": config.dtype is DType.BFLOAT16 and config.lora.rank == 0},
        # Micro-batches are summed in float32 also where the weights are bfloat16.
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 1_000_000_000,
    }
