"""Where the learner's first rank is met."""

from __future__ import annotations

from datetime import timedelta

import pytest

from actors.learner_meeting import Meeting
from actors.meeting_place import choose_host, interface_of
from trd_ray.config import WeightSyncConfig
from trd_ray.errors import PlacementError


@pytest.mark.parametrize(
    ("host", "nodes", "chosen"),
    [
        ("auto", ["127.0.0.1"], "127.0.0.1"),
        ("auto", ["10.0.0.1"], "127.0.0.1"),
        ("auto", ["10.0.0.1", "10.0.0.1"], "127.0.0.1"),
        ("auto", ["10.0.0.1", "10.0.0.2"], ""),
        ("auto", ["127.0.0.2", "127.0.0.3"], ""),
        ("", ["10.0.0.1", "10.0.0.2"], ""),
        ("10.0.0.7", ["10.0.0.1", "10.0.0.2"], "10.0.0.7"),
        ("127.0.0.1", ["10.0.0.1", "10.0.0.1"], "127.0.0.1"),
        ("127.0.0.1", ["127.0.0.2", "127.0.0.3"], "127.0.0.1"),
    ],
)
def test_loopback_where_all_nodes_are_on_one_machine_else_the_rank_s_own(
    host: str, nodes: list[str], chosen: str
):
    assert choose_host(WeightSyncConfig(host=host), nodes) == chosen


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_is_refused_where_a_node_is_elsewhere(host: str):
    with pytest.raises(PlacementError, match=r"(?s)weight_sync\.host.*10\.0\.0\.1, 10\.0\.0\.2.*auto"):
        choose_host(WeightSyncConfig(host=host), ["10.0.0.2", "10.0.0.1"])


def test_an_address_that_the_node_does_not_have_is_refused_by_name():
    meeting = Meeting(rank=0, world_size=1, timeout=timedelta(seconds=1))
    # Set apart for documentation: no machine has it.
    with pytest.raises(PlacementError, match=r"(?s)weight_sync\.host.*203\.0\.113\.9.*auto"):
        meeting.find_master("203.0.113.9")


def test_the_interface_of_loopback_is_found_by_any_of_its_addresses():
    assert interface_of("127.0.0.1") == interface_of("127.0.0.9") in ("lo", "lo0")
    assert interface_of("203.0.113.9") is None
