"""Network namespaces joined by a bridge: nodes that reach each other by their addresses alone.

Needs root, `unshare` and `nsenter` (util-linux) and `ip` (iproute2). Nothing outside the namespaces changes;
they end with the processes in them.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.e2e.nodes.cluster import NodeSpec

_SUBNET = "10.203.0"
_START_S = 10.0


@contextmanager
def namespaced_specs(*num_cpus: float) -> Iterator[list[NodeSpec]]:
    """Nodes to be started, one in each namespace. Raises `RuntimeError` with the command that failed."""
    with ExitStack() as stack:
        switch = stack.enter_context(_namespace())
        _run(*enter(switch), "ip", "link", "add", "br0", "type", "bridge")
        _run(*enter(switch), "ip", "link", "set", "br0", "up")
        specs = []
        for i, cpus in enumerate(num_cpus):
            pid, address = stack.enter_context(_namespace()), f"{_SUBNET}.{i + 1}"
            _plug_in(switch, pid, address, number=i)
            specs.append(NodeSpec(address=address, num_cpus=cpus, prefix=enter(pid)))
        yield specs


def enter(pid: int) -> tuple[str, ...]:
    """The command that runs what follows it in the namespace of a process."""
    return ("nsenter", f"--net=/proc/{pid}/ns/net")


@contextmanager
def _namespace() -> Iterator[int]:
    """A new one, held by a process that does nothing; yields its id."""
    before = _run("readlink", "/proc/self/ns/net")
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + _START_S
        while _run("readlink", f"/proc/{holder.pid}/ns/net", check=False) in ("", before):
            if holder.poll() is not None or time.monotonic() > deadline:
                assert holder.stderr is not None
                holder.kill()
                raise RuntimeError(f"unshare --net: {holder.stderr.read()}")
            time.sleep(0.02)
        yield holder.pid
    finally:
        holder.kill()
        holder.wait(30)


def _plug_in(switch: int, pid: int, address: str, *, number: int) -> None:
    """A cable from a namespace to the bridge."""
    end = f"port{number}"
    _run(*enter(switch), "ip", "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    _run(*enter(switch), "ip", "link", "set", end, "master", "br0", "up")
    _run(*enter(pid), "ip", "address", "add", f"{address}/24", "dev", "eth0")
    _run(*enter(pid), "ip", "link", "set", "eth0", "up")
    _run(*enter(pid), "ip", "link", "set", "lo", "up")


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_START_S)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()
