"""What it costs to watch the actors: one call (enter and leave) and one place in a queue.

The driver makes some four such calls a trajectory, for each of perhaps 1,000 trajectories a second.
Usage: python -m benchmarks.activity [--actors 8 1024] [--pairs 200000] [--repeats 5]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from trd_ray.activity import RoleActivity
from trd_ray.activity_records import WaitReason
from trd_ray.roles import Role
from trd_ray.stage_clock import Stage
from trd_ray.trace import TraceWriter


def watched(num_actors: int) -> RoleActivity:
    activity = RoleActivity()
    for i in range(num_actors):
        activity.add(f"generator-{i}", Role.GENERATOR)
    return activity


def changing(activity: RoleActivity, num_actors: int) -> Callable[[int], None]:
    """Every call finds its actor idle: the dearest case."""
    names = [f"generator-{i}" for i in range(num_actors)]

    def run(pairs: int) -> None:
        for i in range(pairs):
            with activity.serving(names[i % num_actors], Stage.ROLLOUT):
                pass

    return run


def nested(activity: RoleActivity, num_actors: int) -> Callable[[int], None]:
    """Every call finds its actor busy, as in a full engine."""
    run = changing(activity, num_actors)

    def within(pairs: int) -> None:
        with activity.serving_all(Role.GENERATOR, Stage.ROLLOUT):
            run(pairs)

    return within


def queued(activity: RoleActivity, num_actors: int) -> Callable[[int], None]:
    def run(pairs: int) -> None:
        for _ in range(pairs):
            with activity.queue(Role.GENERATOR):
                pass

    return run


def held(activity: RoleActivity, num_actors: int) -> Callable[[int], None]:
    def run(pairs: int) -> None:
        for _ in range(pairs // 100):
            with activity.holding(Role.GENERATOR, WaitReason.STALENESS):
                pass

    return run


CASES = {"idle actor": changing, "busy actor": nested, "queue": queued, "hold of the role": held}


def microseconds(case: str, num_actors: int, *, pairs: int, repeats: int, folder: Path | None) -> float:
    """A pair, best of `repeats`; with a trace being written if there is a `folder`."""
    activity = watched(num_actors)
    trace = None
    if folder is not None:
        trace = TraceWriter(folder / "trace.json", num_steps=1)
        activity.listen(trace)
    run = CASES[case](activity, num_actors)
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        run(pairs)
        best = min(best, time.perf_counter() - begin)
    if trace is not None:
        trace.close()
    return best / (pairs // 100 if case == "hold of the role" else pairs) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, nargs="+", default=[8, 1024])
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"{'microseconds a pair':24}" + "".join(f"{n:>10} actors" for n in args.actors))
    for traced in (False, True):
        for case in CASES:
            row = []
            for num_actors in args.actors:
                with tempfile.TemporaryDirectory() as folder:
                    where = Path(folder) if traced else None
                    pairs = args.pairs // 10 if traced else args.pairs
                    row.append(
                        microseconds(case, num_actors, pairs=pairs, repeats=args.repeats, folder=where)
                    )
            name = f"{case}, traced" if traced else case
            print(f"{name:24}" + "".join(f"{value:>17.2f}" for value in row))


if __name__ == "__main__":
    main()
