"""How the driver scales: the real pipeline over engines that only wait (`benchmarks/simulated.py`).

Ray's own transport is not in any figure; all else that the driver does is. One mode a call:

    --overlap            learner idle share and throughput of max_staleness 0, 1, 2, in turns in one run
    --throughput [N]     trajectories a second with engines that answer at once, and the driver's memory
    --scale ENGINES...   CPU time of the driver a trajectory as engines, and what is in flight, grow
    --plan [GPUS...]     a simulation in virtual time from published figures: `benchmarks/plan.py`

Usage: python -m benchmarks.pipeline MODE [--repeats 3] [--recorder null|real] [--tokens 64]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from dataclasses import dataclass

import psutil

from benchmarks.plan import print_plan
from benchmarks.simulated import (
    Cluster,
    FixedServer,
    SimulatedRoles,
)
from benchmarks.simulated_run import Options, Runner, StepWatch, simulated_run, spread
from benchmarks.virtual_time import run_virtual

_MIB = 2**20


# --- overlap


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Stage times rollout : refine : score : learn = 4 : 2 : 1 : 4, on engines in that proportion."""

    unit_s: float = 0.05
    """A trajectory's score on one engine; its refinement takes 2 of them, its rollout 4."""
    num_sets: int = 2
    """Sets of 4 generators and 3 teachers. Each engine serves one request while another waits at it, as a run
    has it (`launch/wiring_ray.py`): so it does not wait for the driver."""
    per_step: int = 512
    num_steps: int = 7
    num_warm_up: int = 2
    sync_s: float = 0.04

    def cluster(self) -> Cluster:
        stages = {"rollout": 4 * self.unit_s, "refine": 2 * self.unit_s, "score": self.unit_s}
        each = self.unit_s / self.num_sets
        return Cluster(
            generators=[FixedServer(stages, jitter=0.2, seed=i, at_once=1) for i in range(4 * self.num_sets)],
            teachers=[
                FixedServer(stages, jitter=0.2, seed=-1 - i, at_once=1) for i in range(3 * self.num_sets)
            ],
            generator_slots=2,
            teacher_slots=2,
            # The engines finish one trajectory each `each` seconds, and so does the learner.
            learn_s=lambda batch: batch.num_trajectories * each - self.sync_s,
            sync_s=self.sync_s,
        )


def idle_share(simulated: SimulatedRoles, *, skip: int) -> tuple[float, float]:
    """Share of the time in which the learner neither learns nor pushes, and seconds a step; from the end of
    step `skip` to that of the last."""
    # The first is the push at the start; then a step and a push in turns.
    busy = simulated.learner.busy[1 + 2 * skip :]
    start, end = simulated.learner.busy[2 * skip][1], busy[-1][1]
    worked = sum(b - a for a, b in busy)
    return 1 - worked / (end - start), (end - start) / (len(busy) / 2)


def measure_overlap(options: Options) -> None:
    """On the real clock, where the driver's own time counts, and on the virtual one, where it takes none and
    what is left is the schedule's doing."""
    overlap = Overlap()
    print(
        f"overlap: rollout:refine:score:learn = 4:2:1:4, {4 * overlap.num_sets} generators, "
        f"{3 * overlap.num_sets} teachers, {overlap.per_step} trajectories a step, "
        f"{overlap.num_steps - overlap.num_warm_up} steps, {options.repeats} repeats in turns"
    )
    _print_overlap("virtual", _overlap_rows(overlap, options, run_virtual, repeats=1))
    _print_overlap("real", _overlap_rows(overlap, options, asyncio.run, repeats=options.repeats))


def _overlap_rows(
    overlap: Overlap, options: Options, runner: Runner, *, repeats: int
) -> dict[int, list[tuple[float, float]]]:
    rows: dict[int, list[tuple[float, float]]] = {0: [], 1: [], 2: []}
    for repeat in range(repeats):
        for staleness in list(rows) if repeat % 2 == 0 else list(reversed(rows)):
            simulated = simulated_run(
                runner, options, overlap.cluster(), num_steps=overlap.num_steps,
                per_step=overlap.per_step, staleness=staleness, watch=StepWatch(),
            )  # fmt: skip
            rows[staleness].append(idle_share(simulated, skip=overlap.num_warm_up))
    return rows


def _print_overlap(clock: str, rows: dict[int, list[tuple[float, float]]]) -> None:
    for staleness, values in rows.items():
        idle, step = [v[0] for v in values], [v[1] for v in values]
        ratio = [base[1] / v for base, v in zip(rows[0], step, strict=True)]
        print(
            f"{clock} clock, max_staleness {staleness}: learner idle {spread(idle, '.1%')}, "
            f"s a step {spread(step, '.2f')}, throughput x that of 0: {spread(ratio, '.2f')}",
            flush=True,
        )


# --- throughput and memory


