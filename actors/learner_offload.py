"""A learner rank off its GPU while engines have their turn on it.

DeepSpeed's `offload_states` moves weights that are trained, gradients and optimizer states to pinned
host memory and back under ZeRO-2, which the configuration therefore asks for: under ZeRO-3 it refuses every
optimizer but DeepSpeed's own fused Adam, and under ZeRO-1 in bfloat16 there is no such call. It does not
know weights that are not trained, with LoRA all but the adapters; those are moved here. What stays on the
GPU: what the rank holds of the teacher. NOT RUN ON A GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from trd_ray.device_turns import Residence

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine  # type: ignore[import-untyped]


def change_residence(engine: DeepSpeedEngine, then: Residence, *, device: torch.device) -> None:
    """Take or give memory of `device`. Local: ranks do not wait for each other.

    Args:
        then: `weights` leaves the weights in place, which a push reads.
    """
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State

    if then is Residence.AWAKE:
        engine.reload_states()
        move_frozen(engine.module, device)
        return
    kept = (State.lp_params,) if then is Residence.WEIGHTS else ()
    if then is Residence.WEIGHTS:
        # From `asleep` the weights must come back first; DeepSpeed brings back everything at once.
        engine.reload_states()
        move_frozen(engine.module, device)
    engine.offload_states(include=[state for state in State if state not in kept])
    if then is Residence.ASLEEP:
        move_frozen(engine.module, torch.device("cpu"))
    if device.type == "cuda":
        # Freed memory would stay with this process's allocator, and vLLM could not have it.
        torch.cuda.empty_cache()


def move_frozen(module: torch.nn.Module, device: torch.device) -> None:
    """Move the weights that are not trained."""
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(device)
