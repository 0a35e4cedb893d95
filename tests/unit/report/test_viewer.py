"""Which trajectories are shown, and how two texts are set side by side."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.report.fake_run import fake_run
from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.report.viewer import (
    MAX_CHARS,
    MAX_TRAJECTORIES,
    Kind,
    diff_pieces,
    kind_of,
    make_card,
    sample_cards,
    spread,
)
from trd_ray.trajectory_log import read_trajectories
from trd_ray.types import TrajectorySource


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("runs") / "run", num_steps=30, per_step=40).trajectories


@pytest.fixture(scope="module")
def row(folder):
    return next(read_trajectories(folder, steps=[1]))


def with_texts(row, before, after, *, first_wrong=None, after_first_wrong=None):
    return dataclasses.replace(
        row, rollout_text=before, trajectory_text=after, rollout_first_wrong_step=first_wrong,
        trajectory_first_wrong_step=after_first_wrong, trajectory_correct=after_first_wrong is None,
    )  # fmt: skip


def changed(line):
    return [piece.text for piece in line.pieces if piece.changed]


def whole(line):
    return "".join(piece.text for piece in line.pieces)


def test_a_repaired_solution(row):
    card = make_card(with_texts(row, "12+7=18\n18-5=13\n#13", "12+7=19\n19-5=14\n#14", first_wrong=0))
    assert [(left.number, right.number) for left, right in card.lines] == [(1, 1), (2, 2), (3, 3)]
    first, second, third = card.lines
    assert (changed(first[0]), changed(first[1])) == (["18"], ["19"])
    assert (changed(second[0]), changed(second[1])) == (["18", "13"], ["19", "14"])
    assert whole(third[1]) == "#14"
    assert [left.first_wrong for left, _ in card.lines] == [True, False, False]
    assert not any(right.first_wrong for _, right in card.lines)


def test_equal_lines_stand_side_by_side_around_an_insertion(row):
    card = make_card(with_texts(row, "a=1\n#1", "a=1\nb=2\n#1", first_wrong=1))
    assert [(left and left.number, right and right.number) for left, right in card.lines] == [
        (1, 1),
        (None, 2),
        (2, 3),
    ]
    assert [piece.changed for piece in card.lines[1][1].pieces] == [True] * 3
    assert changed(card.lines[2][0]) == []


def test_a_step_that_the_text_does_not_have_gets_a_line_of_its_own(row):
    card = make_card(with_texts(row, "12+7=19\n", "12+7=19\n#19", first_wrong=1))
    missing = card.lines[-1][0]
    assert (missing.number, missing.missing, missing.first_wrong) == (2, True, True)
    empty = make_card(with_texts(row, "", "#1", first_wrong=0))
    assert empty.lines[-1][0].missing


def test_a_rewrite_that_was_never_made_is_not_compared(row):
    rejected = dataclasses.replace(
        with_texts(row, "12+7=18", "", first_wrong=0), trajectory_correct=None, outcome=Outcome.REJECTED,
        reason=RejectReason.PROMPT_TOO_LONG,
    )  # fmt: skip
    card = make_card(rejected)
    assert card.kind is Kind.REJECTED
    assert changed(card.lines[0][0]) == []


def test_a_rollout_that_is_trained_on_stands_alone(row):
    card = make_card(
        dataclasses.replace(row, trajectory_source=TrajectorySource.ROLLOUT, trajectory_text=row.rollout_text)
    )
    assert not card.refined
    assert all(right is None for _, right in card.lines)
    assert sum(len(changed(left)) for left, _ in card.lines) == 0


def test_long_texts_are_cut_and_it_is_told(row):
    card = make_card(with_texts(row, "x" * (MAX_CHARS + 5), "y", first_wrong=3))
    assert card.num_cut_chars == 5
    assert len(whole(card.lines[0][0])) == MAX_CHARS
    assert not any(left and left.missing for left, _ in card.lines)


def test_pieces_put_together_are_the_lines_again():
    left, right = diff_pieces("so 12 + 7 = 18!", "hence 12 + 7 = 19!")
    assert "".join(p.text for p in left) == "so 12 + 7 = 18!"
    assert "".join(p.text for p in right) == "hence 12 + 7 = 19!"
    assert [p.text for p in right if p.changed] == ["hence", "19"]


@pytest.mark.parametrize(
    ("rollout", "trajectory", "kind"),
    [
        (False, True, Kind.WRONG_TO_RIGHT),
        (True, False, Kind.RIGHT_TO_WRONG),
        (False, False, Kind.BOTH_WRONG),
        (True, True, Kind.BOTH_RIGHT),
    ],
)
def test_kinds(row, rollout, trajectory, kind):
    plain = dataclasses.replace(
        row, rollout_correct=rollout, trajectory_correct=trajectory, outcome=Outcome.CONSUMED,
        reason=RejectReason.NONE,
    )  # fmt: skip
    assert kind_of(plain) is kind


def test_a_sample_is_even_over_steps_and_has_rare_kinds(folder):
    cards = sample_cards(folder, steps=range(1, 31))
    per_step = {step: sum(card.row.learner_step == step for card in cards) for step in range(1, 31)}
    assert set(per_step.values()) == {MAX_TRAJECTORIES // 30}
    logged = {(row.learner_step, kind_of(row)) for row in read_trajectories(folder)}
    assert {(card.row.learner_step, card.kind) for card in cards} == logged
    assert sample_cards(folder, steps=[]) == ()


def test_spread():
    assert spread([1, 2, 3], 5) == [1, 2, 3]
    assert spread(range(1, 101), 4) == [1, 34, 67, 100]
    assert spread([1, 2, 3], 1) == [3]
