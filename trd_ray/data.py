"""Problems from files or from the testbed, in an order that can be resumed.

Sources (`data.train`, `data.eval`):
    a path or fsspec URL        JSON Lines (.jsonl, .json; also compressed, as .jsonl.gz) or Parquet
    testbed:train               the arithmetic testbed's problems, endless
    testbed:held_out            its held-out problems, endless
    sample:gsm8k_train, _test   a few hundred rows of GSM8K that come with the math task

A file is read whole and checked whole before the first problem is given out, so a bad row stops a run
before it starts. The task may read the text of the columns in its own way (see
`trd_ray.tasks.math.answers`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Protocol

from trd_ray.config import ColumnsConfig
from trd_ray.errors import CheckpointError, ConfigError, describe
from trd_ray.rows import read_rows
from trd_ray.tasks.arithmetic import Split, generate_problems
from trd_ray.types import Problem

_TESTBED_PREFIX = "testbed:"
_TESTBED_TASK = "arithmetic"


class SourceKind(StrEnum):
    """Whether a source ends."""

    FINITE = "finite"
    ENDLESS = "endless"


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamState:
    """Where a stream stands. Plain values, so that it can be written as JSON."""

    kind: SourceKind
    fingerprint: str
    """Of the problems and the seed: a state belongs to one stream only."""
    epoch: int
    """Epoch of the next problem, from 0."""
    position: int
    """Problems of that epoch that were given out."""


class ProblemStream(Protocol):
    """Problems without end; a finite source is given out again in each epoch, in another order."""

    @property
    def num_problems(self) -> int | None:
        """Problems of an epoch; None if the source is endless."""
        ...

    def take(self, num: int) -> tuple[tuple[Problem, int], ...]:
        """The next `num` problems, each with its epoch."""
        ...

    def state(self) -> StreamState:
        """Where the next problem comes from."""
        ...

    def restore(self, state: StreamState) -> None:
        """Go on from `state`. Raises `CheckpointError` if it belongs to another stream."""
        ...


def load_problems(
    source: str, columns: ColumnsConfig, *, task: str, need_reference: bool, seed: int
) -> ProblemStream:
    """Open a source to train on.

    Args:
        task: the name in `data.task`.
        need_reference: refuse rows without a reference solution.
        seed: of the order of problems.

    Raises:
        DataError: the file is missing or unreadable, or a row is invalid; names file, row and column.
        ConfigError: the source does not go with the task.
    """
    if source.startswith(_TESTBED_PREFIX):
        return EndlessStream(source, split=_testbed_split(source, task=task), seed=seed)
    problems = read_rows(source, columns, task=task, need_reference=need_reference)
    return FiniteStream(problems, seed=seed)


def load_first_problems(
    source: str, columns: ColumnsConfig, *, task: str, need_reference: bool, seed: int, num: int
) -> tuple[Problem, ...]:
    """The first `num` problems of a source, in its own order, to evaluate on.

    Of a file that holds fewer, all. `seed` chooses among the testbed's problems, and nothing else.
    Raises as `load_problems` does.
    """
    if source.startswith(_TESTBED_PREFIX):
        split = _testbed_split(source, task=task)
        return tuple(generate_problems(seed=seed, split=split, num=num))
    return read_rows(source, columns, task=task, need_reference=need_reference)[:num]


class FiniteStream:
    """A `ProblemStream` over a fixed set of problems."""

    def __init__(self, problems: tuple[Problem, ...], *, seed: int) -> None:
        if not problems:
            raise ValueError("FiniteStream: no problems; expected at least one")
        self._problems = problems
        self._seed = seed
        ids = (part for p in problems for part in (p.prompt_id, p.problem, p.answer, p.reference or ""))
        self._fingerprint = _fingerprint(str(seed), *ids)
        self._epoch = 0
        self._position = 0
        self._order = self._shuffled(0)

    @property
    def num_problems(self) -> int:
        return len(self._problems)

    def take(self, num: int) -> tuple[tuple[Problem, int], ...]:
        taken = []
        for _ in range(num):
            if self._position == len(self._order):
                self._epoch += 1
                self._position = 0
                self._order = self._shuffled(self._epoch)
            taken.append((self._order[self._position], self._epoch))
            self._position += 1
        return tuple(taken)

    def state(self) -> StreamState:
        return StreamState(
            kind=SourceKind.FINITE, fingerprint=self._fingerprint, epoch=self._epoch, position=self._position
        )

    def restore(self, state: StreamState) -> None:
        _check_state(state, kind=SourceKind.FINITE, fingerprint=self._fingerprint, most=len(self._problems))
        self._epoch = state.epoch
        self._position = state.position
        self._order = self._shuffled(state.epoch)

    def _shuffled(self, epoch: int) -> tuple[Problem, ...]:
        # By hash and not by a random generator, whose sequence a new library version may change.
        def key(problem: Problem) -> bytes:
            return hashlib.sha256(f"{self._seed}/{epoch}/{problem.prompt_id}".encode()).digest()

        return tuple(sorted(self._problems, key=key))


class EndlessStream:
    """A `ProblemStream` over the testbed's generator. All its problems are of epoch 0."""

    def __init__(self, source: str, *, split: Split, seed: int) -> None:
        self._split = split
        self._seed = seed
        self._fingerprint = _fingerprint(str(seed), source)
        self._position = 0
        self._problems = self._generate()

    @property
    def num_problems(self) -> None:
        return None

    def take(self, num: int) -> tuple[tuple[Problem, int], ...]:
        taken = tuple((problem, 0) for problem in islice(self._problems, num))
        self._position += len(taken)
        return taken

    def state(self) -> StreamState:
        return StreamState(
            kind=SourceKind.ENDLESS, fingerprint=self._fingerprint, epoch=0, position=self._position
        )

    def restore(self, state: StreamState) -> None:
        _check_state(state, kind=SourceKind.ENDLESS, fingerprint=self._fingerprint, most=None)
        # Problems are drawn without repetition, so the n-th depends on all before it.
        self._problems = self._generate()
        self._position = 0
        self.take(state.position)

    def _generate(self) -> Iterator[Problem]:
        return generate_problems(seed=self._seed, split=self._split, num=None)


