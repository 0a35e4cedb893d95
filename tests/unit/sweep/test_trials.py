"""From a sweep file to its trials, and an error for each way to be wrong that names the place."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.unit.sweep.sweep_files import sweep_of, write
from trd_ray.config_loader import load_config
from trd_ray.errors import ConfigError
from trd_ray.sweep.spec import load_metric, load_sweep
from trd_ray.sweep.trials import TrialConfigs, checked_trials, fixed_trials, probe_trials

ROOT = Path(__file__).parents[3]


def settings(sweep) -> list[dict[str, object]]:
    return [dict(trial.settings) for trial in fixed_trials(sweep)]


def test_two_methods_and_two_seeds_are_four_trials(tmp_path: Path):
    sweep = sweep_of(tmp_path, "axes: {method: [opd, sft]}\nseeds: [0, 3]\n", "run.num_steps=2")
    checked = checked_trials(sweep)
    assert list(checked) == ["opd__seed=0", "opd__seed=3", "sft__seed=0", "sft__seed=3"]
    trial, config = checked["sft__seed=3"]
    assert trial.variant == "sft"
    assert (config.run.seed, config.run.num_steps, config.pipeline.prompts_per_step) == (3, 2, 8)
    assert config.method.trajectory.value == "reference"
    assert config.run.dir == str(tmp_path / "out" / "trials" / "sft__seed=3")


def test_each_trial_keeps_a_log_of_its_own_where_the_options_name_one_place(tmp_path: Path):
    sweep = sweep_of(tmp_path, "axes: {method: [opd, sft]}\nset: {pipeline.log_url: 's3://bucket/logs/'}\n")
    urls = [config.pipeline.log_url for _, config in checked_trials(sweep).values()]
    assert urls == ["s3://bucket/logs/opd", "s3://bucket/logs/sft"]


def test_grids_are_combined_in_order(tmp_path: Path):
    sweep = sweep_of(
        tmp_path,
        "axes:\n  learner.optimizer.learning_rate: {grid: [1e-4, 0.001]}\n  run.num_steps: [5, 6]\n",
    )
    assert settings(sweep) == [
        {"learner.optimizer.learning_rate": rate, "run.num_steps": steps}
        for rate in (1e-4, 1e-3)
        for steps in (5, 6)
    ]
    assert fixed_trials(sweep)[0].name == "learning_rate=0.0001__num_steps=5"


def test_zip_moves_keys_together(tmp_path: Path):
    text = "zip:\n- {learner.lora.rank: [8, 16], learner.lora.alpha: [16, 32]}\naxes: {method: [opd, sft]}\n"
    made = [tuple(each.values()) for each in settings(sweep_of(tmp_path, text))]
    assert made == [("opd", 8, 16), ("opd", 16, 32), ("sft", 8, 16), ("sft", 16, 32)]


def test_a_zip_may_name_methods(tmp_path: Path):
    text = "zip:\n- {method: [opd, sft], learner.optimizer.learning_rate: [1e-4, 1e-3]}\n"
    checked = checked_trials(sweep_of(tmp_path, text))
    rates = {name: config.learner.optimizer.learning_rate for name, (_, config) in checked.items()}
    assert rates == {"opd__learning_rate=0.0001": 1e-4, "sft__learning_rate=0.001": 1e-3}


RANDOM = (
    "axes:\n  learner.optimizer.learning_rate: {loguniform: [1.0e-5, 1.0e-3]}\n"
    "  generator.sampling.temperature: {uniform: [0.5, 1.5]}\n  method: {choice: [opd, sft]}\n"
    "search: {num_samples: 40}\n"
)


def test_draws_repeat_by_seed_and_stay_in_their_range(tmp_path: Path):
    first, again, other = (
        settings(sweep_of(tmp_path, RANDOM, *given)) for given in ((), (), ("sweep.search.seed=1",))
    )
    assert first == again != other
    rates = [each["learner.optimizer.learning_rate"] for each in first]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates) and len(set(rates)) == 40
    # Half of the draws of a log-uniform range lie below its geometric mean, 90% below its middle.
    assert 8 < sum(rate < 1e-4 for rate in rates) < 32
    assert {each["method"] for each in first} == {"opd", "sft"}


def test_combinations_and_seeds_share_the_draws(tmp_path: Path):
    text = RANDOM.replace("{choice: [opd, sft]}", "[opd, sft]").replace("40", "2") + "seeds: [0, 1]\n"
    trials = fixed_trials(sweep_of(tmp_path, text))
    assert len(trials) == 2 * 2 * 2
    rates = [dict(trial.settings)["learner.optimizer.learning_rate"] for trial in trials]
    assert len(set(rates[:4])) == 1 and len(set(rates)) == 2
    # Another axis does not move the draws of this one.
    alone = sweep_of(tmp_path, "\n".join(text.splitlines()[:2]) + "\nsearch: {num_samples: 2}\n")
    assert {dict(t.settings)["learner.optimizer.learning_rate"] for t in fixed_trials(alone)} == set(rates)


def test_names_of_near_draws_differ(tmp_path: Path):
    text = (
        "axes: {learner.optimizer.learning_rate: {uniform: [0.001, 0.00100001]}}\nsearch: {num_samples: 9}\n"
    )
    trials = fixed_trials(sweep_of(tmp_path, text))
    assert len({trial.name for trial in trials}) == 9
    assert all(trial.name.startswith("learning_rate=0.001__") for trial in trials)


def test_long_names_are_cut_and_stay_apart(tmp_path: Path):
    text = f"axes: {{data.train: ['{'a' * 300}1', '{'a' * 300}2']}}\n"
    names = [trial.name for trial in fixed_trials(sweep_of(tmp_path, text))]
    assert len(set(names)) == 2 and max(map(len, names)) < 150


def test_files_of_methods_and_whole_configurations(tmp_path: Path):
    text = "axes: {method: ../method/*.yaml}\n"
    assert [t.name for t in fixed_trials(sweep_of(tmp_path, text))] == ["opd", "sft"]
    (tmp_path / "other.yaml").write_text("run: {num_steps: 9}\n")
    checked = checked_trials(sweep_of(tmp_path, "axes: {config: [../base.yaml, ../other.yaml]}\n"))
    assert {n: c.run.num_steps for n, (_, c) in checked.items()} == {"base": 4, "other": 9}


def test_optuna_is_probed_at_each_value_and_both_ends(tmp_path: Path):
    sweep = sweep_of(tmp_path, RANDOM + "metric: {name: rollout_accuracy}\n", "sweep.search.kind=optuna")
    probes = [dict(trial.settings) for trial in probe_trials(sweep)]
    assert {p["learner.optimizer.learning_rate"] for p in probes} == {1e-5, 1e-3}
    assert {p["method"] for p in probes} == {"opd", "sft"}
    assert len(probes) == 4  # the first of each axis is the same trial


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("axes: {learner.optimiser.learning_rate: [1]}", ["yaml:2", "is learner.optimizer.learning"]),
        ("axes: {learner.optimizer.learning_rate: {grid: []}}", ["learning_rate", "needs values"]),
        ("axes: {learner.optimizer.learning_rate: {linear: [1, 2]}}", ["one kind", "loguniform"]),
        ("axes: {learner.optimizer.learning_rate: {loguniform: [0, 1]}}", ["two ends", "above 0"]),
        ("axes: {learner.optimizer.learning_rate: {uniform: [2, 1]}}", ["two ends", "low below high"]),
        ("axes: {run.num_steps: [1, 1]}", ["value stands twice"]),
        ("axes: {run.seed: [1]}", ["not an axis", "seeds: [0, 1]"]),
        ("axes: {run.dir: [a]}", ["not an axis", "dir: runs/sweep"]),
        ("axes: {learner: [1]}", ["a section has no value of its own"]),
        ("axes: {method: [opt]}", ["the method is not there", "nearest is opd"]),
        ("axes: {method: ../method/x*.yaml}", ["no file matches"]),
        ("axess: {}", ["unknown part", "nearest is axes"]),
        ("search: {kid: all}", ["unknown option", "nearest is search.kind"]),
        ("search: {kind: random}", ["search.kind", "one of all, optuna"]),
        ("search: {num_samples: 3}", ["several samples of nothing"]),
        ("search: {kind: optuna}", ["Optuna searches over axes"]),
        ("axes: {run.num_steps: [1, 2]}\nsearch: {kind: optuna}\nseeds: [0, 1]", ["at most one seed"]),
        ("seeds: [0, 0]", ["list of seeds"]),
        ("seeds: [-1]", ["list of seeds"]),
        ("metric: {name: accuracy}", ["metric.name", "avg_at_k"]),
        ("set: {run.dir: x}", ["the sweep sets this option", "run.dir"]),
        ("set: {run: {num_steps: 2}}\naxes: {run.num_steps: [3]}", ["an axis sets this option already"]),
        ("set: {run.seed: 2}\nseeds: [3]", ["`seeds` sets this option already"]),
        ("zip:\n- {run.num_steps: [1, 2], pipeline.prompts_per_step: [1]}", ["as many values each"]),
        ("zip: [{run.num_steps: [1]}]\naxes: {run.num_steps: [2]}", ["two axes set one option"]),
    ],
)  # fmt: skip
def test_bad_sweep_files_are_refused(tmp_path: Path, text: str, parts: list[str]):
    with pytest.raises(ConfigError) as error:
        load_sweep(write(tmp_path, text + "\n"))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("axes: {run.num_steps: [3, 0]}", ["trial num_steps=0", "run.num_steps", "1 or more"]),
        ("axes: {run.num_steps: [3, many]}", ["trial num_steps=many", "wrong type", "'many'"]),
        ("axes: {method: [opd]}\nset: {method.teacher_context: refine}", ["trial opd", "no refinement"]),
        ("set: {run.num_step: 3}", ["trial base", "nearest is run.num_steps"]),
        ("set: {data.eval: ''}", ["trial base", "data.eval", "metric.name"]),
        ("stop_early: {kind: asha}", ["trial base", "run.eval_every"]),
    ],
)
def test_bad_trials_are_refused_by_name(tmp_path: Path, text: str, parts: list[str]):
    with pytest.raises(ConfigError) as error:
        checked_trials(sweep_of(tmp_path, text + "\n"))
    for part in parts:
        assert part in str(error.value)


def test_a_sweep_needs_a_configuration(tmp_path: Path):
    path = tmp_path / "file.yaml"
    path.write_text("axes: {run.num_steps: [1, 2]}\n")
    with pytest.raises(ConfigError, match="no configuration to start from"):
        load_sweep(path)


def test_overrides_of_the_sweep_and_of_its_trials(tmp_path: Path):
    sweep = sweep_of(
        tmp_path, "seeds: [0]\n", "sweep.seeds=[4, 5]", "sweep.metric.mode=min", "run.num_steps=7"
    )
    assert sweep.seeds == (4, 5) and sweep.options.metric.mode.value == "min"
    assert [TrialConfigs(sweep).config(t).run.num_steps for t in fixed_trials(sweep)] == [7, 7]
    with pytest.raises(ConfigError, match=r"sweep\.seeds|list of seeds"):
        sweep_of(tmp_path, "", "sweep.seeds=two")


@pytest.mark.parametrize("path", sorted((ROOT / "configs/sweep").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_sweep_loads(path: Path):
    assert checked_trials(load_sweep(path))


def test_a_method_of_a_sweep_is_that_of_its_experiment():
    _, config = checked_trials(load_sweep(ROOT / "configs/sweep/methods.yaml"))["trd_opd__seed=0"]
    assert config.method == load_config(ROOT / "configs/experiment/trd_opd.yaml").method


def test_ranges_include_their_ends(tmp_path: Path):
    text = "axes: {learner.optimizer.learning_rate: {loguniform: [1.0e-3, 1.0001e-3]}}\n"
    for each in settings(sweep_of(tmp_path, text + "search: {num_samples: 50}\n")):
        assert 1e-3 <= each["learner.optimizer.learning_rate"] <= 1.0001e-3
        assert math.isfinite(each["learner.optimizer.learning_rate"])


def test_metric_of_saved_options(tmp_path: Path):
    path = tmp_path / "options.yaml"
    path.write_text("metric: {name: loss, mode: min}\n")
    assert load_metric(path, []).mode.value == "min"
    assert load_metric(path, ["metric.last=3"]).last == 3
