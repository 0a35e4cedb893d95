"""The environment variables that the engines need, a reason beside each."""

from __future__ import annotations

import os

ENGINE_OWNER_VARIABLE = "TRD_RAY_ENGINE_OWNER"
"""Holds the id of the process whose end also ends the engine's processes."""


def set_engine_environment(*, device: str, threads: int) -> None:
    """Set what vLLM reads from the environment in this process and its children.

    Must run before vLLM is first imported. Variables that a user may want to choose are only set
    where they are not set yet.

    Args:
        device: `cpu` or `cuda`.
        threads: OpenMP threads of an engine on a CPU.
    """
    # No report of model and machine leaves this machine.
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    # A forked engine would inherit Ray's threads and locks in an unknown state.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    # vLLM repeats warnings with each push that mean nothing there (a tied head "failed to load");
    # what fails comes back as an error. A user who debugs vLLM sets INFO or DEBUG.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # The engine's processes watch this one: killed, it could not stop them.
    os.environ[ENGINE_OWNER_VARIABLE] = str(os.getpid())
    # vLLM's processes of one engine talk to each other; nobody outside has business there.
    os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
    if device != "cpu":
        return
    # The KV cache's size is given as an option, which this variable would override.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    # Actors share cores. Bound to one list of cores each would leave the others idle, and two
    # actors bound to the same list would fight for it.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    # Without binding vLLM leaves the number of threads to OpenMP, which takes all cores.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # The worker runs inside the engine's process instead of a third one: a step costs no message
    # between processes that wait by spinning, which takes the cores away from the step itself.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
