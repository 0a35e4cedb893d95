"""Where a rollout stops being good."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from tests.fakes import FakeTask, FakeTeacher
from tests.unit.trajectory_records import ints, rollout
from trd_ray.choices import Locator
from trd_ray.config import SpliceConfig
from trd_ray.errors import ConfigError
from trd_ray.locate import (
    Evidence,
    FirstDifferenceLocator,
    GraderLocator,
    TeacherProbabilityLocator,
    make_locator,
    num_shared,
    num_tokens_before,
)
from trd_ray.model_files import resolve_model
from trd_ray.models import load_tokenizer
from trd_ray.tasks.arithmetic import ArithmeticTask
from trd_ray.types import Completion, Problem, Rollout, StopReason

NOTHING = Evidence(context_ids=ints(1), rewrite_ids=None)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(resolve_model("testbed:student"))


def answer(tokenizer: PreTrainedTokenizerBase, text: str, *, problem: str = "73-10-15") -> Rollout:
    """A graded rollout with its end token, as an engine gives it."""
    ids = np.asarray([*tokenizer.encode(text), tokenizer.eos_token_id], dtype=np.int32)
    given = rollout("")
    completion = Completion(
        token_ids=ids, logprobs=np.zeros(len(ids), dtype=np.float32), text=text,
        stop_reason=StopReason.STOP, policy_version_min=0, policy_version_max=0,
    )  # fmt: skip
    grade = ArithmeticTask().grade(Problem(prompt_id="p", problem=problem, answer="48"), text)
    return Rollout(prompt=given.prompt, completion=completion, grade=grade)


async def test_grader_keeps_the_steps_before_the_first_wrong_one(tokenizer):
    y_o = answer(tokenizer, "73-10=63\n63-15=47\n#47")
    kept = await GraderLocator(tokenizer=tokenizer).first_bad_token(y_o, NOTHING)
    assert tokenizer.decode(y_o.completion.token_ids[:kept]) == "73-10=63\n"


async def test_grader_keeps_nothing_of_a_rollout_that_begins_wrong_and_all_of_a_right_one(tokenizer):
    locator = GraderLocator(tokenizer=tokenizer)
    assert await locator.first_bad_token(answer(tokenizer, "73-10=53\n53-15=38\n#38"), NOTHING) == 0
    assert await locator.first_bad_token(answer(tokenizer, "73-10=63\n63-15=48\n#48"), NOTHING) is None


async def test_an_end_that_came_too_early_is_not_kept(tokenizer):
    y_o = answer(tokenizer, "73-10=63")
    kept = await GraderLocator(tokenizer=tokenizer).first_bad_token(y_o, NOTHING)
    assert kept == len(y_o.completion.token_ids) - 1
    assert tokenizer.decode(y_o.completion.token_ids[:kept]) == "73-10=63"


async def test_probability_finds_the_first_token_below_the_threshold():
    # exp(-0.1) = 0.90 for all but token 3, exp(-4) = 0.018.
    teacher = FakeTeacher(token_logprob=lambda index: -4.0 if index in (3, 5) else -0.1)
    y_o = rollout("abcdefg")
    found = TeacherProbabilityLocator(teacher=teacher, threshold=0.05)
    assert await found.first_bad_token(y_o, NOTHING) == 3
    tolerant = TeacherProbabilityLocator(teacher=teacher, threshold=0.01)
    assert await tolerant.first_bad_token(y_o, NOTHING) is None


async def test_first_difference_is_where_the_rewrite_leaves_the_rollout():
    locator = FirstDifferenceLocator()
    y_o = rollout("abcd")

    def rewritten(text: str) -> Evidence:
        return Evidence(context_ids=ints(1), rewrite_ids=rollout(text).completion.token_ids)

    assert await locator.first_bad_token(y_o, rewritten("abxd")) == 2
    assert await locator.first_bad_token(y_o, rewritten("abcdef")) == 4
    assert await locator.first_bad_token(y_o, rewritten("abcd")) is None


def test_shared_tokens():
    assert num_shared(ints(1, 2, 3), ints(1, 2, 4)) == 2
    assert num_shared(ints(), ints(1)) == 0
    assert num_shared(ints(1, 2), ints(1, 2, 3)) == 2


def test_tokens_before_a_character_never_cut_a_token_in_two(tokenizer):
    ids = np.asarray(tokenizer.encode("12+34=46"), dtype=np.int32)
    for char in range(9):
        kept = num_tokens_before(tokenizer, ids, char)
        assert len(tokenizer.decode(ids[:kept])) <= char
        assert kept == len(ids) or len(tokenizer.decode(ids[: kept + 1])) > char


def test_a_grader_that_knows_no_steps_is_refused():
    class Blind(FakeTask):
        knows_steps = False

    with pytest.raises(ConfigError, match="does not know where a solution goes wrong"):
        make_locator(SpliceConfig(), task=Blind(), teacher=FakeTeacher(), tokenizer=None)  # type: ignore[arg-type]
    options = SpliceConfig(locator=Locator.FIRST_DIFFERENCE)
    assert make_locator(options, task=Blind(), teacher=FakeTeacher(), tokenizer=None).needs_rewrite  # type: ignore[arg-type]
