"""Joining or starting the Ray cluster, and leaving it."""

from __future__ import annotations

import logging
import os
import signal

import ray

from trd_ray.config import RayConfig

log = logging.getLogger(__name__)

GIB = 2**30
LOCAL = "local"


def join_cluster(config: RayConfig) -> None:
    """Connect this process to the cluster; starts a private one on loopback for `local`."""
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    _init_ray(config)
    # Ray sets its own, which would end this process in the middle of whatever it does.
    signal.signal(signal.SIGTERM, sigterm_handler)


def _init_ray(config: RayConfig) -> None:
    # No report of machine and job leaves this machine.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Without this Ray hides GPUs from actors that ask for none by clearing the variable that a
    # user may have set; the future default leaves it alone, and warns until it is chosen.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray warns at each start that tokens protect the cluster, which is what we want.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    if config.address != LOCAL:
        ray.init(address=config.address, log_to_driver=config.actor_logs, logging_level=logging.WARNING)
        return
    ray.init(
        address=LOCAL,
        num_cpus=config.num_cpus or None,
        object_store_memory=int(config.object_store_gib * GIB),
        include_dashboard=config.dashboard,
        dashboard_host="127.0.0.1",
        # Ray binds it without a dashboard too, and says in red that it is taken: let it look for a free one.
        dashboard_port=config.dashboard_port if config.dashboard else None,
        log_to_driver=config.actor_logs,
        logging_level=logging.WARNING,
    )


def leave_cluster() -> None:
    """Disconnect; a private cluster ends with all its processes."""
    ray.shutdown()


def actor_log_folder() -> str:
    """Where Ray keeps what the actors print, for messages to people."""
    context = ray.get_runtime_context()
    return f"{context.get_temp_dir()}/{context.get_session_name()}/logs"
