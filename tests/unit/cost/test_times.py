"""Rates, stage times, bottleneck and split, by hand; rates out of a run folder that is written here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.cost.test_workload import LENGTHS, PRIVATE
from tests.unit.test_memory_plan import QWEN_8B, QWEN_17B, on_gpus
from trd_ray.choices import Device, DType
from trd_ray.config import TrdConfig
from trd_ray.config_loader import dump_config
from trd_ray.cost.plan import GivenLengths, cost_plan
from trd_ray.cost.rates import Kind, Rates, known_rates, shipped_rates
from trd_ray.cost.run_rates import rates_of_run
from trd_ray.cost.split import no_split_because, suggest_split
from trd_ray.cost.stage_times import StepTime, step_time
from trd_ray.errors import DataError
from trd_ray.planned_models import planned_facts
from trd_ray.roles import Role
from trd_ray.run_folder import RunFolder
from trd_ray.stage_clock import Stage

RATES = Rates(
    name="test",
    kind=Kind.MEASURED,
    source="by hand",
    device=Device.CPU,
    dtype=DType.FLOAT32,
    tokens_per_s={Stage.ROLLOUT: 1000, Stage.REFINE: 500, Stage.SCORE: 1900, Stage.LEARN: 2500},
    sync_s=3.0,
    other_s=0.5,
)


def timed(config: TrdConfig, rates: Rates = RATES) -> StepTime:
    return step_time(config, LENGTHS, rates, student=QWEN_17B, teacher=QWEN_8B)


def seconds(time: StepTime) -> dict[str, float | None]:
    return {each.stage.value: each.seconds for each in time.stages}


def test_a_stage_takes_its_tokens_over_its_rate_and_devices():
    # 10,000, 4,000, 19,000 and 5,000 tokens.
    assert seconds(timed(PRIVATE)) == {"rollout": 10, "refine": 8, "score": 10, "learn": 2, "sync": 3}
    two = replace(PRIVATE, generator=replace(PRIVATE.generator, num_actors=2))
    assert seconds(timed(two))["rollout"] == 5
    reading = timed(PRIVATE, replace(RATES, prompt_tokens_per_s=1000))
    assert seconds(reading)["rollout"] == 10 + 1  # 1,000 prompt tokens
    assert seconds(reading)["refine"] == 8 + 15


def test_the_longest_answer_sets_the_least_time():
    slow = timed(PRIVATE, replace(RATES, token_latency_s=0.5))
    assert seconds(slow)["rollout"] == 64 * 0.5  # generator.sampling.max_tokens


def test_how_stages_add_up_and_who_is_slowest():
    apart = timed(PRIVATE)
    assert apart.most_s == apart.least_s == 10 + 8 + 10 + 2 + 3 + 0.5
    assert apart.bottleneck is Role.TEACHER
    assert apart.role_s == {Role.GENERATOR: 10, Role.TEACHER: 18, Role.LEARNER: 5}
    streaming = timed(replace(PRIVATE, pipeline=replace(PRIVATE.pipeline, stage_barrier=False)))
    assert streaming.least_s == 18 + 5 + 0.5  # the learner waits for the whole batch
    ahead = replace(PRIVATE.pipeline, stage_barrier=False, max_staleness=1)
    assert timed(replace(PRIVATE, pipeline=ahead)).least_s == 18


def test_a_stage_without_a_rate_is_said():
    time = timed(PRIVATE, replace(RATES, tokens_per_s={Stage.ROLLOUT: 1000}, sync_s=None))
    assert time.unknown == (Stage.REFINE, Stage.SCORE, Stage.LEARN, Stage.SYNC)
    assert time.bottleneck is Role.GENERATOR
    assert "refine" in (no_split_because(on_gpus(), time) or "")


def test_rates_scale_with_parameters_only_where_they_say_so():
    known = replace(
        RATES, scales=True, student_parameters=QWEN_17B.num_parameters // 2,
        teacher_parameters=QWEN_8B.num_parameters,
    )  # fmt: skip
    scaled = seconds(timed(PRIVATE, known))
    assert scaled["rollout"] == pytest.approx(20) and scaled["learn"] == pytest.approx(4)
    assert scaled["refine"] == 8
    assert not replace(known, scales=False).fits(
        PRIVATE, student=QWEN_17B, teacher=replace(QWEN_8B, num_parameters=1)
    )
    assert not known.fits(on_gpus(), student=QWEN_17B, teacher=QWEN_8B)


def test_shipped_rates_have_sources_and_fit_what_they_are_of():
    testbed = planned_facts("testbed:student")
    found = known_rates(TrdConfig(), student=testbed, teacher=testbed)
    assert found is not None and found.kind is Kind.MEASURED and found.lengths is not None
    # A model of billions of weights on a CPU: nobody measured that.
    assert known_rates(TrdConfig(), student=QWEN_17B, teacher=QWEN_8B) is None
    published = known_rates(on_gpus(), student=QWEN_17B, teacher=QWEN_8B)
    assert published is not None and published.kind is Kind.PUBLISHED and published.scales
    assert "http" in published.source
    assert all(rates.source for rates in shipped_rates())


def gpus(generators: int, teachers: int, ranks: int, **pipeline: object) -> TrdConfig:
    base = on_gpus()
    return replace(
        base,
        generator=replace(base.generator, num_actors=generators),
        teacher=replace(base.teacher, num_actors=teachers),
        learner=replace(base.learner, num_ranks=ranks),
        pipeline=replace(PRIVATE.pipeline, **pipeline),  # type: ignore[arg-type]
    )


def test_the_split_gives_devices_to_the_bottleneck():
    config = gpus(4, 2, 2, max_staleness=1, stage_barrier=False)
    # Device-seconds: 10, 18, 2 and a push of 3. As it is, teachers take 18 / 2 = 9 s.
    time = timed(config, replace(RATES, device=Device.CUDA))
    split = suggest_split(config, time)
    # No division of 8 does better than 5 teachers' or 4 teachers' 4.5 s with 3.33 s of 3 generators: the
    # learner's 2 / 1 + 3 = 5 s is then the slowest, so that 2 ranks (4 s), 4 teachers (4.5 s), 2 generators
    # (5 s) are as slow; with 3 generators, 4 teachers, 1 rank 5 s too. The one nearest to what is there wins.
    assert split.seconds == pytest.approx(5.0)
    assert sum(split.num_actors.values()) == 8
    assert split.num_actors[Role.TEACHER] >= 4
    assert split.now_s == pytest.approx(9.0)
    assert f"teacher.num_actors={split.num_actors[Role.TEACHER]}" in split.overrides


def test_the_split_where_stages_add_up():
    config = gpus(3, 3, 2)
    time = timed(config, replace(RATES, device=Device.CUDA, sync_s=None))
    split = suggest_split(config, time)
    # Least 10 / g + 18 / t + 2 / l with g + t + l = 8: 3, 4, 1 gives 3.33 + 4.5 + 2 = 9.83;
    # 2, 4, 2 gives 5 + 4.5 + 1 = 10.5; 3, 3, 2 gives 3.33 + 6 + 1 = 10.33.
    assert dict(split.num_actors) == {Role.GENERATOR: 3, Role.TEACHER: 4, Role.LEARNER: 1}
    assert split.seconds == pytest.approx(10 / 3 + 18 / 4 + 2)
    assert split.now_s == pytest.approx(10 / 3 + 6 + 1)


def test_a_teacher_over_two_gpus_moves_in_pairs():
    config = gpus(3, 1, 3, max_staleness=1, stage_barrier=False)
    engine = replace(config.teacher.engine, tensor_parallel_size=2)
    resources = replace(config.teacher.resources, gpus=2)
    config = replace(config, teacher=replace(config.teacher, engine=engine, resources=resources))
    split = suggest_split(config, timed(config, replace(RATES, device=Device.CUDA, sync_s=None)))
    numbers = split.num_actors
    assert numbers[Role.GENERATOR] + 2 * numbers[Role.TEACHER] + numbers[Role.LEARNER] == 8


def test_where_no_split_is_suggested():
    assert "cores" in (no_split_because(PRIVATE, timed(PRIVATE)) or "")
    assert no_split_because(on_gpus(), None) == "no rates known"
    assert no_split_because(on_gpus(), timed(on_gpus())) is None


def write_run(path: Path, config: TrdConfig, num: int = 5, **changes: object) -> None:
    run = RunFolder.create(path)
    run.config.write_text(dump_config(config))
    row = {
        "num_trajectories": 10, "num_consumed": 8, "num_rollout_tokens": 10_000, "num_refined_tokens": 4_000,
        "num_loss_tokens": 3_200, "rollout_s": 5.0, "refine_s": 2.0, "score_s": 1.0, "learn_s": 4.0,
        "sync_s": 0.5, "other_s": 0.25, "generator_busy_s": 8.0, "teacher_busy_s": 6.0, "learner_busy_s": 9.0,
    } | changes  # fmt: skip
    slow = {"rollout_s": 500.0, "sync_s": 50.0}
    rows = [row | {"learner_step": i + 1} | (slow if i < 2 else {}) for i in range(num)]
    run.metrics.write_text("".join(json.dumps(each) + "\n" for each in rows))


def test_rates_out_of_a_run(tmp_path: Path):
    write_run(tmp_path / "run", PRIVATE)
    rates = rates_of_run(tmp_path / "run")
    # The first two steps, which start everything, are left out.
    assert rates.tokens_per_s[Stage.ROLLOUT] == pytest.approx(10_000 / 5)
    assert rates.tokens_per_s[Stage.REFINE] == pytest.approx(4_000 / 2)
    # Without a log of the buffer the prompts are not counted, in rates and plan alike: 10 x 400 tokens.
    assert rates.tokens_per_s[Stage.LEARN] == pytest.approx(4_000 / 4)
    assert (rates.sync_s, rates.other_s) == (0.5, 0.25)
    assert rates.lengths is not None
    assert (rates.lengths.rollout, rates.lengths.refinement, rates.lengths.trajectory) == (1000, 400, 400)
    assert "prompts are not counted" in rates.lengths.source
    two = replace(PRIVATE, generator=replace(PRIVATE.generator, num_actors=2))
    write_run(tmp_path / "two", two)
    assert rates_of_run(tmp_path / "two").tokens_per_s[Stage.ROLLOUT] == pytest.approx(10_000 / 5 / 2)


def test_rates_of_a_run_whose_stages_overlap_are_those_of_busy_actors(tmp_path: Path):
    write_run(tmp_path / "run", replace(PRIVATE, pipeline=replace(PRIVATE.pipeline, stage_barrier=False)))
    rates = rates_of_run(tmp_path / "run").tokens_per_s
    assert rates[Stage.ROLLOUT] == pytest.approx(10_000 / 8)
    assert rates[Stage.REFINE] == pytest.approx(4_000 / 4)  # 2 of 3 parts of 6 s
    assert rates[Stage.LEARN] == pytest.approx(4_000 / 8)  # 4 of 4.5 parts of 9 s


def test_a_run_predicts_itself(tmp_path: Path):
    write_run(tmp_path / "run", PRIVATE)
    plan = cost_plan(PRIVATE, student=QWEN_17B, teacher=QWEN_8B, rates_from=tmp_path / "run")
    assert plan.time is not None
    assert seconds(plan.time) == pytest.approx(
        {"rollout": 5.0, "refine": 2.0, "score": 1.0, "learn": 4.0, "sync": 0.5}
    )
    assert plan.time.most_s == pytest.approx(12.75)


@pytest.mark.parametrize("num", [0, 2])
def test_a_run_that_is_too_short_is_refused(tmp_path: Path, num: int):
    write_run(tmp_path / "run", PRIVATE, num=num)
    with pytest.raises(DataError, match=f"{num} rows"):
        rates_of_run(tmp_path / "run")


def test_a_plan_as_json(tmp_path: Path):
    write_run(tmp_path / "run", PRIVATE)
    given = GivenLengths(rollout=2000)
    plan = cost_plan(PRIVATE, student=QWEN_17B, teacher=QWEN_8B, rates_from=tmp_path / "run", given=given)
    row = json.loads(json.dumps(plan.to_json(), allow_nan=False))
    assert row["lengths"]["rollout"] == 2000
    assert row["time"]["bottleneck"] == "generator"
    assert {role["role"] for role in row["memory"]} == {"learner", "generator", "teacher"}
    assert row["split"] is None and row["no_split"]
    unknown = cost_plan(PRIVATE, student=QWEN_17B, teacher=QWEN_8B).to_json()
    assert unknown["rates"] is None and unknown["time"] is None


def test_a_split_that_does_not_fit_is_said():
    base = gpus(4, 2, 2, max_staleness=1, stage_barrier=False)
    small = replace(base, placement=replace(base.placement, device_memory_gib=24))
    plan = cost_plan(small, student=QWEN_17B, teacher=QWEN_8B)
    assert plan.split is not None
    assert plan.split_checks and not any(check.fits for check in plan.split_checks)
