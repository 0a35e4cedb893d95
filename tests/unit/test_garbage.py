"""The driver's garbage collector is spared, and put back as it was."""

from __future__ import annotations

import gc

import pytest

from trd_ray.garbage import few_collections


def test_the_collector_is_as_before_afterwards_also_after_an_error():
    before = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), few_collections():
        assert gc.get_threshold()[0] > before[0]
        assert gc.get_freeze_count() > 0
        raise ZeroDivisionError
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_cycles_that_are_made_meanwhile_are_still_collected():
    class Node:
        alive = 0

        def __init__(self) -> None:
            Node.alive += 1
            self.me = self

        def __del__(self) -> None:
            Node.alive -= 1

    with few_collections():
        for _ in range(100_000):
            Node()
        assert Node.alive < 50_000
