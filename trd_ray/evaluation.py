"""Evaluation: avg@k and pass@k with intervals that respect the clustering of samples.

The samples of one problem are not independent: a hard problem fails them all. The problem is the
unit that was drawn, so intervals are taken over per-problem values, never over single samples.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from trd_ray.config import SamplingConfig
from trd_ray.errors import DataError, describe
from trd_ray.interfaces import Generator
from trd_ray.json_lines import read_record
from trd_ray.types import Grade, IntArray, Problem, Prompt, StopReason

Interval = tuple[float, float]
"""Low and high end."""

_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class GradedSample:
    """What an evaluation keeps of one answer."""

    prompt_id: str
    correct: bool
    num_tokens: int
    truncated: bool
    """The output budget was used up before an end token."""


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """One line of eval.jsonl."""

    learner_step: int
    """Completed optimizer steps of the student that was evaluated; 0 before the first."""
    dataset: str
    """`data.eval`."""
    num_problems: int
    """Problems that were answered."""
    num_samples: int
    """Samples a problem."""
    k: int
    """The k of pass@k, at most `num_samples`. avg@k does not depend on it."""
    avg_at_k: float
    """Mean over problems of the share of right samples."""
    avg_ci95: Interval
    """Its 95% interval over problems; `ci95` in the file."""
    pass_at_k: float
    """Mean over problems of the chance that one of k samples is right."""
    pass_ci95: Interval
    """Its 95% interval over problems."""
    mean_length: float
    """Tokens a sample."""
    truncated_share: float
    """Samples that used up the output budget."""

    def to_json(self) -> dict[str, object]:
        """The row; `avg_ci95` is called `ci95` there."""
        row: dict[str, object] = asdict(self)
        row["ci95"] = list(self.avg_ci95)
        row["pass_ci95"] = list(self.pass_ci95)
        del row["avg_ci95"]
        return row

    @classmethod
    def from_line(cls, line: str) -> EvalReport:
        """Read a row of eval.jsonl. Raises `DataError` if it is none."""
        row = read_record(line, file="eval.jsonl")
        try:
            row["avg_ci95"] = tuple(row.pop("ci95"))
            row["pass_ci95"] = tuple(row["pass_ci95"])
            return cls(**row)
        except (KeyError, TypeError) as error:
            raise DataError(
                describe(
                    "a row of eval.jsonl does not fit", where=f"learner_step {row.get('learner_step')}",
                    got=f"{type(error).__name__}: {error}", expected="the keys that an evaluation writes",
                    remedy="use a run folder that was written by this version",
                )
            ) from error  # fmt: skip


def pass_at_k(num_samples: int, num_correct: int, *, k: int) -> float:
    """Chance that at least one of k samples, drawn without replacement, is right.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374), in
    exact integers. `ValueError` unless 1 <= k <= n and 0 <= c <= n.
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise ValueError(
            f"pass_at_k: num_samples {num_samples}, num_correct {num_correct}, k {k}; expected "
            "1 <= k <= num_samples and 0 <= num_correct <= num_samples"
        )
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def student_t_quantile(probability: float, *, df: int) -> float:
    """Quantile of Student's t for 0.5 < probability < 1 and a whole number `df` >= 1 of degrees of freedom.

    Bisection on the finite series of the distribution function, Abramowitz and Stegun 26.7.3 and
    26.7.4: P(|T| < t) in powers of cos(theta), theta = atan(t / sqrt(df)).
    """
    central = 2.0 * probability - 1.0
    low, high = 0.0, 1.0
    while _central_t_mass(high, df) < central:
        high *= 2.0
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _central_t_mass(middle, df) < central else (low, middle)
    return (low + high) / 2.0


def _central_t_mass(t: float, df: int) -> float:
    theta = math.atan(t / math.sqrt(df))
    cos_squared = math.cos(theta) ** 2
    odd = df % 2
    term = math.cos(theta) if odd else 1.0
    total = term if df > 1 else 0.0
    for j in range(2 + odd, df - 1, 2):
        term *= cos_squared * (j - 1) / j
        total += term
    return 2.0 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total