def _testbed_split(source: str, *, task: str) -> Split:
    name = source.removeprefix(_TESTBED_PREFIX)
    if name not in {split.value for split in Split}:
        raise ConfigError(
            describe(
                "unknown testbed split",
                where="data.train or data.eval",
                got=repr(source),
                expected=" or ".join(f"{_TESTBED_PREFIX}{split.value}" for split in Split),
                remedy="correct the name",
            )
        )
    if task != _TESTBED_TASK:
        raise ConfigError(
            describe(
                "the testbed's problems belong to another task",
                where="data.task",
                got=f"{task!r} with {source!r}",
                expected=f"{_TESTBED_TASK!r}",
                remedy=f"set data.task={_TESTBED_TASK}, or name a data file in data.train and data.eval",
            )
        )
    return Split(name)


def _check_state(state: StreamState, *, kind: SourceKind, fingerprint: str, most: int | None) -> None:
    in_range = state.epoch >= 0 and state.position >= 0 and (most is None or state.position <= most)
    if state.kind is not kind or state.fingerprint != fingerprint or not in_range:
        raise CheckpointError(
            describe(
                "the data position belongs to other data or another seed",
                where="checkpoint, data position",
                got=f"{state.kind.value}, fingerprint {state.fingerprint}, epoch {state.epoch}, "
                f"position {state.position}",
                expected=f"{kind.value}, fingerprint {fingerprint}",
                remedy="resume with the same data file, columns and run.seed, or start a new run",
            )
        )


def _fingerprint(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()[:16]