def measure_throughput(options: Options, *, num: int) -> None:
    per_step, process = 512, psutil.Process()
    for repeat in range(options.repeats):
        samples: list[Sample] = []

        def sample(num: int, samples: list[Sample] = samples) -> None:
            rss = process.memory_info().rss / _MIB
            samples.append(
                Sample(num=num, wall_s=time.perf_counter(), cpu_s=time.process_time(), rss_mib=rss)
            )

        simulated_run(
            asyncio.run, options, instant_cluster(8), num_steps=num // per_step,
            per_step=per_step, staleness=1, watch=StepWatch(each=sample),
        )  # fmt: skip
        _print_throughput(samples, options, repeat=repeat)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The driver after a step."""

    num: int
    """Trajectories that were consumed."""
    wall_s: float
    cpu_s: float
    rss_mib: float


def _print_throughput(samples: list[Sample], options: Options, *, repeat: int) -> None:
    first, last = samples[0], samples[-1]
    tenth = min(samples, key=lambda s: abs(s.num - last.num / 10))
    num = last.num - first.num
    late = [s for s in samples if s.num >= tenth.num]
    # Least squares: the last value alone depends on where the garbage collector stands.
    slope = statistics.linear_regression([s.num for s in late], [s.rss_mib for s in late]).slope
    print(
        f"throughput, recorder {options.recorder}, {options.tokens} tokens, repeat {repeat + 1}: "
        f"{last.num} trajectories, {num / (last.wall_s - first.wall_s):.0f}/s, "
        f"{num / (last.cpu_s - first.cpu_s):.0f} a CPU second; "
        f"RSS MiB: start {first.rss_mib:.0f}, at 10% {tenth.rss_mib:.0f}, end {last.rss_mib:.0f}; "
        f"from 10% on {slope * 100_000:+.2f} MiB per 100,000",
        flush=True,
    )


def instant_cluster(num_engines: int) -> Cluster:
    server = FixedServer({}, jitter=0.0, seed=0)
    return Cluster(
        generators=[server] * num_engines,
        teachers=[server] * num_engines,
        generator_slots=64,
        teacher_slots=64,
        learn_s=lambda batch: 0.0,
        sync_s=0.0,
    )


# --- cost against the number of engines


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Virtual seconds, so that the driver never waits: its CPU time is all that passes."""

    in_flight_per_engine: int = 8
    seconds: tuple[float, float, float] = (40.0, 20.0, 10.0)
    """Rollout, refinement, score."""
    fewest: int = 8_192
    """Trajectories of a measurement."""

    def cluster(self, num_engines: int) -> Cluster:
        rollout, refine, score = self.seconds
        stages = {"rollout": rollout, "refine": refine, "score": score}
        num_teachers = max(1, num_engines * 3 // 7)
        num_generators = max(1, num_engines - num_teachers)
        return Cluster(
            generators=[FixedServer(stages, jitter=0.5, seed=i) for i in range(num_generators)],
            teachers=[FixedServer(stages, jitter=0.5, seed=-1 - i) for i in range(num_teachers)],
            generator_slots=self.in_flight_per_engine,
            teacher_slots=self.in_flight_per_engine,
            learn_s=lambda batch: rollout,
            sync_s=1.0,
        )


def measure_scale(options: Options, sizes: list[int]) -> None:
    scale = Scale()
    costs: dict[int, list[float]] = {size: [] for size in sizes}
    for repeat in range(options.repeats):
        for size in sizes if repeat % 2 == 0 else reversed(sizes):
            per_step = size * scale.in_flight_per_engine
            num_steps = max(3, scale.fewest // per_step)
            gc.collect()
            timed = CpuWatch(skip=per_step)
            simulated_run(
                run_virtual, options, scale.cluster(size), num_steps=num_steps, per_step=per_step,
                staleness=1, watch=StepWatch(each=timed.sample),
            )  # fmt: skip
            costs[size].append(timed.per_trajectory_s)
    base = costs[sizes[0]]
    print(
        f"scale, recorder {options.recorder}, {options.tokens} tokens, {options.repeats} repeats in turns: "
        "CPU time of the driver a trajectory"
    )
    for size, values in costs.items():
        ratio = [v / b for v, b in zip(values, base, strict=True)]
        per_step = size * scale.in_flight_per_engine
        print(
            f"{size:5} engines, {2 * per_step:6} in flight at most: "
            f"{spread([1e6 * v for v in values], '.0f')} us, x that of {sizes[0]}: {spread(ratio, '.2f')}"
        )


@dataclass
class CpuWatch:
    """CPU time a trajectory after the first `skip` ones: neither start nor end of a run are in it."""

    skip: int
    first: tuple[int, float] | None = None
    last: tuple[int, float] | None = None

    def sample(self, num: int) -> None:
        now = (num, time.process_time())
        if self.first is None and num >= self.skip:
            self.first = now
        self.last = now

    @property
    def per_trajectory_s(self) -> float:
        assert self.first is not None and self.last is not None  # a run has several steps
        return (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--overlap", action="store_true")
    mode.add_argument("--throughput", nargs="?", type=int, const=200_000)
    mode.add_argument("--scale", nargs="+", type=int)
    mode.add_argument("--plan", nargs="*", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--recorder", choices=("null", "real"), default="null")
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    options = Options(repeats=arguments.repeats, recorder=arguments.recorder, tokens=arguments.tokens)
    if arguments.overlap:
        measure_overlap(options)
    elif arguments.throughput is not None:
        measure_throughput(options, num=arguments.throughput)
    elif arguments.scale is not None:
        measure_scale(options, arguments.scale)
    else:
        print_plan(arguments.plan or [8, 64, 256, 1024])


if __name__ == "__main__":
    main()
