"""Real DeepSpeed, ZeRO 1 to 3 on 1 and 2 ranks, against the plain learner on the same data."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.actors.learner_worker import (
    CASES,
    EXTERNAL,
    FAILING,
    NUM_STEPS,
    Case,
    Result,
    make_batch,
    run_rank,
)
from tests.ports import free_port
from tests.tiny_models import make_tiny_qwen3
from trd_ray.choices import DType
from trd_ray.learner_checkpoint import HEADER_FILE
from trd_ray.local.learner import LocalLearner

WORLD_SIZES = (1, 2)
RTOL = 1e-4
# Eight bits of mantissa in weights and activations.
BFLOAT16_RTOL = 3e-2


@dataclass(frozen=True, kw_only=True)
class Plain:
    """What the plain learner says."""

    losses: list[float]
    grad_norms: list[float]
    logprob_means: list[float]
    weights: dict[str, torch.Tensor]
    teacher: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("learner")
    make_tiny_qwen3(root / "tied", seed=0)
    make_tiny_qwen3(root / "untied", seed=1, tie_word_embeddings=False)
    make_tiny_qwen3(root / "teacher", seed=2, tie_word_embeddings=False)
    return root


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[int, list[dict[str, Result]]]:
    """World size -> rank -> case -> result. All ranks have ended."""
    for world_size in WORLD_SIZES:
        multiprocessing.spawn(run_rank, (world_size, free_port(), folder), nprocs=world_size)
    return {
        world_size: [
            {
                name: Result(**fields)
                for name, fields in torch.load(folder / f"results_{world_size}_{rank}.pt").items()
            }
            for rank in range(world_size)
        ]
        for world_size in WORLD_SIZES
    }


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, Plain]:
    return {case.name: asyncio.run(run_plain(case, folder)) for case in CASES}


async def run_plain(case: Case, folder: Path) -> Plain:
    learner = LocalLearner(
        case.config,
        method=case.method,
        score=case.score,
        student=folder / case.student,
        teacher=folder / ("teacher" if case.method.teacher_weights is EXTERNAL else case.student),
        num_steps=NUM_STEPS,
        seed=0,
    )
    steps = range(1, NUM_STEPS + 1)
    records = [await learner.learn(make_batch(step, num_ranks=1, case=case)) for step in steps]
    copy = learner._teacher.copy
    return Plain(
        losses=[record.loss for record in records],
        grad_norms=[record.grad_norm for record in records],
        logprob_means=[record.student_logprob_mean for record in records],
        weights={name: tensor.clone() for name, tensor in learner.named_weights()},
        teacher={} if copy is None else {name: tensor.clone() for name, tensor in copy.named_weights()},
    )


FLOAT32_CASES = [case.name for case in CASES if case.dtype is DType.FLOAT32]
BFLOAT16_CASES = [case.name for case in CASES if case.dtype is DType.BFLOAT16]
ALL_CASES = [case.name for case in CASES]
worlds = pytest.mark.parametrize("world_size", WORLD_SIZES)


@worlds
@pytest.mark.parametrize("name", FLOAT32_CASES)
def test_losses_and_weights_are_those_of_the_plain_learner(name, world_size, results, plain) -> None:
    for rank in range(world_size):
        result = results[world_size][rank][name]
        assert result.losses == pytest.approx(plain[name].losses, rel=RTOL)
        assert result.grad_norms == pytest.approx(plain[name].grad_norms, rel=RTOL)
        assert result.logprob_means == pytest.approx(plain[name].logprob_means, rel=RTOL)
    weights = results[world_size][0][name].weights
    assert list(weights) == list(plain[name].weights)
    for key, tensor in weights.items():
        # Where a gradient is near zero, Adam turns its float noise into a share of a whole step of 3e-3.
        torch.testing.assert_close(tensor, plain[name].weights[key], rtol=RTOL, atol=1e-4)


@worlds
@pytest.mark.parametrize("name", [case.name for case in CASES if case.method.teacher_moves])
def test_a_moving_teacher_is_that_of_the_plain_learner_and_resumes(name, world_size, results, plain) -> None:
    holders = [ranks[name] for ranks in results[world_size] if ranks[name].teacher]
    # A teacher that is only pushed is held once.
    assert len(holders) == (1 if "pushed" in name else world_size)
    for result in holders:
        assert result.teacher_versions == [NUM_STEPS, NUM_STEPS]
        assert result.teacher.keys() == plain[name].teacher.keys() == plain[name].weights.keys()
        for key, tensor in result.teacher.items():
            torch.testing.assert_close(tensor, plain[name].teacher[key], rtol=RTOL, atol=1e-4)
            torch.testing.assert_close(result.resumed_teacher[key], tensor, rtol=1e-6, atol=1e-7)


@worlds
@pytest.mark.parametrize("name", [case.name for case in CASES if case.lora_rank])
def test_adapters_leave_the_model_s_own_weights_alone(name, world_size, results, folder) -> None:
    case = next(case for case in CASES if case.name == name)
    assert all(ranks[name].base_unchanged for ranks in results[world_size])
    first = AutoModelForCausalLM.from_pretrained(folder / case.student)
    merged = results[world_size][0][name].weights
    moved = {key for key, tensor in first.named_parameters() if not torch.equal(merged[key].float(), tensor)}
    if case.dtype is DType.FLOAT32:
        assert moved == {key for key in merged if "proj" in key}
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(first, folder / f"{name}_{world_size}" / "adapter")
    saved = AutoModelForCausalLM.from_pretrained(folder / f"{name}_{world_size}" / "hf", dtype="auto")
    for key, tensor in adapted.merge_and_unload().named_parameters():
        # bfloat16 rounds the base before and the sum after.
        tolerance = 1e-6 if case.dtype is DType.FLOAT32 else 2e-2
        torch.testing.assert_close(
            saved.get_parameter(key).float(), tensor, rtol=tolerance, atol=tolerance * 0.1
        )


@worlds
@pytest.mark.parametrize("name", BFLOAT16_CASES)
def test_bfloat16_follows_within_its_precision(name, world_size, results, plain) -> None:
    result = results[world_size][0][name]
    assert result.losses == pytest.approx(plain[name].losses, rel=BFLOAT16_RTOL)
    assert {tensor.dtype for tensor in result.weights.values()} == {torch.bfloat16}


def test_the_loss_falls_and_clipping_acts(plain) -> None:
    # Another sample set each step, so compare the ends only.
    assert plain["zero1"].losses[2] < plain["zero1"].losses[0]
    assert max(plain["zero1"].grad_norms) > 0.5


@worlds
@pytest.mark.parametrize("name", ALL_CASES)
def test_a_resumed_group_goes_on_as_if_nothing_had_happened(name, world_size, results) -> None:
    result = results[world_size][0][name]
    assert result.resumed_version == 2
    assert result.resumed_checksum == result.saved_checksum
    assert result.resumed_losses == pytest.approx(result.losses[2:], rel=1e-6)
    for key, tensor in result.resumed_weights.items():
        torch.testing.assert_close(tensor, result.weights[key], rtol=1e-6, atol=1e-7)


@worlds
@pytest.mark.parametrize("name", ALL_CASES)
def test_hf_folder_holds_the_saved_weights(name, world_size, results, folder) -> None:
    from trd_ray.weights import checksum_named

    hf = folder / f"{name}_{world_size}" / "hf"
    model = AutoModelForCausalLM.from_pretrained(hf, dtype="auto")
    case = next(case for case in CASES if case.name == name)
    assert str(model.dtype) == f"torch.{case.dtype}"
    named = ((key, tensor.float()) for key, tensor in model.named_parameters())
    assert checksum_named(named) == results[world_size][0][name].saved_checksum
    assert (hf / "generation_config.json").is_file()
    assert (
        AutoTokenizer.from_pretrained(hf).get_vocab()
        == AutoTokenizer.from_pretrained(folder / "tied").get_vocab()
    )


@worlds
def test_checkpoint_folder_is_whole(world_size, results, folder) -> None:
    checkpoint = folder / f"zero3_{world_size}"
    assert (checkpoint / HEADER_FILE).is_file()
    assert not list(folder.glob("*.partial"))


@worlds
@pytest.mark.parametrize("name", ALL_CASES)
def test_manifest_names_each_weight_once_with_its_whole_shape(name, world_size, results) -> None:
    result = results[world_size][-1][name]
    whole = results[world_size][0][name].weights
    assert result.manifest_names == list(whole)
    assert result.manifest_shapes == [tuple(tensor.shape) for tensor in whole.values()]
    case = next(case for case in CASES if case.name == name)
    assert ("lm_head.weight" in result.manifest_names) == (case.student == "untied")


@worlds
@pytest.mark.parametrize("name", FLOAT32_CASES)
def test_probe_is_the_model_s_log_probability(name, world_size, results, folder) -> None:
    results_of_ranks = [results[world_size][rank][name] for rank in range(world_size)]
    case = next(case for case in CASES if case.name == name)
    model = AutoModelForCausalLM.from_pretrained(folder / case.student)
    model.load_state_dict(results_of_ranks[0].weights, strict=False)
    tokens = torch.cat([torch.arange(4, 9), torch.arange(20, 26)])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(tokens[None]).logits[0], dim=-1)
    expected = [logprobs[index - 1, tokens[index]].item() for index in range(5, 11)]
    for result in results_of_ranks:
        assert result.probe == pytest.approx(expected, abs=1e-4)


@worlds
@pytest.mark.parametrize("name", FAILING)
def test_failures_are_named_on_every_rank_and_change_no_weights(name, world_size, results) -> None:
    case = next(case for case in CASES if case.name == name)
    for rank in range(world_size):
        result = results[world_size][rank][name]
        assert f"learner step 1, rank {world_size - 1}" in result.errors["nan"]
        assert f"zero_stage = {case.zero_stage}" in result.errors["stage"]
        assert "got a batch for learner step 2; expected 1" in result.errors["order"]
        assert "gradient norm is not a finite number" in result.errors["gradient"]
        assert f"learner step 1, rank {rank}" in result.errors["gradient"]
        assert len(result.checksums_around_failure) == 3
        assert len(set(result.checksums_around_failure)) == 1
        assert (result.checksums_around_failure[0] is None) == (rank > 0)
    assert results[world_size][0][name].errors["send"] == "raised"
