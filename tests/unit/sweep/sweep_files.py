"""Sweep files and run folders for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trd_ray.run_folder import RunFolder
from trd_ray.sweep.spec import Sweep, load_sweep
from trd_ray.sweep.state import TrialRecord, TrialStatus

METHODS = {"opd": "rollout", "sft": "reference"}


def write(folder: Path, text: str) -> Path:
    """A sweep file beside a base configuration and two methods."""
    for name in ("sweep", "method"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text("run: {num_steps: 4}\npipeline: {prompts_per_step: 8}\n")
    (folder / "method" / "opd.yaml").write_text("method: {trajectory: rollout, teacher_context: prompt}\n")
    (folder / "method" / "sft.yaml").write_text(
        "method: {trajectory: reference, teacher_context: prompt, divergence: nll}\n"
    )
    path = folder / "sweep" / "file.yaml"
    path.write_text("base: ../base.yaml\n" + text)
    return path


def sweep_of(folder: Path, text: str, *overrides: str) -> Sweep:
    return load_sweep(write(folder, text), [f"sweep.dir={folder / 'out'}", *overrides])


def record(variant: str, seed: int | None = None, **values: object) -> TrialRecord:
    name = variant if seed is None else f"{variant}__seed={seed}"
    given = {"status": TrialStatus.DONE, "attempts": 1, "settings": (("method", variant),), **values}
    return TrialRecord(name=name, variant=variant, seed=seed, **given)  # type: ignore[arg-type]


def write_evals(run: RunFolder, values: Sequence[tuple[int, float]]) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "learner_step": step, "dataset": "held_out", "num_problems": 4, "num_samples": 2, "k": 2,
            "avg_at_k": value, "ci95": [0.0, 1.0], "pass_at_k": value, "pass_ci95": [0.0, 1.0],
            "mean_length": 3.0, "truncated_share": 0.0,
        }
        for step, value in values
    ]  # fmt: skip
    run.eval.write_text("".join(json.dumps(row) + "\n" for row in rows))
