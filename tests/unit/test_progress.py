"""The progress line and the closing table of the command line."""

from __future__ import annotations

import dataclasses
import io
import math

import pytest
from rich.console import Console

from launch.progress import Progress, clock_text, closing_table
from tests.unit.step_records import step
from trd_ray.activity import RoleActivity
from trd_ray.evaluation import GradedSample, summarise
from trd_ray.roles import Role
from trd_ray.runtime_metrics import RuntimeMetrics
from trd_ray.stage_clock import Stage


def report(learner_step: int, num_right: int):
    samples = [
        GradedSample(prompt_id=str(i), correct=i < num_right, num_tokens=1, truncated=False)
        for i in range(10)
    ]
    return summarise(samples, learner_step=learner_step, dataset="held[out]")


def console(*, terminal: bool, width: int = 160) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def test_a_log_gets_one_whole_line_a_step():
    plain = console(terminal=False, width=40)
    with Progress(3, console=plain) as progress:
        progress.on_eval(report(0, 2))
        progress.on_stage("rollout", 1, 8)
        progress.on_step(step(1, rejected=2))
        progress.on_step(step(2, refined=None))
        progress.on_step(step(3))
    lines = plain.file.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("eval at step 0 on held[out]: avg@1 0.200 (")
    assert lines[1] == (
        "step 1/3  rollout acc 0.250  refined acc 0.900  loss 0.5000  1,234 tok/s  staleness 0  "
        "rejected 2  ETA 0:04"
    )
    assert "refined" not in lines[2]
    assert "ETA" not in lines[3]


def test_a_terminal_gets_a_live_line():
    terminal = console(terminal=True)
    with Progress(300, console=terminal, done_steps=40) as progress:
        assert progress.eta_s() is None
        progress.on_stage("refine", 3, 64)
        progress.on_step(step(41))
        progress.on_stage("score", 5, 64)
        terminal.print(progress.render())
    shown = terminal.file.getvalue()
    assert "step 41/300" in shown
    assert "score 5/64" in shown
    assert "ETA 8:38" in shown  # 259 steps of 2 s


def test_stages_that_overlap_are_shown_together_with_the_buffer():
    activity = RoleActivity()
    for name, role in (
        ("generator-0", Role.GENERATOR),
        ("teacher-0", Role.TEACHER),
        ("learner", Role.LEARNER),
    ):
        activity.add(name, role)
    progress = Progress(300, console=console(terminal=False), overlap=activity)

    def line() -> str:
        shown = console(terminal=True)
        shown.print(progress.render())
        return " ".join(shown.file.getvalue().split())

    progress.on_stage("start", 0, 1)
    assert "start 0/1" in line()
    progress.on_stage("start", 1, 1)
    rollout, refine = (
        activity.serving("generator-0", Stage.ROLLOUT), activity.serving("teacher-0", Stage.REFINE),
    )  # fmt: skip
    with rollout, rollout, rollout, refine, activity.serving("learner", Stage.LEARN):
        activity.buffer.set(31)
        assert "rollout 3 refine 1 learn buffer 31" in line()
        progress.on_stage("rollout", 7, 8)  # which of the step's eight it was says nothing here
        assert "rollout 3 refine 1 learn buffer 31" in line()
        progress.on_stage("eval", 2, 9)
        assert "eval 2/9 rollout 3 refine 1 learn" in line()


def test_a_log_of_a_run_that_overlaps_says_who_was_busy():
    plain = console(terminal=False)
    runtime = RuntimeMetrics(
        generator_busy_s=1.5, generator_waiting_s=0.5, generator_idle_s=0.0, generator_down_s=0.0,
        learner_busy_s=0.5, learner_waiting_s=1.5, learner_idle_s=0.0, learner_down_s=0.0,
        buffer_depth_mean=19.6,
    )  # fmt: skip
    with Progress(3, console=plain, overlap=RoleActivity()) as progress:
        progress.on_step(dataclasses.replace(step(1), runtime=runtime))
    assert "staleness 0  busy: generator 75% learner 25%  buffer 20  ETA" in plain.file.getvalue()


def test_time_left_is_judged_by_the_latest_steps():
    progress = Progress(110, console=console(terminal=False))
    progress.on_step(step(1, step_s=1000.0))
    for number in range(2, 101):
        progress.on_step(step(number, step_s=3.0))
    assert progress.eta_s() == 30.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (42.4, "0:42"), (725, "12:05"), (12000, "3:20:00")]
)
def test_clock_text(seconds, text):
    assert clock_text(seconds) == text


def test_the_closing_table_is_thin_and_compares_start_with_end():
    plain = console(terminal=False)
    plain.print(
        closing_table([step(n) for n in range(1, 301)], [report(0, 2), report(150, 3), report(300, 7)])
    )
    text = plain.file.getvalue()
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert len(rows) == 20 + 2
    assert rows[0].split()[1] == "1"
    assert rows[19].split()[1] == "300"
    assert "held[out]" in text
    assert "avg@1" in rows[20]
    assert "+0.500" in rows[20]
    assert "0.200 (" in rows[20]
    assert "0.700 (" in rows[20]


def test_the_closing_table_copes_with_little():
    plain = console(terminal=False)
    plain.print(closing_table([], []))
    plain.print(closing_table([step(1, refined=None)], []))
    assert "refined" not in plain.file.getvalue()
    assert not math.isnan(step(1).loss)
