"""Real DeepSpeed on a CPU: a rank that gives its memory away between steps learns as if it had not.

A CPU has one memory, so this shows that states and weights come back whole, not that a GPU is freed.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.actors.learner_worker import CASES, Case, collect, make_batch
from tests.ports import free_port
from tests.tiny_models import make_tiny_qwen3
from trd_ray.choices import DType
from trd_ray.device_turns import Residence

ADAPTERS = next(case for case in CASES if case.name == "zero2_adapters_off")
TESTED = (
    next(case for case in CASES if case.name == "zero2"),
    ADAPTERS,
    Case(name="zero2_bfloat16", zero_stage=2, dtype=DType.BFLOAT16),
    replace(ADAPTERS, name="zero2_adapters_off_bfloat16", dtype=DType.BFLOAT16),
)
NAMES = [case.name for case in TESTED]
NUM_STEPS = 3


def run(case: Case, folder: Path, port: int, *, sleeps: bool) -> dict[str, object]:
    """Losses and weights of a group of one rank."""
    from actors.learner import LearnerRank
    from actors.learner_offload import change_residence

    learner = LearnerRank(
        case.config, method=case.method, score=case.score, student=folder / case.student,
        teacher=folder / ("teacher" if case.score == "hidden" else case.student), rank=0, world_size=1,
        num_steps=NUM_STEPS, seed=0, timeout_s=60.0,
    )  # fmt: skip
    learner.setup("127.0.0.1", port)
    losses, pushed = [], []
    for step in range(1, NUM_STEPS + 1):
        losses.append(learner.learn(make_batch(step, num_ranks=1, case=case)).loss)
        if sleeps:
            change_residence(learner._engine, Residence.WEIGHTS, device=learner._device)
        pushed.append(collect(learner))
        if sleeps:
            change_residence(learner._engine, Residence.ASLEEP, device=learner._device)
            if step == 2:  # a push that no step came before
                change_residence(learner._engine, Residence.WEIGHTS, device=learner._device)
                pushed.append(collect(learner))
            change_residence(learner._engine, Residence.AWAKE, device=learner._device)
        elif step == 2:
            pushed.append(collect(learner))
    return {"losses": losses, "pushed": pushed}


def run_all(folder: Path, port: int) -> None:
    results = {
        case.name: [run(case, folder, port, sleeps=sleeps) for sleeps in (False, True)] for case in TESTED
    }
    torch.save(results, folder / "offload.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("offload")
    make_tiny_qwen3(folder / "tied", seed=0)
    make_tiny_qwen3(folder / "untied", seed=1, tie_word_embeddings=False)
    make_tiny_qwen3(folder / "teacher", seed=2, tie_word_embeddings=False)
    process = multiprocessing.get_context("spawn").Process(target=run_all, args=(folder, free_port()))
    process.start()
    process.join(400)
    assert process.exitcode == 0
    return torch.load(folder / "offload.pt")


@pytest.mark.parametrize("name", NAMES)
def test_a_rank_that_sleeps_between_steps_learns_the_same(name: str, results: dict[str, list[dict]]):
    plain, slept = results[name]
    assert slept["losses"] == plain["losses"]
    assert len(set(plain["losses"])) == NUM_STEPS
    for before, after in zip(plain["pushed"], slept["pushed"], strict=True):
        assert before.keys() == after.keys() and before
        assert all(torch.equal(before[key], after[key]) for key in before)
