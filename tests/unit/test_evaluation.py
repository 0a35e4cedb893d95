"""Estimators and intervals against numbers derived by hand or printed in tables."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from trd_ray.config import SamplingConfig
from trd_ray.evaluation import (
    EvalReport,
    GradedSample,
    eval_prompts,
    evaluate,
    mean_interval,
    pass_at_k,
    student_t_quantile,
    summarise,
)
from trd_ray.types import Completion, Grade, Problem, StopReason


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),  # 1 - C(3,2)/C(4,2) = 1 - 3/6; the biased 1 - (3/4)**2 would be 0.4375
        (4, 2, 2, 5 / 6),  # 1 - C(2,2)/C(4,2) = 1 - 1/6
        (10, 3, 4, 5 / 6),  # 1 - C(7,4)/C(10,4) = 1 - 35/210
        (4, 3, 2, 1.0),  # two draws cannot both miss with one wrong sample
        (4, 0, 4, 0.0),
        (1, 1, 1, 1.0),
    ],
)
def test_pass_at_k(n, c, k, expected):
    assert pass_at_k(n, c, k=k) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 2), (4, -1, 2)])
def test_pass_at_k_refuses_impossible_numbers(n, c, k):
    with pytest.raises(ValueError, match="1 <= k <= num_samples"):
        pass_at_k(n, c, k=k)


@pytest.mark.parametrize(
    ("probability", "df", "expected"),
    [
        (0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 3, 3.1824), (0.975, 4, 2.7764), (0.975, 5, 2.5706),
        (0.975, 10, 2.2281), (0.975, 30, 2.0423), (0.975, 120, 1.9799), (0.95, 5, 2.0150), (0.995, 9, 3.2498),
    ],
)  # fmt: skip
def test_student_t_quantile_agrees_with_the_printed_table(probability, df, expected):
    assert student_t_quantile(probability, df=df) == pytest.approx(expected, abs=6e-5)


def test_mean_interval_by_hand():
    # mean 0.5; variance (0.01 + 0 + 0.01 + 0) / 3; standard error sqrt(0.02 / 3 / 4) = 0.0408248;
    # t(0.975, 3) = 3.182446; half width 0.129923.
    assert mean_interval([0.4, 0.5, 0.6, 0.5]) == pytest.approx((0.370077, 0.629923), abs=1e-6)


def test_mean_interval_stays_in_range_and_is_honest_about_few_problems():
    assert mean_interval([0.0, 0.5, 1.0]) == (0.0, 1.0)
    assert mean_interval([1.0]) == (0.0, 1.0)
    # All of ten right: 0.025 ** (1/10) = exp(-3.688879 / 10) = 0.691503.
    assert mean_interval([1.0] * 10) == pytest.approx((0.691503, 1.0), abs=1e-6)
    assert mean_interval([0.0] * 10) == pytest.approx((0.0, 0.308497), abs=1e-6)
    # All of ten half right: a share of at most 0.308497 is all right, or all wrong.
    assert mean_interval([0.5] * 10) == pytest.approx((0.345751, 0.654249), abs=1e-6)
    assert mean_interval([0.25] * 10) == pytest.approx((0.25 * 0.691503, 0.25 + 0.75 * 0.308497), abs=1e-6)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def graded(rights: dict[str, list[bool]]) -> list[GradedSample]:
    return [
        GradedSample(prompt_id=name, correct=right, num_tokens=10, truncated=not right)
        for name, answers in rights.items()
        for right in answers
    ]


def test_summarise_by_hand():
    # Shares 1/2, 1, 0, 1/4 -> mean 7/16. pass@2: 1-1/6=5/6, 1, 0, 1/2 -> mean 7/12.
    samples = graded(
        {
            "a": [True, True, False, False],
            "b": [True] * 4,
            "c": [False] * 4,
            "d": [False, True, False, False],
        }
    )
    report = summarise(samples, learner_step=7, dataset="x", k=2)
    assert (report.num_problems, report.num_samples, report.k) == (4, 4, 2)
    assert report.avg_at_k == pytest.approx(7 / 16)
    assert report.pass_at_k == pytest.approx(7 / 12)
    assert report.avg_ci95 == mean_interval([0.5, 1.0, 0.0, 0.25])
    assert report.mean_length == 10.0
    assert report.truncated_share == pytest.approx(9 / 16)


def test_more_samples_of_the_same_problems_do_not_shrink_the_interval():
    few = {str(i): [i % 3 == 0] for i in range(30)}
    many = {name: answers * 8 for name, answers in few.items()}
    one = summarise(graded(few), learner_step=0, dataset="x")
    eight = summarise(graded(many), learner_step=0, dataset="x")
    assert one.avg_ci95 == pytest.approx(eight.avg_ci95)
    # Taken over 240 samples as if independent, it would be 2.9 times narrower.
    assert eight.avg_ci95[1] - eight.avg_ci95[0] > 0.3


def test_summarise_refuses_uneven_samples():
    with pytest.raises(ValueError, match=r"\[1, 2\] samples"):
        summarise(graded({"a": [True], "b": [True, False]}), learner_step=0, dataset="x")
    with pytest.raises(ValueError, match=r"\[\] samples"):
        summarise([], learner_step=0, dataset="x")


def test_report_row_has_the_contract_keys_and_comes_back():
    report = summarise(graded({"a": [True, False], "b": [True, True]}), learner_step=3, dataset="x")
    row = json.loads(json.dumps(report.to_json()))
    assert {"learner_step", "dataset", "num_samples", "avg_at_k", "pass_at_k", "ci95"} <= row.keys()
    assert row["ci95"] == list(report.avg_ci95)
    assert EvalReport.from_line(json.dumps(row)) == report


def problems(num: int) -> list[Problem]:
    return [Problem(prompt_id=f"p{i}", problem=str(i), answer=str(i)) for i in range(num)]


def encode(problem: Problem) -> np.ndarray:
    return np.array([int(problem.problem)], dtype=np.int32)


def test_eval_prompts_have_their_own_stable_seeds():
    prompts = eval_prompts(problems(3), encode, num_samples=4, seed=1)
    seeds = [prompt.seed for prompt in prompts]
    assert len(set(seeds)) == 12
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert [p.sample_index for p in prompts[:4]] == [0, 1, 2, 3]
    assert seeds[:8] == [p.seed for p in eval_prompts(problems(2), encode, num_samples=4, seed=1)]
    assert seeds != [p.seed for p in eval_prompts(problems(3), encode, num_samples=4, seed=2)]


class GatedGenerator:
    """Answers only once all requests have arrived: it hangs if they come one after the other."""

    def __init__(self, expected: int, *, fails: bool = False) -> None:
        self.expected = expected
        self.fails = fails
        self.started = 0
        self.cancelled = 0
        self.all_here = asyncio.Event()
        self.never = asyncio.Event()

    async def generate(self, prompt, sampling):
        self.started += 1
        if self.started == self.expected:
            self.all_here.set()
        await self.all_here.wait()
        if self.fails and prompt.sample_index == 0 and prompt.problem.problem == "0":
            raise RuntimeError("generator is gone")
        if self.fails:
            try:
                await self.never.wait()
            finally:
                self.cancelled += 1
        # Problem i has i right samples of four.
        right = prompt.sample_index < int(prompt.problem.problem)
        text = prompt.problem.answer if right else "?"
        stop = StopReason.STOP if right else StopReason.LENGTH
        tokens = np.zeros(2 if right else 6, dtype=np.int32)
        return Completion(
            token_ids=tokens, logprobs=np.zeros(len(tokens), dtype=np.float32), text=text, stop_reason=stop,
            policy_version_min=0, policy_version_max=0,
        )  # fmt: skip


def grade(problem: Problem, text: str) -> Grade:
    return Grade(correct=text == problem.answer, answer=text)


async def test_evaluate_asks_for_everything_at_once():
    prompts = eval_prompts(problems(5), encode, num_samples=4, seed=0)
    seen: list[tuple[int, int]] = []
    report = await asyncio.wait_for(
        evaluate(
            GatedGenerator(20), prompts, grade, sampling=SamplingConfig(), learner_step=9, dataset="held_out",
            k=2, on_progress=lambda done, total: seen.append((done, total)),
        ),
        timeout=5,
    )  # fmt: skip
    # Shares 0, 1/4, 2/4, 3/4, 1; pass@2: 0, 1/2, 5/6, 1, 1.
    assert report.avg_at_k == pytest.approx(0.5)
    assert report.pass_at_k == pytest.approx((0.5 + 5 / 6 + 2) / 5)
    assert report.mean_length == pytest.approx(4.0)
    assert report.truncated_share == pytest.approx(0.5)
    assert (report.learner_step, report.dataset, report.num_problems) == (9, "held_out", 5)
    assert seen == [(i, 20) for i in range(1, 21)]


async def test_an_error_cancels_the_other_requests():
    prompts = eval_prompts(problems(3), encode, num_samples=2, seed=0)
    generator = GatedGenerator(6, fails=True)
    with pytest.raises(RuntimeError, match="generator is gone"):
        await evaluate(generator, prompts, grade, sampling=SamplingConfig(), learner_step=0, dataset="x")
    assert generator.cancelled == 5


async def test_evaluate_refuses_no_prompts():
    with pytest.raises(ValueError, match="no prompts for x"):
        await evaluate(GatedGenerator(0), [], grade, sampling=SamplingConfig(), learner_step=0, dataset="x")
