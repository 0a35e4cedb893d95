"""The address at which the learner's first rank meets the other ranks and the engines.

One address, and nothing listens on another: loopback while all nodes of the cluster are on this machine,
else the one that Ray knows the first rank's node by. It is looked for anew whenever ranks are started, since
after the death of a node they may be elsewhere.
"""

from __future__ import annotations

import ipaddress
import socket

import psutil
import ray

from trd_ray.config import WeightSyncConfig
from trd_ray.errors import PlacementError, describe

LOOPBACK = "127.0.0.1"
OWN_ADDRESS = ""
"""What a rank is told that is to take the address of the node it finds itself on."""


def meeting_host(config: WeightSyncConfig) -> str:
    """An address, or `OWN_ADDRESS`.

    Raises `PlacementError` if the given one is loopback and there are nodes elsewhere.
    """
    return choose_host(config, [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]])


def choose_host(config: WeightSyncConfig, nodes: list[str]) -> str:
    """As `meeting_host`, of a cluster with nodes at these addresses."""
    addresses = set(nodes)
    if config.finds_host:
        # Ray tells apart the nodes of one machine by their ports, those of several by their addresses.
        return LOOPBACK if len(addresses) <= 1 else OWN_ADDRESS
    if is_loopback(config.host) and len(addresses) > 1 and not all(map(is_loopback, addresses)):
        raise PlacementError(
            describe(
                "the actors may be on several machines, and would meet on loopback",
                where="weight_sync.host",
                got=f"{config.host}, and nodes at {', '.join(sorted(addresses))}",
                expected="an address of the first learner rank's node that the others reach",
                remedy="leave it out: weight_sync.host=auto takes the one that Ray knows the node by",
            )
        )
    return config.host


def own_address(host: str) -> str:
    """On the first rank's node: the address that `host`, of `meeting_host`, stands for."""
    if host != OWN_ADDRESS:
        return host
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


def is_loopback(address: str) -> bool:
    """Reaches this machine alone."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has an address; None if none has it."""
    interfaces = psutil.net_if_addrs()
    if is_loopback(address):  # of 127.0.0.0/8 the interface lists one address, and has all
        return next((name for name in ("lo", "lo0") if name in interfaces), None)
    families = (socket.AF_INET, socket.AF_INET6)
    return next(
        (
            name
            for name, entries in interfaces.items()
            if any(entry.family in families and entry.address == address for entry in entries)
        ),
        None,
    )
