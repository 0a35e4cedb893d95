"""What may go wrong in a run, where and when; and the draw of one by a seed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from dataclasses import dataclass
from enum import StrEnum


class Target(StrEnum):
    """Whom a fault strikes."""

    GENERATOR = "generator"
    TEACHER = "teacher"
    LEARNER = "learner"
    DRIVER = "driver"
    GENERATOR_CORE = "generator_core"
    """vLLM's engine process, a child of a generator."""
    TEACHER_CORE = "teacher_core"


class Moment(StrEnum):
    """What the run is doing when it strikes: a stage of a step, or other work."""

    START = "start"
    ROLLOUT = "rollout"
    REFINE = "refine"
    SCORE = "score"
    LEARN = "learn"
    SYNC = "sync"
    CHECKPOINT = "checkpoint"


class Kind(StrEnum):
    KILL = "SIGKILL"
    STOP = "SIGSTOP"
    RAISES = "raises"
    """A method of the actor raises what nobody expects."""
    SLOW = "slow"
    """A method takes longer, within its limit or beyond it."""
    NONSENSE = "nonsense"
    """Answers that are not finite."""
    FULL_DISK = "full_disk"
    """No byte is left where the run folder is."""
    TORN_METRICS = "torn_metrics"
    """The driver is killed, and the last line of metrics.jsonl is half written."""
    TORN_LOG = "torn_log"
    """The driver is killed, and what it wrote since the last checkpoint is half there."""
    TORN_CHECKPOINT = "torn_checkpoint"
    """The driver is killed, and a file of the newest checkpoint is damaged."""


TORN = (Kind.TORN_METRICS, Kind.TORN_LOG, Kind.TORN_CHECKPOINT)
IN_ACTOR = (Kind.RAISES, Kind.SLOW, Kind.NONSENSE)
"""Faults that an actor makes itself, by a subclass."""

PATIENCE = float(os.environ.get("TRD_CHAOS_PATIENCE", "2"))
"""Factor of all limits: 1 on a quiet machine, more on one that others compute on too."""
GENERATE_S, LEARN_S, SYNC_S, START_S = 10.0 * PATIENCE, 20.0 * PATIENCE, 10.0 * PATIENCE, 60.0 * PATIENCE
"""The limits of a chaos run, under `timeouts`."""
HEARTBEAT_S = 5.0 * PATIENCE
"""Within which an actor must answer to it."""
LIMIT_S = {
    Moment.ROLLOUT: GENERATE_S,
    Moment.REFINE: GENERATE_S,
    Moment.SCORE: GENERATE_S,
    Moment.LEARN: LEARN_S,
    Moment.CHECKPOINT: LEARN_S,
    Moment.SYNC: SYNC_S,
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault and when it strikes. It strikes once in a run, resumes included."""

    seed: int
    kind: Kind
    target: Target
    moment: Moment
    nth: int = 1
    """Time that the moment is seen to have come at which it strikes, from 1."""
    delay_s: float = 0.0
    """After that."""
    times: int = 1
    """Calls in a row that raise or give nonsense."""
    slow_s: float = 0.0
    index: int = 0
    """Which of the target's actors."""
    max_staleness: int = 1
    num_ranks: int = 1
    num_generators: int = 2

    @property
    def words(self) -> str:
        return f"{self.kind} of {self.target} in {self.moment}"

    @property
    def ends_driver(self) -> bool:
        """The driver is killed, and has to be resumed."""
        return self.kind in TORN or (self.kind is Kind.KILL and self.target is Target.DRIVER)

    @property
    def ends_run(self) -> bool:
        """Nothing can be done about it but to say so and to be resumed."""
        at_start = self.moment is Moment.START and self.target is not Target.DRIVER
        return at_start or self.kind is Kind.FULL_DISK

    def dump(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def read(cls, text: str) -> Fault:
        raw = json.loads(text)
        kinds = {"kind": Kind(raw["kind"]), "target": Target(raw["target"]), "moment": Moment(raw["moment"])}
        return cls(**(raw | kinds))


Case = tuple[Kind, Target, Moment]


def cases() -> list[Case]:
    """Every fault that there is, in a fixed order."""
    actors = (Target.GENERATOR, Target.TEACHER, Target.LEARNER)
    cores = (Target.GENERATOR_CORE, Target.TEACHER_CORE)
    running = tuple(m for m in Moment if m is not Moment.START)
    found: list[Case] = []
    for kind in (Kind.KILL, Kind.STOP):
        found += [(kind, target, moment) for target in (*actors, *cores) for moment in running]
        found += [(kind, target, Moment.START) for target in actors]
    found += [(Kind.KILL, Target.DRIVER, moment) for moment in Moment]
    found += [(Kind.STOP, Target.DRIVER, m) for m in (Moment.ROLLOUT, Moment.LEARN, Moment.SYNC)]
    own = {
        Target.GENERATOR: (Moment.ROLLOUT, Moment.SYNC),
        Target.TEACHER: (Moment.REFINE, Moment.SCORE),
        Target.LEARNER: (Moment.LEARN, Moment.SYNC, Moment.CHECKPOINT),
    }
    for target, moments in own.items():
        found += [(Kind.RAISES, target, moment) for moment in (*moments, Moment.START)]
        found += [(Kind.SLOW, target, moment) for moment in moments]
    found += [
        (Kind.NONSENSE, Target.GENERATOR, Moment.ROLLOUT),
        (Kind.NONSENSE, Target.TEACHER, Moment.REFINE),
        (Kind.NONSENSE, Target.TEACHER, Moment.SCORE),
    ]
    found += [(Kind.FULL_DISK, Target.DRIVER, m) for m in (Moment.ROLLOUT, Moment.LEARN, Moment.CHECKPOINT)]
    found += [(kind, Target.DRIVER, m) for kind in TORN for m in (Moment.LEARN, Moment.SYNC)]
    return found


def draw(seed: int) -> Fault:
    """The fault of a seed: consecutive seeds go through all cases before one comes again."""
    shuffled = cases()
    random.Random(0).shuffle(shuffled)
    kind, target, moment = shuffled[seed % len(shuffled)]
    rng = random.Random(seed)
    limit_s = LIMIT_S.get(moment, START_S)
    # A checkpoint is there every second step, a stage of the engines once a step at least; an actor that
    # fails by itself counts its own calls, of which there are more.
    entries = 12 if kind in IN_ACTOR else 4
    last = {Moment.START: 1, Moment.CHECKPOINT: 2, Moment.LEARN: 4, Moment.SYNC: 5}.get(moment, entries)
    # Torn files are of interest once there is a checkpoint.
    first = 4 if kind in TORN else 1
    return Fault(
        seed=seed,
        kind=kind,
        target=target,
        moment=moment,
        nth=rng.randint(min(first, last), max(first, last)),
        delay_s=round(rng.uniform(0.0, 12.0) if moment is Moment.START else _delay_s(rng), 3),
        times=rng.randint(1, 2),
        slow_s=round(rng.choice((rng.uniform(1.0, 0.4 * limit_s), limit_s + 5.0)), 1),
        index=rng.randint(0, 1),
        max_staleness=rng.choice((0, 1, 1)),
        num_ranks=2 if target is Target.LEARNER and rng.random() < 0.4 else 1,
        num_generators=rng.randint(1, 2),
    )


def _delay_s(rng: random.Random) -> float:
    """At once, within a call of milliseconds, or within one of a stage."""
    return rng.choice((0.0, rng.uniform(0.0, 0.05), rng.uniform(0.0, 0.5)))
