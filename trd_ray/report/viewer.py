"""The data behind the trajectory viewer: what the page carries of each run, packed in columns.

The page opens with one small index a run: a few numbers a trajectory, enough to list, sort and filter.
Texts and per-token numbers are in blocks of a few hundred trajectories, which it unpacks when they are
needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.report.blob import Array, halves, pack
from trd_ray.report.kinds import Kind
from trd_ray.report.rows import Row, Rows, common_prefix
from trd_ray.report.selection import MAX_CHARS, MAX_TOKENS
from trd_ray.report.vocabulary import token_pieces
from trd_ray.types import TeacherContext, TrajectorySource

BLOCK = 256
"""Trajectories of one block."""

_ENUMS: Mapping[str, tuple[str, ...]] = {
    "kind": tuple(Kind),
    "source": tuple(TrajectorySource),
    "context": tuple(TeacherContext),
    "outcome": tuple(Outcome),
    "reason": tuple(RejectReason),
    "gate_reason": tuple(RejectReason),
}
_COLUMN = {"source": "trajectory_source", "context": "teacher_context"}
_NUMBERS = (
    "learner_step", "epoch", "sample_index", "num_kept", "policy_version_min", "policy_version_max",
    "rollout_correct", "trajectory_correct", "rollout_first_wrong_step", "trajectory_first_wrong_step",
)  # fmt: skip
"""Columns that go into the index as whole numbers; -1 is null."""


@dataclass(frozen=True, kw_only=True)
class RunTrajectories:
    """One run's part of the viewer."""

    rows: Rows
    tokenizer: Tokenizer | None

    @cached_property
    def num_by_kind(self) -> Mapping[Kind, int]:
        return Counter(row.kind for row in self.rows.rows)

    @cached_property
    def problems(self) -> dict[str, int]:
        """Number of each problem, by its `prompt_id`."""
        return {key: i for i, key in enumerate(dict.fromkeys(r.text("prompt_id") for r in self.rows.rows))}

    @cached_property
    def vocabulary(self) -> npt.NDArray[np.int32]:
        """The ids that occur, in order."""
        parts = [np.zeros(0, dtype=np.int32)]
        for row in self.rows.rows:
            for name in ("rollout_token_ids", "trajectory_token_ids"):
                parts.append(np.unique(_cut(row.lists[name])).astype(np.int32))
        return np.unique(np.concatenate(parts))

    def index(self) -> str:
        """The packed index."""
        rows = self.rows.rows
        arrays = {name: _ints(rows, lambda row, name=name: row.number(name)) for name in _NUMBERS}  # type: ignore[misc]
        for name, members in _ENUMS.items():
            order = {str(member): i for i, member in enumerate(members)}
            column = _COLUMN.get(name, name)
            arrays[name] = np.array(
                [order[str(row.kind if name == "kind" else row.plain[column])] for row in rows],
                dtype=np.uint8,
            )
        arrays["problem"] = _ints(rows, lambda row: self.problems[row.text("prompt_id")])
        arrays["num_rollout_tokens"] = _ints(rows, lambda row: _length(row.lists["rollout_token_ids"]))
        arrays["num_trajectory_tokens"] = _ints(rows, lambda row: _length(row.lists["trajectory_token_ids"]))
        arrays["num_common"] = _ints(rows, prefix_tokens)
        for name, value in _MEANS.items():
            arrays[name] = np.array([value(row) for row in rows], dtype=np.float32)
        pieces = [] if self.tokenizer is None else token_pieces(self.tokenizer, self.vocabulary.tolist())
        first = {row.text("prompt_id"): row for row in reversed(rows)}
        values = {
            "problems": [first[key].text("problem")[:MAX_CHARS] for key in self.problems],
            "prompt_ids": list(self.problems),
            "pieces": pieces,
            "enums": {name: [str(member) for member in members] for name, members in _ENUMS.items()},
            "most_divergence": _high(rows, "trajectory_divergence"),
            "block": BLOCK,
        }
        return pack(values, arrays | {"vocabulary": self.vocabulary})

    def references(self) -> str:
        """The packed reference solutions, one a problem; null where there is none."""
        found = {row.text("prompt_id"): row.plain["reference"] for row in self.rows.rows}
        texts = [None if found[key] is None else str(found[key])[:MAX_CHARS] for key in self.problems]
        return pack({"references": texts}, {})

    def blocks(self) -> Iterator[str]:
        """The packed blocks, in order."""
        for start in range(0, len(self.rows.rows), BLOCK):
            yield self._block(self.rows.rows[start : start + BLOCK])

    def _block(self, rows: Sequence[Row]) -> str:
        values: dict[str, object] = {}
        for name in ("rollout_text", "trajectory_text", "refinement_text"):
            texts = [_shown_text(row, name) for row in rows]
            values[name] = [None if text is None else text[:MAX_CHARS] for text in texts]
            values[f"{name}_cut"] = [max(0, len(text or "") - MAX_CHARS) for text in texts]
        arrays: dict[str, Array] = {}
        for name in ("rollout_token_ids", "trajectory_token_ids"):
            parts = [_cut(row.lists[name]) for row in rows]
            ids = np.concatenate([np.zeros(0, dtype=np.int32), *parts])
            arrays[name] = _smallest(np.searchsorted(self.vocabulary, ids))
            arrays[f"{name}_length"] = np.array([len(part) for part in parts], dtype=np.int32)
        for name in ("rollout_logprobs", "trajectory_divergence", "trajectory_student_logprobs"):
            cut = [_cut(row.lists[name]) for row in rows]
            arrays[name] = halves(np.concatenate([np.zeros(0, dtype=np.float32), *cut]))
            arrays[f"{name}_length"] = np.array([len(part) for part in cut], dtype=np.int32)
        return pack(values, arrays)


