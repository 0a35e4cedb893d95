"""`--local` with a bug in an actor: it ends at once, and the actor's own traceback is what is seen."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.e2e.processes import CONFIGS, run


def test_a_bug_in_an_actor_is_shown_with_its_own_traceback(tmp_path: Path):
    done = run(
        [
            sys.executable,
            "-m",
            "tests.e2e.raising_teacher",
            "train",
            str(CONFIGS / "trd_opd.yaml"),
            f"run.dir={tmp_path / 'run'}",
            "generator.engine.kv_cache_gib=0.25",
            "teacher.engine.kv_cache_gib=0.25",
            "run.checkpoint_every=0",
            'data.eval=""',
            "--local",
        ]
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "  pipeline.prompts_per_step: 64 -> 4\n" in done.stdout
    traceback = done.stderr[: done.stderr.index("RunFailedError: a request failed at every attempt")]
    assert "in _look_up" in traceback
    assert 'return table["the bug of this test"]' in traceback
    assert traceback.rstrip().endswith("KeyError: 'the bug of this test'")
    assert "is replaced" not in done.stderr  # no second attempt
    assert "(RaisingTeacher pid=" in done.stdout + done.stderr  # the actors' own lines
