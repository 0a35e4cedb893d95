"""Stands in for `trd-ray` in the trials of a sweep: writes an eval.jsonl that follows from its options.

    python scripted_trial.py train CONFIG [--no-ray] [--resume]

The value rises to learner.optimizer.learning_rate x 1000 at the last step; a step takes
generator.sampling.temperature / 10 seconds. With run.seed 13 the first attempt fails after a step. SIGTERM
ends it with a file `stopped` after a second, as a checkpoint would take. Unless ray.address is `local` it
joins that cluster, holds the places of the run's actors there meanwhile, and says in a file `joined` from
when to when, and from which node.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from types import FrameType

import ray
from ray.util.placement_group import remove_placement_group

from actors.cluster import LOCAL, join_cluster, leave_cluster
from actors.placement import reserve
from trd_ray.config import TrdConfig
from trd_ray.config_loader import dump_config, load_config
from trd_ray.evaluation import EvalReport
from trd_ray.json_lines import JsonLinesWriter
from trd_ray.metrics import read_evals
from trd_ray.placement_plan import placement_plan
from trd_ray.run_folder import RunFolder

UNLUCKY_SEED = 13
_asked: list[int] = []


def on_signal(number: int, frame: FrameType | None) -> None:
    _asked.append(number)


def report(step: int, value: float) -> EvalReport:
    return EvalReport(
        learner_step=step, dataset="held_out", num_problems=4, num_samples=2, k=2, avg_at_k=value,
        avg_ci95=(0.0, 1.0), pass_at_k=value, pass_ci95=(0.0, 1.0), mean_length=3.0, truncated_share=0.0,
    )  # fmt: skip


def main(command: str, path: str, *options: str) -> int:
    config = load_config(path)
    folder = RunFolder(config.run.dir)
    if config.ray.address == LOCAL:
        return train(config, folder, command, *options)
    join_cluster(config.ray)
    group = asyncio.run(reserve(placement_plan(config), timeout_s=config.timeouts.placement_s))
    since = time.time()
    try:
        return train(config, folder, command, *options)
    finally:
        joined = {"since": since, "until": time.time(), "node": ray.util.get_node_ip_address()}
        (folder.path / "joined").write_text(json.dumps(joined))
        remove_placement_group(group)
        leave_cluster()


def train(config: TrdConfig, folder: RunFolder, command: str, *options: str) -> int:
    signal.signal(signal.SIGTERM, on_signal)
    print("options", command, *options, flush=True)
    if "--resume" not in options:
        folder = RunFolder.create(folder.path)
    folder.config.write_text(dump_config(config))
    done = len(read_evals(folder.eval))
    with JsonLinesWriter(folder.eval) as writer:
        for step in range(done + 1, config.run.num_steps + 1):
            time.sleep(config.generator.sampling.temperature / 10)
            if _asked:
                time.sleep(1.0)
                (folder.path / "stopped").write_text(f"{len(_asked)} at {step}")
                return 1
            value = config.learner.optimizer.learning_rate * 1000 * step / config.run.num_steps
            writer.write(report(step, value).to_json())
            if config.run.seed == UNLUCKY_SEED and "--resume" not in options:
                print("DataError: the disk is on fire", flush=True)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