def mean_interval(values: Sequence[float]) -> Interval:
    """95% interval of the mean of independent values in [0, 1], one a problem.

    mean +- t * s / sqrt(m) with m - 1 degrees of freedom, cut to [0, 1]. Where all values are one c
    that would be a point, however few they are. There it is what the exact binomial (Clopper-Pearson)
    interval leaves possible: at most a share e = 1 - 0.025 ** (1 / m) of problems has another value,
    and that is 0 or 1. One value says nothing about the spread: (0, 1). `ValueError` without values.
    """
    m = len(values)
    if m == 0:
        raise ValueError("mean_interval: got no values; expected one or more")
    if m == 1:
        return (0.0, 1.0)
    tail = (1.0 - _CONFIDENCE) / 2.0
    if len(set(values)) == 1:
        other = 1.0 - tail ** (1.0 / m)
        return (values[0] * (1.0 - other), values[0] + (1.0 - values[0]) * other)
    mean = math.fsum(values) / m
    variance = math.fsum((value - mean) ** 2 for value in values) / (m - 1)
    half = student_t_quantile(1.0 - tail, df=m - 1) * math.sqrt(variance / m)
    return (max(0.0, mean - half), min(1.0, mean + half))


def summarise(
    samples: Sequence[GradedSample], *, learner_step: int, dataset: str, k: int | None = None
) -> EvalReport:
    """Reduce graded samples. Each problem needs the same number of them; `k` defaults to it."""
    by_problem: dict[str, list[GradedSample]] = {}
    for sample in samples:
        by_problem.setdefault(sample.prompt_id, []).append(sample)
    sizes = {len(group) for group in by_problem.values()}
    if len(sizes) != 1:
        raise ValueError(
            f"summarise: problems of {dataset} have {sorted(sizes)} samples each; "
            "expected one or more, the same number for all"
        )
    num_samples = sizes.pop()
    k = num_samples if k is None else k
    num_correct = [sum(sample.correct for sample in group) for group in by_problem.values()]
    averages = [count / num_samples for count in num_correct]
    passes = [pass_at_k(num_samples, count, k=k) for count in num_correct]
    return EvalReport(
        learner_step=learner_step,
        dataset=dataset,
        num_problems=len(by_problem),
        num_samples=num_samples,
        k=k,
        avg_at_k=math.fsum(averages) / len(averages),
        avg_ci95=mean_interval(averages),
        pass_at_k=math.fsum(passes) / len(passes),
        pass_ci95=mean_interval(passes),
        mean_length=sum(sample.num_tokens for sample in samples) / len(samples),
        truncated_share=sum(sample.truncated for sample in samples) / len(samples),
    )


def eval_prompts(
    problems: Sequence[Problem], encode: Callable[[Problem], IntArray], *, num_samples: int, seed: int
) -> tuple[Prompt, ...]:
    """`num_samples` requests for each problem; `encode` gives the student's prompt ids.

    Seeds depend on `seed`, problem and sample index only. So two evaluations of a run use the
    same seeds, and their difference is not blurred by new ones.
    """
    prompts = []
    for problem in problems:
        token_ids = encode(problem)
        for index in range(num_samples):
            key = f"eval/{seed}/{problem.prompt_id}/{index}"
            request_seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 2**31
            prompts.append(
                Prompt(problem=problem, epoch=0, sample_index=index, token_ids=token_ids, seed=request_seed)
            )
    return tuple(prompts)


async def evaluate(
    generator: Generator,
    prompts: Sequence[Prompt],
    grade: Callable[[Problem, str], Grade],
    *,
    sampling: SamplingConfig,
    learner_step: int,
    dataset: str,
    k: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvalReport:
    """Sample and grade every prompt, all requests at once, and reduce.

    `prompts` come from `eval_prompts`, or hold the same number of samples for each problem.
    `on_progress(done, total)` is called after each sample. The first error cancels the other
    requests, waits until they have ended, and is raised.
    """
    if not prompts:
        raise ValueError(f"evaluate: no prompts for {dataset}; expected one or more")
    done = 0

    async def run(prompt: Prompt) -> GradedSample:
        nonlocal done
        completion = await generator.generate(prompt, sampling)
        # A grader of mathematics may compute for a second; the loop must go on meanwhile.
        graded = await asyncio.to_thread(grade, prompt.problem, completion.text)
        sample = GradedSample(
            prompt_id=prompt.problem.prompt_id,
            correct=graded.correct,
            num_tokens=len(completion.token_ids),
            truncated=completion.stop_reason is StopReason.LENGTH,
        )
        done += 1
        if on_progress is not None:
            on_progress(done, len(prompts))
        return sample

    tasks = [asyncio.create_task(run(prompt)) for prompt in prompts]
    try:
        samples = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return summarise(samples, learner_step=learner_step, dataset=dataset, k=k)
