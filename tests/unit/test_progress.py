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
        "step 1/3  rollout acc 0.250  refined acc 0.900  flips +0/-0  loss 0.5000  1,234 tok/s  staleness 0  "
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
    progress = Progress(300, console=console(terminal=False), activity=activity, overlaps=True)

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
        assert "rollout 3 refine 1 learn" in line()
        progress.on_stage("rollout", 7, 8)  # which of the step's eight it was says nothing here
        assert "rollout 3 refine 1 learn" in line()
        progress.on_stage("eval", 2, 9)
        assert "eval 2/9 rollout 3 refine 1 learn" in line()


def test_a_log_says_who_was_busy_and_what_waited():
    plain = console(terminal=False)
    runtime = RuntimeMetrics(
        generator_busy_s=1.5, generator_waiting_s=0.5, generator_idle_s=0.0, generator_down_s=0.0,
        learner_busy_s=0.5, learner_waiting_s=1.5, learner_idle_s=0.0, learner_down_s=0.0,
        buffer_depth_mean=19.6, teacher_queue_mean=2.7,
    )  # fmt: skip
    with Progress(3, console=plain) as progress:
        progress.on_step(dataclasses.replace(step(1), runtime=runtime, flips_wrong_to_right=5))
    text = plain.file.getvalue()
    assert "flips +5/-0" in text
    assert "staleness 0  busy: generator 75% learner 25%  queue: teacher 3  buffer 20  ETA" in text


def running(width: int) -> tuple[Progress, Console, RoleActivity]:
    """In the middle of step 42, with everything to show."""
    activity = RoleActivity()
    shown = console(terminal=True, width=width)
    progress = Progress(300, console=shown, activity=activity)
    shares = {f"{role}_{state}_s": 0.5 for role in Role for state in ("busy", "waiting", "idle", "down")}
    progress.on_step(
        dataclasses.replace(
            step(41, rejected=2), runtime=RuntimeMetrics(**shares), flips_wrong_to_right=5,
            flips_right_to_wrong=1,
        )
    )  # fmt: skip
    activity.queue(Role.TEACHER).set(12)
    activity.buffer.set(31)
    progress.on_stage("refine", 23, 64)
    return progress, shown, activity


@pytest.mark.parametrize(("width", "num_lines"), [(160, 3), (80, 5)])
def test_everything_is_shown_at_every_usual_width_and_no_figure_is_cut(width, num_lines):
    progress, shown, _ = running(width)
    shown.print(progress.render())
    lines = shown.file.getvalue().splitlines()
    assert len(lines) == num_lines
    assert max(len(line) for line in lines) < width
    text = "\n".join(lines)
    for figure in (
        "step 41/300", "refine 23/64", "ETA 8:38", "rollout acc 0.250", "refined acc 0.900", "flips +5/-1",
        "loss 0.0122", "1,234 tok/s", "staleness 0", "rejected 2",
        "busy: generator 25% teacher 25% learner 25%",
        "queue: generator 0 teacher 12", "in flight 0", "buffer 31",
    ):  # fmt: skip
        assert figure in text


@pytest.mark.parametrize("width", [1, 2, 10, 20, 33, 40])
def test_a_narrow_terminal_gets_no_line_that_it_would_break(width):
    progress, shown, _ = running(width)
    shown.print(progress.render())
    assert max(len(line) for line in shown.file.getvalue().splitlines()) <= max(1, width - 1)


def test_a_new_stage_is_shown_at_once_and_samples_of_it_now_and_then():
    terminal = console(terminal=True)
    with Progress(300, console=terminal) as progress:
        for done in range(1000):
            progress.on_stage("rollout", done, 1000)
        progress.on_stage("learn", 0, 1)
        written = terminal.file.getvalue()
    assert "rollout 0/1000" in written and "learn 0/1" in written
    assert written.count("rollout") < 100


def test_a_terminal_without_a_cursor_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    plain = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with Progress(3, console=plain) as progress:
        progress.on_stage("rollout", 1, 8)
        progress.on_step(step(1))
    assert plain.file.getvalue().startswith("step 1/3  rollout acc")
    assert "\x1b" not in plain.file.getvalue()


def test_lines_that_a_narrowed_terminal_broke_are_taken_away_too():
    progress, shown, _ = running(160)
    with progress:
        before = len(shown.file.getvalue())
        shown.width = 60
        progress.on_stage("learn", 0, 1)
        written = shown.file.getvalue()[before:]
    # 3 lines of at most 159 characters are 2, 2 and 2 of 60 or more: the surplus is erased upwards.
    full = running(160)
    full[1].print(full[0].render())
    lengths = [len(line) for line in full[1].file.getvalue().splitlines()]
    surplus = sum(-(-length // 60) - 1 for length in lengths)
    assert surplus > 0
    assert f"\r{chr(27)}[1A{chr(27)}[2K" in written
    assert written.count("\x1b[1A") >= surplus + 2


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
