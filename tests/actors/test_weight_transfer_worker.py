"""What is called in vLLM's worker about weights, on the worker's own methods, without a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import VllmConfig
from vllm.v1.worker.gpu_worker import Worker

from actors.weight_transfer_worker import WorkerExtension


class Transfer:
    """Does nothing, and fails where it is told to."""

    fails = ""

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, object]) -> None:
        self._maybe_fail("update")

    def finish_weight_update(self) -> None:
        self._maybe_fail("finish")

    def reset_weight_update_target(self) -> None: ...

    def _maybe_fail(self, where: str) -> None:
        if self.fails == where:
            raise MemoryError(f"no room in {where}")


def make_worker() -> Any:
    class ExtendedWorker(WorkerExtension, Worker):
        def __init__(self) -> None:
            self.vllm_config = VllmConfig()
            self.weight_transfer_engine = Transfer()
            self.model_runner = SimpleNamespace(reset_lora_state=lambda: None)
            self._weight_update_active = False

    return ExtendedWorker()


@pytest.mark.parametrize("where", ["update", "finish"])
def test_an_update_that_fails_is_told_and_the_next_one_is_done(where: str) -> None:
    worker = make_worker()
    worker.weight_transfer_engine.fails = where
    assert worker.trd_update_weights({}) == ("", f"MemoryError: no room in {where}")
    worker.weight_transfer_engine.fails = ""
    assert worker.trd_update_weights({}) == ("", "")
