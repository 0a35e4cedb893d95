"""Receivers in real processes that stop or die during a push: who is named, when, and who goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from actors.weight_transfer import Receiver, WeightSender
from tests.actors.transfer_process import Halt, Orders, ReceiverProcess
from trd_ray.errors import ActorTimeoutError
from trd_ray.weights import WeightManifest, checksum_named

TIMEOUT_S = 8.0
# What a push may take beyond its limit: a quarter of it for the living to say that they live, and scheduling.
SLACK_S = 4.0
BUCKET_BYTES = 8 * 2**20
TENSORS = [
    (f"layer.{index}", torch.randn(2**20, generator=torch.Generator().manual_seed(index)))
    for index in range(24)
]
MANIFEST = WeightManifest.of(TENSORS)


@pytest.fixture(scope="module")
def survivors() -> Iterator[list[ReceiverProcess]]:
    """Three, so that gloo hands bytes on from one receiver to another."""
    processes = [ReceiverProcess() for _ in range(3)]
    for process in processes:
        process.wait_until_ready()
    yield processes
    for process in processes:
        process.kill()


@pytest.fixture
def victim() -> Iterator[ReceiverProcess]:
    process = ReceiverProcess()
    process.wait_until_ready()
    yield process
    process.kill()


def open_group(sender: WeightSender, processes: dict[str, ReceiverProcess]) -> None:
    endpoints = sender.listen([Receiver(name=name) for name in processes])
    for process, endpoint in zip(processes.values(), endpoints, strict=True):
        process.order(endpoint)
    sender.open()
    for process in processes.values():
        assert process.answer(10) == "joined"


def orders(version: int, halt: Halt = Halt.NEVER, number: int = signal.SIGSTOP) -> Orders:
    return Orders(
        manifest=MANIFEST, policy_version=version, bucket_bytes=BUCKET_BYTES, halt=halt, signal=number
    )


@pytest.mark.parametrize("shared_memory", [True, False], ids=["memory", "gloo"])
@pytest.mark.parametrize(
    ("halt", "number"),
    [
        (Halt.NEVER, signal.SIGSTOP),  # stopped before the push begins
        (Halt.NEVER, signal.SIGKILL),
        (Halt.BETWEEN_BUCKETS, signal.SIGSTOP),
        (Halt.BETWEEN_BUCKETS, signal.SIGKILL),
        (Halt.LOADING, signal.SIGSTOP),
        (Halt.LOADING, signal.SIGKILL),
    ],
)
def test_the_receiver_that_halts_is_named_and_the_others_take_the_next_push(
    survivors: list[ReceiverProcess], victim: ReceiverProcess, halt: Halt, number: int, shared_memory: bool
) -> None:
    living = {f"generator-{index}": process for index, process in enumerate(survivors)}
    # The first of gloo's tree: others get their bytes from it.
    everyone = {"culprit": victim, **living}
    sender = WeightSender(timeout_s=TIMEOUT_S, bucket_bytes=BUCKET_BYTES, shared_memory=shared_memory)
    open_group(sender, everyone)
    if halt is Halt.NEVER:
        victim.signal(number)
    else:
        victim.order(orders(1, halt, number))
    for process in survivors:
        process.order(orders(1))
    start = time.monotonic()
    with pytest.raises(ActorTimeoutError, match=r"no answer from \['culprit'\]"):
        sender.send(TENSORS, MANIFEST, 1)
    assert time.monotonic() - start < TIMEOUT_S + SLACK_S
    for process in survivors:
        answer = process.answer(max(0.1, TIMEOUT_S + SLACK_S - (time.monotonic() - start)))
        # In the last stage those that hold all bytes are done, and those behind the culprit are not.
        assert answer.startswith("lost: ") or halt is Halt.LOADING
    # What a supervisor does then, with the same sender.
    open_group(sender, living)
    for process in survivors:
        process.order(orders(2))
    report = sender.send(TENSORS, MANIFEST, 2)
    assert report.checksum == checksum_named(TENSORS)
    assert {process.answer(10) for process in survivors} == {report.checksum}
    sender.close()


def test_a_receiver_that_halts_while_the_group_opens_is_named(
    survivors: list[ReceiverProcess], victim: ReceiverProcess
) -> None:
    sender = WeightSender(timeout_s=TIMEOUT_S)
    victim.signal(signal.SIGSTOP)
    endpoints = sender.listen([Receiver(name="culprit"), Receiver(name="other")])
    victim.order(endpoints[0])
    start = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(sender.open)
        with pytest.raises(ActorTimeoutError, match=r"no answer from \['culprit', 'other'\]"):
            opening.result(timeout=TIMEOUT_S + SLACK_S)
    assert time.monotonic() - start < TIMEOUT_S + SLACK_S
    sender.close()
