"""What the page carries of each trajectory: kinds, prefixes, first wrong steps, tokens, what is left out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from tests.unit.report.fake_run import fake_run
from tests.unit.trajectory_records import refined
from trd_ray.errors import DataError
from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.report.blob import halves, pack, unpack
from trd_ray.report.kinds import Kind, kind_of
from trd_ray.report.rows import common_prefix, read_rows
from trd_ray.report.selection import MAX_CHARS, MAX_TOKENS, quota_per_step, spread, take_turns
from trd_ray.report.viewer import BLOCK, RunTrajectories
from trd_ray.report.vocabulary import find_tokenizer, token_pieces
from trd_ray.token_values import TokenValues
from trd_ray.trajectory_log import read_trajectories, write_trajectories
from trd_ray.types import TrajectorySource


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("runs") / "run", num_steps=10, per_step=40).trajectories


def carried(folder, **limits):
    steps = sorted(int(path.stem[5:]) for path in folder.glob("step_*.parquet"))
    return RunTrajectories(rows=read_rows(folder, steps, **limits), tokenizer=None)


def written(tmp_path, *trajectories, token_values=None):
    write_trajectories(tmp_path, trajectories, learner_step=1, token_values=token_values)
    return carried(tmp_path)


def test_packed_columns_come_back_and_cannot_end_their_element():
    arrays = {
        "a": np.array([1, -1], dtype=np.int8), "b": np.array([], dtype=np.uint32),
        "c": np.array([0.5, np.nan], dtype=np.float32),
    }  # fmt: skip
    text = pack({"x": ["</script>", None, "é😀"]}, arrays)
    assert not set(text) & set("<>&")
    values, back = unpack(text)
    assert values == {"x": ["</script>", None, "é😀"]}
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    assert halves(np.array([1.0, -2.0], dtype=np.float32)).tolist() == [0x3C00, 0xC000]
    with pytest.raises(ValueError, match="d is float64"):
        pack({}, {"d": np.zeros(1)})


@pytest.mark.parametrize(
    ("rollout", "trajectory", "kind"),
    [
        (False, True, Kind.WRONG_TO_RIGHT),
        (True, False, Kind.RIGHT_TO_WRONG),
        (False, False, Kind.BOTH_WRONG),
        (True, True, Kind.BOTH_RIGHT),
    ],
)
def test_kinds(rollout, trajectory, kind):
    facts = {"rollout_correct": rollout, "trajectory_correct": trajectory}
    assert kind_of(outcome=Outcome.CONSUMED, source=TrajectorySource.SPLICED, **facts) is kind
    alone = kind_of(outcome=Outcome.CONSUMED, source=TrajectorySource.ROLLOUT, **facts)
    assert alone is (Kind.RIGHT if trajectory else Kind.WRONG)
    assert kind_of(outcome=Outcome.REJECTED, source=TrajectorySource.REFINED, **facts) is Kind.REJECTED


def test_the_index_says_what_the_files_say(folder):
    run = carried(folder)
    rows = list(read_trajectories(folder))
    values, arrays = unpack(run.index())
    assert run.rows.is_whole and len(rows) == 400
    for name in ("learner_step", "sample_index", "policy_version_min", "num_kept"):
        assert arrays[name].tolist() == [getattr(row, name) for row in rows]
    expected = Counter(
        kind_of(
            outcome=row.outcome, source=row.trajectory_source, rollout_correct=row.rollout_correct,
            trajectory_correct=row.trajectory_correct,
        )
        for row in rows
    )  # fmt: skip
    assert run.num_by_kind == expected
    assert Counter(values["enums"]["kind"][k] for k in arrays["kind"]) == expected
    assert [values["enums"]["reason"][k] for k in arrays["reason"]] == [row.reason for row in rows]
    assert [values["prompt_ids"][p] for p in arrays["problem"]] == [row.prompt_id for row in rows]
    wrong = [-1 if r.rollout_first_wrong_step is None else r.rollout_first_wrong_step for r in rows]
    assert arrays["rollout_first_wrong_step"].tolist() == wrong
    assert {-1, 0} < set(wrong)
    trained = [row.trajectory_divergence for row in rows if row.trajectory_divergence is not None]
    means = arrays["divergence_mean"]
    assert np.isnan(means).sum() == expected[Kind.REJECTED] > 0
    np.testing.assert_allclose(means[~np.isnan(means)], [np.mean(d, dtype=float) for d in trained], rtol=1e-5)
    every = np.concatenate(trained).astype(float)
    assert values["most_divergence"] == pytest.approx(np.quantile(every, 0.99), rel=1e-3)


def test_blocks_hold_texts_and_the_numbers_of_each_token(folder):
    run = carried(folder)
    rows = list(read_trajectories(folder))
    blocks = [unpack(text) for text in run.blocks()]
    assert [len(values["rollout_text"]) for values, _ in blocks] == [BLOCK, 400 - BLOCK]
    for (values, arrays), part in zip(blocks, (rows[:BLOCK], rows[BLOCK:]), strict=True):
        assert values["rollout_text"] == [row.rollout_text for row in part]
        assert values["trajectory_text"] == [row.trajectory_text for row in part]
        ids = np.concatenate([row.trajectory_token_ids for row in part])
        np.testing.assert_array_equal(run.vocabulary[arrays["trajectory_token_ids"]], ids)
        lengths = [0 if r.trajectory_divergence is None else len(r.trajectory_divergence) for r in part]
        assert arrays["trajectory_divergence_length"].tolist() == lengths
        divergence = arrays["trajectory_divergence"].view(np.float16)
        recorded = [r.trajectory_divergence for r in part if r.trajectory_divergence is not None]
        np.testing.assert_array_equal(divergence, np.concatenate(recorded))


def test_common_prefix_is_counted_in_tokens(tmp_path):
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4, 3])) == 2
    assert common_prefix(np.array([1, 2]), np.array([1, 2])) == 2
    run = written(tmp_path, refined("abcd", "abXcd"), refined("x", "y"), refined("same", "same"))
    assert unpack(run.index())[1]["num_common"].tolist() == [2, 0, 4]


def test_a_rewrite_that_was_never_made_has_no_prefix(tmp_path):
    run = written(tmp_path, refined("abc", "", gate_reason=RejectReason.EMPTY))
    assert unpack(run.index())[1]["num_common"].tolist() == [-1]
    assert run.num_by_kind == {Kind.REJECTED: 1}


def test_support_compares_what_the_student_gave_both(tmp_path):
    t = refined("ab", "cd")
    half = np.array([0.0, 0.0], dtype=np.float16)
    values = TokenValues(divergence=half, student_logprobs=half - 2)
    _, arrays = unpack(written(tmp_path, t, token_values=[values]).index())
    before = float(t.rollout.completion.logprobs.mean())
    assert arrays["support"].tolist() == [pytest.approx(-2 - before, abs=1e-3)]


def test_long_texts_are_cut_and_it_is_told(tmp_path):
    text = "x" * (MAX_CHARS + 5)
    values, arrays = unpack(next(written(tmp_path, refined(text, "y")).blocks()))
    assert len(values["rollout_text"][0]) == MAX_CHARS
    assert (values["rollout_text_cut"], values["trajectory_text_cut"]) == ([5], [0])
    assert arrays["rollout_token_ids_length"].tolist() == [MAX_TOKENS]


def test_a_run_with_too_many_is_sampled_evenly_and_rare_kinds_stay(folder):
    run = carried(folder, most=100)
    steps = Counter(row.number("learner_step") for row in run.rows.rows)
    assert set(steps.values()) == {10} and len(steps) == 10
    assert (run.rows.num_logged, run.rows.is_whole) == (400, False)
    logged = {(r.number("learner_step"), r.kind) for r in carried(folder).rows.rows}
    assert {(r.number("learner_step"), r.kind) for r in run.rows.rows} == logged
    few = carried(folder, most_bytes=5_000).rows
    assert 0 < len(few.rows) < 100
    assert len(carried(folder, most=4).rows.rows) == 4
    assert carried(folder.parent / "nothing").rows.rows == ()


def test_quotas_fill_the_room():
    room = {"bytes_per_row": 1.0, "most_bytes": 1e9}
    assert quota_per_step([5, 5], most=10, **room) is None
    assert quota_per_step([5, 5], most=9, **room) == 4
    assert quota_per_step([1, 9], most=9, **room) == 8
    assert quota_per_step([8, 8], most=100, bytes_per_row=10.0, most_bytes=80.0) == 4
    assert take_turns([Kind.RIGHT] * 5 + [Kind.WRONG], 2) == [0, 5]


def test_spread():
    assert spread([1, 2, 3], 5) == [1, 2, 3]
    assert spread(range(1, 101), 4) == [1, 34, 67, 100]
    assert spread([1, 2, 3], 1) == [3]
    assert spread([], 1) == []


def test_pieces_are_what_a_token_adds_within_a_text():
    vocabulary = {"<end>": 0, "▁so": 1, "me": 2, "\n": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<end>"])
    assert tokenizer.decode([1]) == "so", "a decoder that drops the first space"
    assert token_pieces(tokenizer, [0, 1, 2, 3, 99]) == ["", " so", "me", "\n", ""]


def test_the_tokenizer_is_that_of_the_newest_checkpoint(tmp_path):
    run = fake_run(tmp_path / "run", num_steps=1, evals=False)
    assert find_tokenizer(run, {"student.model": "owner/name"}) is None
    hf = run.checkpoint(1) / "hf"
    hf.mkdir(parents=True)
    Tokenizer(models.WordLevel({"one": 7}, unk_token="one")).save(str(hf / "tokenizer.json"))
    assert find_tokenizer(run, {}).id_to_token(7) == "one"
    (hf / "tokenizer.json").write_text("torn")
    assert find_tokenizer(run, {}) is None


def test_a_damaged_file_is_named(tmp_path):
    written(tmp_path, refined("a", "b"))
    path = tmp_path / "step_000001.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=path.name):
        carried(tmp_path)