def prefix_tokens(row: Row) -> int:
    """Tokens that rollout and rewrite share from the beginning on; -1 where there are not both."""
    before, after = row.lists["rollout_token_ids"], row.lists["trajectory_token_ids"]
    if not row.is_rewritten or before is None or after is None or not len(before) or not len(after):
        return -1
    return common_prefix(before, after)


def _shown_text(row: Row, name: str) -> str | None:
    value = row.plain[name]
    if name == "trajectory_text" and row.plain["trajectory_source"] == TrajectorySource.ROLLOUT:
        return None  # the rollout itself
    if name == "refinement_text" and row.is_rewritten:
        return None  # the trajectory itself, or its end
    return None if value is None else str(value)


def _cut(values: Array | None) -> Array:
    return np.zeros(0, dtype=np.int32) if values is None else values[:MAX_TOKENS]


def _length(values: Array | None) -> int:
    return 0 if values is None else len(values)


def _ints(rows: Sequence[Row], value: Callable[[Row], int]) -> npt.NDArray[np.int32]:
    return np.array([value(row) for row in rows], dtype=np.int32)


def _smallest(values: npt.NDArray[np.int64]) -> Array:
    return values.astype(np.uint16 if len(values) == 0 or values.max() < 2**16 else np.uint32)


def _mean(values: Array | None) -> float:
    """NaN, which the page reads as "not recorded", where there is none."""
    return float(np.mean(values, dtype=np.float64)) if values is not None and len(values) else float("nan")


def _support(row: Row) -> float:
    if row.plain["trajectory_source"] == TrajectorySource.ROLLOUT:
        return float("nan")
    return _mean(row.lists["trajectory_student_logprobs"]) - _mean(row.lists["rollout_logprobs"])


def _most(row: Row) -> float:
    values = row.lists["trajectory_divergence"]
    return float(np.max(values)) if values is not None and len(values) else float("nan")


_MEANS: Mapping[str, Callable[[Row], float]] = {
    "divergence_mean": lambda row: _mean(row.lists["trajectory_divergence"]),
    "divergence_max": _most,
    "support": _support,
}


def _high(rows: Sequence[Row], name: str) -> float | None:
    """The 99th percentile over all tokens, where the colours end; None if nothing is recorded."""
    parts = [part for row in rows if (part := row.lists[name]) is not None and len(part)]
    if not parts:
        return None
    every = np.concatenate(parts).astype(np.float32)
    return float(np.quantile(every[np.isfinite(every)], 0.99)) if np.isfinite(every).any() else None
