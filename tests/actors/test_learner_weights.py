"""Gathering partitioned weights: real DeepSpeed, ZeRO-3 on two ranks, weights that it does partition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing

from actors.learner_weights import _buckets
from tests.actors.gathering_rank import BUCKET_BYTES, Gathering, run_rank
from tests.ports import free_port
from tests.tiny_models import make_tiny_qwen3
from trd_ray.lora import NamedWeight
from trd_ray.weights import checksum_named


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # DeepSpeed keeps weights below 100,000 elements whole on each rank; here most are larger.
    return make_tiny_qwen3(
        tmp_path_factory.mktemp("gathering"), vocab_size=512, hidden_size=320, intermediate_size=512,
        num_heads=4, num_kv_heads=2, head_dim=80, num_layers=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Gathering]:
    multiprocessing.spawn(run_rank, (2, free_port(), folder), nprocs=2)
    return [Gathering(**torch.load(folder / f"gathering_{rank}.pt")) for rank in range(2)]


def test_no_more_than_a_bucket_is_whole_at_once(ranks: list[Gathering]) -> None:
    for rank in ranks:
        assert rank.resident_before < 0.3 * rank.whole_bytes  # else there is nothing to gather
        assert 0 < max(rank.resident) <= max(rank.bucket_sizes) <= BUCKET_BYTES


def test_buckets_are_sized_by_whole_weights(ranks: list[Gathering]) -> None:
    """`numel()` of a partitioned weight is 0: sized by it, one bucket would hold all."""
    for rank in ranks:
        assert sum(rank.bucket_sizes) == rank.whole_bytes
        assert len(rank.bucket_sizes) >= rank.whole_bytes / BUCKET_BYTES > 3
        # No needless collectives: two neighbours never fit into one bucket.
        pairs = zip(rank.bucket_sizes, rank.bucket_sizes[1:], strict=False)
        assert len(rank.bucket_sizes) < len(rank.resident)
        assert sum(first + second > BUCKET_BYTES for first, second in pairs) >= len(rank.bucket_sizes) - 2


def test_all_ranks_go_through_all_collectives_also_when_the_sender_fails(
    ranks: list[Gathering], folder: Path
) -> None:
    from transformers import AutoModelForCausalLM

    first, second = ranks
    assert first.errors == ["at_once", "at_third"]
    assert second.errors == []
    assert first.collectives_after_failure == second.collectives_after_failure == 2 * len(first.bucket_sizes)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert first.after_failure == checksum_named(model.named_parameters())
    assert second.after_failure is None


def test_a_weight_larger_than_a_bucket_goes_alone() -> None:
    def weight(name: str, numel: int) -> NamedWeight:
        parameter = torch.nn.Parameter(torch.empty(0))  # what ZeRO-3 leaves of a partitioned one
        parameter.ds_numel = numel
        return NamedWeight(name=name, base=parameter)

    weights = [weight("a", 10), weight("b", 20), weight("big", 500), weight("c", 60), weight("d", 50)]
    buckets = [[w.name for w in bucket] for bucket in _buckets(weights, bucket_bytes=400)]
    assert buckets == [["a", "b"], ["big"], ["c"], ["d"]]
