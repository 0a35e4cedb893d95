"""The state file, what a resume runs again, and which changes of a sweep file it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.sweep.sweep_files import record, sweep_of
from trd_ray.errors import ConfigError, DataError
from trd_ray.sweep.state import (
    SweepFolder,
    SweepState,
    TrialRecord,
    TrialStatus,
    resumed_records,
    write_trial_config,
)
from trd_ray.sweep.trials import checked_trials

TEXT = "axes: {method: [opd, sft]}\nseeds: [0, 1]\n"


def begun(tmp_path: Path, statuses: list[TrialStatus]) -> tuple[SweepFolder, SweepState]:
    """A sweep whose four trials have these statuses."""
    folder = SweepFolder(tmp_path / "out")
    folder.path.mkdir()
    records = []
    for (trial, config), status in zip(
        checked_trials(sweep_of(tmp_path, TEXT)).values(), statuses, strict=True
    ):
        write_trial_config(folder, trial.name, config)
        attempts = int(status is not TrialStatus.PENDING)
        records.append(replace(TrialRecord.of(trial), status=status, attempts=attempts, spent_s=1.5))
    state = SweepState(folder, records)
    state.write()
    return folder, state


ALL = [TrialStatus.DONE, TrialStatus.STOPPED_EARLY, TrialStatus.FAILED, TrialStatus.INTERRUPTED]


def resumed(tmp_path: Path, folder: SweepFolder, text: str, *overrides: str) -> dict[str, TrialStatus]:
    wanted = checked_trials(sweep_of(tmp_path, text, *overrides))
    records = resumed_records(SweepState.read(folder), wanted, folder, open_ended=False)
    return {record.name: record.status for record in records}


def test_state_reads_back(tmp_path: Path):
    folder, state = begun(tmp_path, ALL)
    again = SweepState.read(folder)
    assert again.records == state.records
    state.put(replace(state["sft__seed=0"], status=TrialStatus.DONE, message="späť"))
    assert SweepState.read(folder)["sft__seed=0"] == state["sft__seed=0"]
    assert not list(folder.path.glob("*.tmp"))


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"version": 9, "trials": []}',
                                  '{"version": 1, "trials": [{"name": "a"}]}'])  # fmt: skip
def test_unreadable_state_is_named(tmp_path: Path, text: str):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(DataError, match=r"sweep\.json"):
        SweepState.read(SweepFolder(tmp_path))


def test_no_state_is_bad_input(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no sweep"):
        SweepState.read(SweepFolder(tmp_path))


def test_only_what_has_not_ended_is_run_again(tmp_path: Path):
    folder, _ = begun(tmp_path, ALL)
    assert list(resumed(tmp_path, folder, TEXT).values()) == [
        TrialStatus.DONE, TrialStatus.STOPPED_EARLY, TrialStatus.PENDING, TrialStatus.PENDING,
    ]  # fmt: skip


def test_trials_of_a_killed_sweep_are_run_again(tmp_path: Path):
    folder, _ = begun(tmp_path, [TrialStatus.RUNNING] * 4)
    assert set(resumed(tmp_path, folder, TEXT).values()) == {TrialStatus.PENDING}


def test_trials_may_be_added(tmp_path: Path):
    folder, _ = begun(tmp_path, ALL)
    found = resumed(tmp_path, folder, TEXT.replace("[0, 1]", "[0, 1, 2]"))
    assert list(found)[-2:] == ["opd__seed=2", "sft__seed=2"] and len(found) == 6
    assert found["opd__seed=0"] is TrialStatus.DONE


def test_trials_that_never_began_may_go(tmp_path: Path):
    folder, _ = begun(tmp_path, [TrialStatus.DONE, TrialStatus.DONE, *[TrialStatus.PENDING] * 2])
    assert list(resumed(tmp_path, folder, TEXT.replace(", sft", ""))) == ["opd__seed=0", "opd__seed=1"]


def test_a_trial_that_has_run_may_not_go(tmp_path: Path):
    folder, _ = begun(tmp_path, ALL)
    with pytest.raises(ConfigError, match="gone: sft__seed=0, sft__seed=1"):
        resumed(tmp_path, folder, TEXT.replace(", sft", ""))


def test_another_option_is_refused_by_trial_and_key(tmp_path: Path):
    folder, _ = begun(tmp_path, ALL)
    with pytest.raises(ConfigError) as error:
        resumed(tmp_path, folder, TEXT, "learner.optimizer.learning_rate=0.5")
    assert "opd__seed=0: learner.optimizer.learning_rate: 0.001 then, 0.5 now" in str(error.value)


def test_what_no_number_depends_on_may_change(tmp_path: Path):
    folder, _ = begun(tmp_path, ALL)
    assert (
        len(resumed(tmp_path, folder, TEXT, "timeouts.start_s=5", "generator.engine.kv_cache_gib=0.5")) == 4
    )


def test_proposals_of_a_search_stay(tmp_path: Path):
    folder, state = begun(tmp_path, ALL)
    state.put(record("learning_rate=1", status=TrialStatus.DONE))
    state.put(record("learning_rate=2", status=TrialStatus.PENDING, attempts=0))
    records = resumed_records(state, {}, folder, open_ended=True)
    assert [r.name for r in records] == [*(r.name for r in state.records if r.attempts)]


def test_one_driver_at_a_time(tmp_path: Path):
    folder = SweepFolder(tmp_path / "out")
    with (
        folder.locked(),
        pytest.raises(ConfigError, match="another process drives this sweep"),
        folder.locked(),
    ):
        pass
