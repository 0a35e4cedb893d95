"""Statistics by hand, the order of rows, and what the files say."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.step_records import step
from tests.unit.sweep.sweep_files import record, write_evals
from trd_ray.json_lines import dump_line
from trd_ray.sweep import words
from trd_ray.sweep.files import csv_text, html, markdown, write_leaderboard
from trd_ray.sweep.leaderboard import TrialLine, leaderboard, read_leaderboard
from trd_ray.sweep.options import MetricConfig, Mode
from trd_ray.sweep.results import TrialResult, read_result
from trd_ray.sweep.state import SweepFolder, SweepState, TrialStatus
from trd_ray.sweep.statistics import paired_difference, seeds_interval


def line(variant: str, seed: int, *values: float, tokens: int = 100, **record_values: object) -> TrialLine:
    curve = tuple((i, value) for i, value in enumerate(values, start=1))
    result = TrialResult(
        curve=curve, value=values[-1] if values else None, label="avg@2", learner_step=len(values),
        num_tokens=tokens,
    )  # fmt: skip
    return TrialLine(record=record(variant, seed, **{"spent_s": 60.0, **record_values}), result=result)


def test_interval_of_three_seeds():
    # Mean 0.6, s = 0.1, standard error 0.1 / sqrt(3) = 0.057735; t(0.975, 2) = 4.302653: half 0.248414.
    assert seeds_interval([0.5, 0.6, 0.7]) == pytest.approx((0.351586, 0.848414), abs=1e-6)


def test_interval_of_two_seeds_is_not_cut():
    # Mean 0.9, s = 0.141421, standard error 0.1; t(0.975, 1) = 12.706205.
    assert seeds_interval([0.8, 1.0]) == pytest.approx((0.9 - 1.2706205, 0.9 + 1.2706205), abs=1e-6)


def test_one_seed_has_no_interval():
    assert seeds_interval([0.5]) is None and seeds_interval([]) is None


def test_paired_difference_takes_out_what_seeds_share():
    # By seed: -0.10, -0.12, -0.08: mean -0.1, s = 0.02, half 4.302653 * 0.02 / sqrt(3) = 0.049683.
    ours = {0: 0.20, 1: 0.48, 2: 0.82}
    theirs = {0: 0.30, 1: 0.60, 2: 0.90, 7: 0.0}
    paired = paired_difference(ours, theirs)
    assert (paired.num_pairs, paired.mean) == (3, pytest.approx(-0.1))
    assert paired.interval == pytest.approx((-0.149683, -0.050317), abs=1e-6)
    assert paired.is_distinguishable
    # Unpaired, the spread over seeds (0.3) hides it: the intervals of the means overlap by far.
    assert seeds_interval(list(ours.values()))[1] > seeds_interval([0.3, 0.6, 0.9])[0]


def test_difference_that_is_not_distinguishable():
    paired = paired_difference({0: 0.4, 1: 0.6}, {0: 0.5, 1: 0.6})
    assert paired.mean == pytest.approx(-0.05) and not paired.is_distinguishable
    single = paired_difference({0: 0.4}, {0: 0.5, 1: 0.6})
    assert (single.num_pairs, single.interval, single.is_distinguishable) == (1, None, False)
    assert paired_difference({0: 0.4}, {1: 0.5}).mean is None


FAILURE = "exit code 1\nDataError: no <file>\n  where: a|b"


@pytest.fixture
def board():
    lines = [
        line("slow", 0, 0.1, 0.3), line("slow", 1, 0.2, 0.5), line("slow", 2, 0.3, 0.7),
        line("fast", 0, 0.2, 0.41), line("fast", 1, 0.4, 0.60), line("fast", 2, 0.5, 0.82),
        line("broken", 0, status=TrialStatus.FAILED, message=FAILURE),
        line("behind", 0, 0.05, status=TrialStatus.STOPPED_EARLY),
        line("single", 0, 0.2, 0.35), line("single", 1, status=TrialStatus.PENDING, spent_s=0.0),
    ]  # fmt: skip
    return leaderboard("mine", lines, MetricConfig())


def test_rows_are_in_order_done_ones_first(board):
    assert [row.variant for row in board.rows] == ["fast", "slow", "single", "behind", "broken"]
    fast, slow, single, behind, broken = board.rows
    assert fast.mean == pytest.approx(0.61) and fast.difference is None
    assert slow.difference.mean == pytest.approx(-0.11)
    assert (single.num_done, single.interval, single.difference.num_pairs) == (1, None, 1)
    assert behind.mean is None and behind.newest == 0.05 and broken.newest is None
    assert fast.curve == ((1, pytest.approx(1.1 / 3)), (2, pytest.approx(0.61)))
    assert slow.spent_s == 180.0 and slow.num_tokens == 300


def repeated(variant: str, number: int, seed: int, value: float) -> TrialLine:
    """A variant that Optuna proposed again: another trial with the same seed."""
    name = variant if number == 1 else f"{variant}__{number}"
    one = line(variant, seed, value)
    return replace(one, record=replace(one.record, name=name))


def test_repeats_of_one_seed_have_no_interval():
    board = leaderboard("mine", [repeated("a", 1, 0, 0.9), repeated("a", 2, 0, 0.9)], MetricConfig())
    (row,) = board.rows
    assert (row.mean, row.interval, row.num_done) == (pytest.approx(0.9), None, 1)
    assert words.interval(row) == "one seed: none"


def test_repeats_are_averaged_before_seeds_are_paired():
    lines = [repeated("a", 1, 0, 0.9), *(repeated("b", i, 0, v) for i, v in ((1, 0.8), (2, 0.6)))]
    _, second = leaderboard("mine", lines, MetricConfig()).rows
    # The mean of b is 0.7; its last repeat alone would make -0.3.
    assert (second.difference.num_pairs, second.difference.mean) == (1, pytest.approx(-0.2))


def test_each_seed_weighs_alike_however_often_it_was_repeated():
    # Seed 0: (0.7 + 0.9) / 2 = 0.8; seed 1: 1.0: as in test_interval_of_two_seeds_is_not_cut.
    lines = [repeated("a", 1, 0, 0.7), repeated("a", 2, 0, 0.9), repeated("a", 3, 1, 1.0)]
    (row,) = leaderboard("mine", lines, MetricConfig()).rows
    assert (row.mean, row.num_done) == (pytest.approx(0.9), 2)
    assert row.interval == pytest.approx((0.9 - 1.2706205, 0.9 + 1.2706205), abs=1e-6)


def test_less_is_better_if_asked():
    lines = [line("much", 0, 0.9), line("little", 0, 0.1)]
    board = leaderboard("mine", lines, MetricConfig(name="loss", mode=Mode.MIN))
    assert [row.variant for row in board.rows] == ["little", "much"]


def test_markdown_says_what_the_numbers_are(board):
    text = markdown(board)
    rows = [[cell.strip() for cell in row.split(" | ")] for row in text.splitlines() if row.startswith("| ")]
    assert rows[0][1:6] == ["variant", "avg@2", "95% interval", "n", "difference to the first"]
    assert rows[1][1:6] == ["fast", "0.610", "0.100 to 1.120", "3 of 3", "first"]
    assert rows[2][1:6] == ["slow", "0.500", "0.00317 to 0.997", "3 of 3", "-0.110 (-0.135 to -0.085)"]
    assert rows[3][1:6] == ["single", "0.350", "one seed: none", "1 of 2", "-0.060 (one pair: no interval)"]
    assert rows[3][6] == "1 pending, 1 done"
    assert rows[4][1:7] == ["behind", "-", "-", "0 of 1", "-", "1 stopped early"]
    assert "| behind__seed=0 | stopped early | 0.050 at step 1 |" in text
    assert "exit code 1 - DataError: no <file> |" in text
    assert "Intervals are not corrected for the number of rows." in text


def test_not_distinguishable_is_said():
    lines = [line("a", 0, 0.5), line("a", 1, 0.6), line("b", 0, 0.4), line("b", 1, 0.6)]
    board = leaderboard("mine", lines, MetricConfig())
    assert words.difference(board.rows[1], board).endswith(", not distinguishable")


def test_csv_holds_plain_numbers(board):
    rows = list(csv.DictReader(io.StringIO(csv_text(board))))
    assert [row["variant"] for row in rows] == ["fast", "slow", "single", "behind", "broken"]
    assert float(rows[1]["difference"]) == pytest.approx(-0.11)
    assert (rows[1]["num_pairs"], rows[1]["distinguishable"]) == ("3", "true")
    assert (rows[0]["difference"], rows[2]["ci95_low"], rows[2]["distinguishable"]) == ("", "", "")
    assert (rows[4]["num_failed"], rows[3]["num_stopped_early"], rows[4]["mean"]) == ("1", "1", "")
    assert (rows[0]["spent_s"], rows[0]["num_tokens"], rows[0]["learner_step"]) == ("180.0", "300", "2")


def test_page_is_self_contained_and_has_the_curves(board):
    page = html(board)
    assert "</html>" in page
    for outside in ('src="http', 'href="http', "@import", "url(http", "//cdn"):
        assert outside not in page
    assert page.count("<svg") == 1
    chart = page[page.index("<svg") : page.index("</svg>")]
    # Three seeds and their mean for fast and slow; single has one curve beside its mean.
    assert chart.count("line faint v0") == 3 and chart.count('"line v0"') == 1
    assert "no &lt;file&gt;" in page and "no <file>" not in page
    assert "trials/fast__seed%3D0/report.html" in page


def test_leaderboard_of_a_sweep_that_has_just_begun(tmp_path: Path):
    folder = SweepFolder(tmp_path)
    state = SweepState(
        folder, [record("a", 0, status=TrialStatus.PENDING), record("b", 0, status=TrialStatus.RUNNING)]
    )
    write_evals(folder.run("b__seed=0"), [(0, 0.25), (2, 0.5)])
    board = read_leaderboard(folder, state, MetricConfig())
    write_leaderboard(board, tmp_path)
    assert "| b__seed=0 | running | 0.500 at step 2 |" in (tmp_path / "leaderboard.md").read_text()
    assert {path.suffix for path in tmp_path.glob("leaderboard.*")} == {".csv", ".html", ".md"}


def test_result_of_a_run_folder(tmp_path: Path):
    run = SweepFolder(tmp_path).run("a")
    write_evals(run, [(0, 0.25), (2, 0.5), (4, 0.75)])
    run.metrics.write_text("".join(dump_line(step(i).to_json()) for i in (1, 2, 3, 4)))
    result = read_result(run, MetricConfig())
    assert (result.label, result.value, result.learner_step) == ("avg@2", 0.75, 4)
    assert result.num_tokens == 4 * 160
    assert read_result(run, MetricConfig(last=2)).value == pytest.approx(0.625)
    assert read_result(run, MetricConfig(dataset="another")).value is None
    loss = read_result(run, MetricConfig(name="loss"))
    assert (loss.label, loss.value) == ("loss", pytest.approx(0.125)) and len(loss.curve) == 4
