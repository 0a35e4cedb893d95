"""Ports for servers that tests start and that cannot choose their own."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

# Ray's workers, where nobody says otherwise, have the ports from 10,002 to 19,999.
_LOWEST = 20_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(num: int) -> list[int]:
    """Different ports at which a server can listen, on every address of this machine.

    They lie below those that the system gives out by itself: between this look and the server's start a
    connection or a listener of another process would sooner or later be given one of those.
    """
    ports = list(range(_LOWEST, int(_RANGE.read_text().split()[0])))
    if len(ports) < num:  # the system gives out nearly all by itself: one must be taken from there
        ports = list(range(_LOWEST, 2**16))
    random.SystemRandom().shuffle(ports)
    free: list[int] = []
    for port in ports:
        if _is_free(port):
            free.append(port)
        if len(free) == num:
            return free
    raise RuntimeError(f"{num} ports wanted, {len(free)} of {len(ports)} are free")


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("", port))
        return True
    return False
