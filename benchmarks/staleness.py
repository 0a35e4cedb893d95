"""Synchronous against one step ahead on the real stack: steps an hour, and final accuracy.

    python -m benchmarks.staleness configs/experiment/trd_opd.yaml --seeds 0 1 2 --steps 30

Both modes have the same budget and cores. A pair of runs (one seed, both modes, in turns) is a round, so that
a busy machine slows both. A run is a process of its own: `trd-ray train`. Steps an hour are counted over all
steps but the first, in which everything is cold; start and evaluations are left out.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trd_ray.metrics import read_evals, read_metrics
from trd_ray.run_folder import RunFolder

MODES = {
    "synchronous": ("pipeline.max_staleness=0",),
    "one ahead": ("pipeline.max_staleness=1", "pipeline.stage_barrier=false"),
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run."""

    steps_per_hour: float
    avg_at_k: float
    stale_share: float
    """Of all trajectories, those that were dropped as stale."""


def main() -> None:
    arguments = _arguments()
    outcomes: dict[str, list[Outcome]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(arguments.seeds):
            # Whichever comes second finds the disk cache warm: they take turns at that.
            for mode in list(MODES)[:: 1 if number % 2 == 0 else -1]:
                run_dir = Path(folder) / f"{mode.replace(' ', '_')}-{seed}"
                outcome = _run(arguments.config, run_dir, mode, seed=seed, num_steps=arguments.steps)
                outcomes[mode].append(outcome)
                print(
                    f"seed {seed}, {mode}: {outcome.steps_per_hour:,.0f} steps/hour, "
                    f"avg@k {outcome.avg_at_k:.3f}, {outcome.stale_share:.1%} stale",
                    flush=True,
                )
    _summary(outcomes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=30)
    return parser.parse_args()


def _run(config: Path, run_dir: Path, mode: str, *, seed: int, num_steps: int) -> Outcome:
    options = [f"run.dir={run_dir}", f"run.seed={seed}", f"run.num_steps={num_steps}", "run.eval_every=0"]
    command = [sys.executable, "-m", "launch.train", str(config), *options, *MODES[mode]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    folder = RunFolder.open(run_dir)
    steps = read_metrics(folder.metrics)
    counted = steps[1:]
    return Outcome(
        steps_per_hour=3600 * len(counted) / sum(m.step_s for m in counted),
        avg_at_k=read_evals(folder.eval)[-1].avg_at_k,
        stale_share=sum(m.rejected_by_reason.get("stale", 0) for m in steps)
        / sum(m.num_trajectories for m in steps),
    )


def _summary(outcomes: dict[str, list[Outcome]]) -> None:
    before, after = outcomes.values()
    ratios = [b.steps_per_hour / a.steps_per_hour for a, b in zip(before, after, strict=True)]
    gaps = [b.avg_at_k - a.avg_at_k for a, b in zip(before, after, strict=True)]
    print(
        f"steps an hour, one ahead / synchronous: median {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )
    print(
        f"final avg@k, one ahead less synchronous: median {statistics.median(gaps):+.3f} "
        f"({min(gaps):+.3f} to {max(gaps):+.3f})"
    )


if __name__ == "__main__":
    main()
