"""A few runs of the campaign, one of each kind: what each survives, or says before it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.chaos.campaign import BEGIN, END, read_results, table, update_page, write_results
from tests.e2e.chaos.checks import read_books
from tests.e2e.chaos.faults import Fault, Kind, Moment, Target, cases, draw
from tests.e2e.chaos.runs import Outcome, Result, can_fill_a_disk, rehearse
from trd_ray.ledger import PromptCount

SURVIVED = [
    Fault(seed=0, kind=Kind.KILL, target=Target.GENERATOR, moment=Moment.ROLLOUT, nth=2, delay_s=0.02),
    Fault(seed=1, kind=Kind.KILL, target=Target.TEACHER_CORE, moment=Moment.SCORE, nth=2),
    Fault(seed=2, kind=Kind.KILL, target=Target.LEARNER, moment=Moment.LEARN, nth=4, num_generators=1),
    Fault(seed=3, kind=Kind.STOP, target=Target.GENERATOR, moment=Moment.REFINE, nth=2),
    Fault(seed=4, kind=Kind.NONSENSE, target=Target.TEACHER, moment=Moment.REFINE, nth=5, max_staleness=0),
    Fault(seed=5, kind=Kind.RAISES, target=Target.LEARNER, moment=Moment.SYNC, nth=3, num_generators=1),
]
KILLED = Fault(seed=6, kind=Kind.TORN_LOG, target=Target.DRIVER, moment=Moment.LEARN, nth=4)
FULL = Fault(seed=7, kind=Kind.FULL_DISK, target=Target.DRIVER, moment=Moment.CHECKPOINT, nth=2)


def check(result: Result, outcome: Outcome) -> None:
    assert result.problems == []
    assert result.outcome is outcome


@pytest.mark.slow
@pytest.mark.parametrize("fault", SURVIVED, ids=lambda fault: fault.words)
def test_a_run_survives(fault: Fault, tmp_path: Path):
    check(rehearse(fault, tmp_path), Outcome.SURVIVED)


@pytest.mark.slow
def test_a_run_whose_driver_was_killed_while_it_wrote_is_resumed(tmp_path: Path):
    check(rehearse(KILLED, tmp_path), Outcome.RESUMED)


@pytest.mark.slow
@pytest.mark.skipif(not can_fill_a_disk(), reason="only root may mount a small disk")
def test_a_full_disk_is_named_and_the_run_is_resumed_when_there_is_room(tmp_path: Path):
    check(rehearse(FULL, tmp_path), Outcome.SAID_SO)


def test_consecutive_seeds_go_through_all_cases():
    drawn = {(f.kind, f.target, f.moment) for f in map(draw, range(len(cases())))}
    assert drawn == set(cases())
    assert draw(3) == draw(3) == Fault.read(draw(3).dump())


def test_books_name_a_prompt_that_is_lost_and_one_that_ended_twice(monkeypatch, tmp_path: Path):
    from tests.e2e.chaos import checks

    monkeypatch.setattr(checks, "_drawn", lambda folder, state: [("a", 0, 0), ("b", 0, 0), ("c", 0, 0)])
    monkeypatch.setattr(checks, "_ended", lambda folder: [("a", 0, 0), ("a", 0, 0), ("d", 0, 0)])

    class State:
        prompts = PromptCount(num_in=3)
        pending = ()

    books = read_books(tmp_path, State())  # type: ignore[arg-type]
    assert books.lost == (("b", 0, 0), ("c", 0, 0))
    assert (books.duplicated, books.foreign) == ((("a", 0, 0),), (("d", 0, 0),))
    assert len(books.problems()) == 3


def test_the_table_of_a_page_is_made_of_the_results(tmp_path: Path):
    results = {seed: Result(fault=draw(seed), outcome=Outcome.SURVIVED, seconds=61.4) for seed in (2, 1)}
    write_results(tmp_path / "chaos.json", results)
    assert read_results(tmp_path / "chaos.json") == results
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    update_page(page, results)
    text = page.read_text()
    assert text == f"before\n{BEGIN}\n{table(results)}\n{END}\nafter\n"
    assert "2 runs: 2 survived. Prompts lost: 0" in text and "old" not in text
    assert text.index("| 1 |") < text.index("| 2 |")
