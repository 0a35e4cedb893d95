"""vLLM's sleep mode: an engine off its GPUs while other roles have their turn on them.

What vLLM 0.32 does: level 1 copies the weights into pinned host memory and drops the KV cache; level 2
drops both, and wakes with weights of no meaning until all are loaded anew. Level 1 is used for every
engine. A teacher whose weights never change needs them back. A generator is woken by a push in most
turns, but not in all: a step whose trajectories were all refused draws further prompts, and the
generators wake with the weights that they had. The prefix cache is emptied either way.

A push needs the weights alone (`wake_up(["weights"])`); the KV cache follows when its turn comes. A
push resumes vLLM's scheduler, so nothing may be asked of an engine that is not awake: `Engine` refuses.
NOT RUN ON A GPU: the calls are tested with a stand-in for vLLM's engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trd_ray.device_turns import Residence

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_LEVEL = 1
_WEIGHTS, _KV_CACHE = ["weights"], ["kv_cache"]


async def change_residence(llm: AsyncLLM, now: Residence, then: Residence) -> None:
    """Take or give GPU memory. Requests in flight end first."""
    match now, then:
        case ((Residence.AWAKE | Residence.WEIGHTS), Residence.ASLEEP):
            # `wait` and not the default `abort`: a turn ends when its stage has, so that what is still
            # there is the tail of a request that its caller gave up.
            await llm.sleep(level=_LEVEL, mode="wait")
        case Residence.AWAKE, Residence.WEIGHTS:
            await llm.sleep(level=_LEVEL, mode="wait")
            await llm.wake_up(_WEIGHTS)
        case Residence.ASLEEP, Residence.WEIGHTS:
            await llm.wake_up(_WEIGHTS)
        case Residence.ASLEEP, Residence.AWAKE:
            await llm.wake_up()
        case Residence.WEIGHTS, Residence.AWAKE:
            await llm.wake_up(_KV_CACHE)
