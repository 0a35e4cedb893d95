"""A task, a divergence and a gate of one's own: what they do, and how wrong ones are refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fakes import FakeGenerator, completion
from tests.unit.trajectory_records import ints
from trd_ray.choices import Clip, Divergence, OnRefusal, RefineGate, Support
from trd_ray.config import MethodConfig, RefineGateConfig
from trd_ray.config_loader import dump_config, load_config
from trd_ray.custom_functions import check_functions, divergence_function
from trd_ray.errors import ConfigError, DataError, RunFailedError
from trd_ray.extensions import is_import_path, load_attribute
from trd_ray.losses import DivergenceOptions, HiddenTeacher, ObjectiveOptions, TokenBatch, chunked_objective
from trd_ray.objective_options import objective_options
from trd_ray.outcomes import RejectReason
from trd_ray.refine_gate import Candidate, gate_function, refuse
from trd_ray.tasks.arithmetic import ArithmeticTask
from trd_ray.tasks.custom import check_grader, load_custom_task
from trd_ray.tasks.registry import RowText, load_row_reader, load_task
from trd_ray.templates import TemplateName, render
from trd_ray.types import Grade, Problem, Prompt, Rollout

OWN = f"{__name__}:"
PROBLEM = Problem(prompt_id="p", problem="1+2", answer="3", reference="1+2=3")


def own_forward_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1)


def mean_of_all(log_q: Tensor, log_p: Tensor) -> Tensor:
    return own_forward_kl(log_q, log_p).mean().expand(len(log_p))


def one_number(log_q: Tensor, log_p: Tensor) -> Tensor:
    return own_forward_kl(log_q, log_p).mean()


def cut_off(log_q: Tensor, log_p: Tensor) -> Tensor:
    return own_forward_kl(log_q, log_p.detach())


def not_a_number(log_q: Tensor, log_p: Tensor) -> Tensor:
    return own_forward_kl(log_q, log_p) * math.nan


def misspelt(log_q: Tensor, log_p: Tensor) -> Tensor:
    return own_forward_kl(log_q, log_P)  # type: ignore[name-defined]  # noqa: F821


def longer(candidate: Candidate) -> bool:
    return len(candidate.text) > len(candidate.rollout.completion.text)


async def forgotten_await(candidate: Candidate) -> bool:
    return True


def two_arguments(rollout: object, rewrite: object) -> bool:
    return True


class OwnTask:
    """The arithmetic grader behind templates of its own."""

    name = "own"
    knows_steps = True
    templates = {  # noqa: RUF012
        "student": "? {{ problem }}",
        "privileged": "{{ problem }} {{ reference }}",
        "refine": "{{ problem }} {{ initial_solution }}",
        "refine_privileged": "{{ problem }} {{ reference }} {{ initial_solution }}",
    }

    def grade(self, problem: Problem, text: str) -> Grade:
        return ArithmeticTask().grade(problem, text)


class Nameless:
    knows_steps = False


class Needy(OwnTask):
    def __init__(self, argument: int) -> None:
        self.argument = argument


class OneTemplate(OwnTask):
    templates = {"student": "{{ problem }}"}  # noqa: RUF012


class HiddenProblem(OwnTask):
    templates = OwnTask.templates | {"refine": "{{ initial_solution }}"}


class UnknownValue(OwnTask):
    templates = OwnTask.templates | {"student": "{{ problem }} {{ answer }}"}


class BrokenTemplate(OwnTask):
    templates = OwnTask.templates | {"student": "{{ problem"}


class RaisingGrader(OwnTask):
    def grade(self, problem: Problem, text: str) -> Grade:
        return Grade(correct=bool(text.split()[0]), answer=None)


class BoolGrader(OwnTask):
    def grade(self, problem: Problem, text: str) -> Grade:
        return text == "3"  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tasks:Mine", True),
        ("my.tasks:Mine", True),
        ("arithmetic", False),
        ("a:b:c", False),
        (":b", False),
        ("a:", False),
        ("my-tasks:Mine", False),
        ("my..tasks:Mine", False),
        ("class:Mine", False),
        ("a/b:c", False),
    ],
)
def test_import_paths(text: str, expected: bool) -> None:
    assert is_import_path(text) is expected


def test_a_module_is_found_in_the_folder_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "found_here.py").write_text("answer = 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert load_attribute("found_here:answer", key="k") == 42
    with pytest.raises(ConfigError, match=r"no question\n.*one of answer"):
        load_attribute("found_here:question", key="k")


@pytest.mark.parametrize(
    ("source", "got"),
    [
        (None, "ModuleNotFoundError"),
        ("def broken(:\n", "SyntaxError"),
        ("import no_such_library", "no_such_library"),
        ("1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused(
    source: str | None, got: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken_{abs(hash(source))}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    if source is not None:
        (tmp_path / f"{name}.py").write_text(source)
    with pytest.raises(ConfigError, match=got) as caught:
        load_attribute(f"{name}:thing", key="data.task")
    assert "where:    data.task" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def objective(options: DivergenceOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Values, and gradients to hidden states and head."""
    generator = torch.Generator().manual_seed(1)
    hidden, teacher = (torch.randn(7, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    head, teacher_head = (torch.randn(9, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    hidden.requires_grad_()
    head.requires_grad_()
    made = chunked_objective(
        hidden, head, HiddenTeacher(hidden=teacher, head=teacher_head),
        TokenBatch(target_ids=torch.arange(7), weights=torch.linspace(0.0, 1.0, 7, dtype=torch.float64)),
        options=ObjectiveOptions(divergence=options), chunk_size=3, vocab_size=8,
    )  # fmt: skip
    made.loss.backward()
    assert hidden.grad is not None and head.grad is not None
    return made.token_values, hidden.grad, head.grad


@pytest.mark.parametrize(
    "support",
    [
        {},
        {"clip": "token", "clip_max": 1.5},
        {"support": "top_k", "top_k": 3},
        {"support": "top_k", "top_k": 3, "renormalize": "both"},
        {"support": "top_k", "top_k": 3, "tail": "bucket"},
    ],
    ids=str,
)
def test_a_function_gives_what_the_built_in_formula_gives(support: dict[str, object]) -> None:
    built_in = objective(DivergenceOptions(**support))  # type: ignore[arg-type]
    own = objective(DivergenceOptions(divergence="custom", function=own_forward_kl, **support))  # type: ignore[arg-type]
    for expected, got in zip(built_in, own, strict=True):
        torch.testing.assert_close(got, expected)
    reverse = objective(DivergenceOptions(divergence="reverse_kl", **support))  # type: ignore[arg-type]
    assert not torch.allclose(reverse[0], own[0])


def test_a_function_whose_derivative_is_the_same_in_all_places() -> None:
    def negative_logprobs(log_q: Tensor, log_p: Tensor) -> Tensor:
        return -log_p.sum(-1)

    def weighted(log_q: Tensor, log_p: Tensor) -> Tensor:
        return -(log_p * torch.ones_like(log_p)).sum(-1)

    made = [
        objective(DivergenceOptions(divergence="custom", function=f)) for f in (negative_logprobs, weighted)
    ]
    for expected, got in zip(*made, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_method_leads_to_its_function() -> None:
    method = MethodConfig(divergence=Divergence.CUSTOM, divergence_function=f"{OWN}own_forward_kl")
    assert objective_options(method).divergence.function is own_forward_kl
    assert f"Custom divergence {OWN}own_forward_kl, full vocabulary" in method.sentence()
    assert objective_options(MethodConfig()).divergence.function is None


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("mean_of_all", "among others"),
        ("one_number", r"returns shape \(\)"),
        ("cut_off", "does not require grad"),
        ("not_a_number", "not finite"),
        ("misspelt", "log_P"),
        ("longer", "TypeError"),
        ("OWN", "'tests"),
    ],
)
def test_a_function_that_is_no_divergence_is_refused(name: str, got: str) -> None:
    with pytest.raises(ConfigError, match=got):
        check_functions(MethodConfig(divergence=Divergence.CUSTOM, divergence_function=f"{OWN}{name}"))


@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("method.divergence_function", lambda: MethodConfig(divergence=Divergence.CUSTOM)),
        ("method.divergence_function", lambda: MethodConfig(divergence_function="not a path")),
        ("method.refine_gate.function", lambda: RefineGateConfig(kind=RefineGate.CUSTOM)),
        (
            "method.support",
            lambda: MethodConfig(
                divergence=Divergence.CUSTOM, divergence_function="a:b", support=Support.SAMPLED
            ),
        ),
        (
            "method.clip",
            lambda: MethodConfig(divergence=Divergence.CUSTOM, divergence_function="a:b", clip=Clip.ENTRY),
        ),
    ],
)
def test_contradictions_are_refused_by_their_key(key: str, make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=key):
        make()


def test_options_of_a_loss_say_the_same() -> None:
    for wrong in (
        {"divergence": "custom"}, {"function": own_forward_kl},
        {"divergence": "custom", "function": own_forward_kl, "support": "sampled"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="got"):
            DivergenceOptions(**wrong)  # type: ignore[arg-type]


def candidate(rollout: str, rewrite: str) -> Candidate:
    prompt = Prompt(problem=PROBLEM, epoch=0, sample_index=0, token_ids=ints(1), seed=0)
    wrong = Grade(correct=False, answer=None)
    made = completion(rewrite)
    return Candidate(
        rollout=Rollout(prompt=prompt, completion=completion(rollout), grade=wrong),
        token_ids=made.token_ids, text=rewrite, grade=Grade(correct=True, answer="3"),
    )  # fmt: skip


async def verdict(name: str, case: Candidate) -> RejectReason:
    gate = RefineGateConfig(kind=RefineGate.CUSTOM, function=f"{OWN}{name}")
    return await refuse(case, gate=gate, generator=FakeGenerator())


async def test_a_gate_of_ones_own_decides() -> None:
    assert await verdict("longer", candidate("ab", "abc")) is RejectReason.NONE
    assert await verdict("longer", candidate("abc", "abc")) is RejectReason.GATE_FUNCTION


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_a_gate_that_says_neither_yes_nor_no_ends_the_run() -> None:
    with pytest.raises(RunFailedError, match=r"forgotten_await, problem 'p'\n.*coroutine"):
        await verdict("forgotten_await", candidate("a", "b"))


@pytest.mark.parametrize(
    ("name", "got"), [("two_arguments", "rewrite"), ("OWN", "tests"), ("gone", "no gone")]
)
def test_what_is_no_gate_is_refused(name: str, got: str) -> None:
    gate = RefineGateConfig(kind=RefineGate.CUSTOM, function=f"{OWN}{name}", on_refusal=OnRefusal.ROLLOUT)
    with pytest.raises(ConfigError, match=got):
        check_functions(MethodConfig(refine_gate=gate))
    assert gate_function.cache_info().maxsize == 8


def test_a_task_of_ones_own_brings_its_templates_along() -> None:
    path = f"{OWN}OwnTask"
    assert load_task(path).name == "own"
    assert render(path, TemplateName.STUDENT, problem="{{ 1 }}") == "? {{ 1 }}"
    assert render(path, TemplateName.REFINE, problem="a", initial_solution="b") == "a b"
    row = RowText(answer=" 3 ", reference="x #### 3")
    assert load_row_reader(path)(row) == row
    check_grader(load_task(path), PROBLEM)
    with pytest.raises(DataError):
        check_grader(load_task(path), dataclasses.replace(PROBLEM, problem="what?"))


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("Nameless", "no name, no grade, no templates"),
        ("Needy", "TypeError"),
        ("OneTemplate", "'privileged'.* is missing"),
        ("HiddenProblem", "'refine'.* does not show problem"),
        ("UnknownValue", "'answer' is undefined"),
        ("BrokenTemplate", "'student'"),
        ("OWN", "tests"),
    ],
)
def test_what_is_no_task_is_refused(name: str, got: str) -> None:
    with pytest.raises(ConfigError, match=got) as caught:
        load_custom_task(f"{OWN}{name}")
    assert "where:    data.task" in str(caught.value)


@pytest.mark.parametrize(("grader", "got"), [(RaisingGrader, "IndexError"), (BoolGrader, "returns bool")])
def test_a_grader_is_tried_on_a_real_problem(grader: type[OwnTask], got: str) -> None:
    with pytest.raises(ConfigError, match=got):
        check_grader(grader(), PROBLEM)


def test_import_paths_survive_the_saved_configuration(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        'data: {task: "my_tasks:Mine"}\nmethod: {divergence: custom, divergence_function: "a.b:c"}\n'
    )
    loaded = load_config(own)
    again = tmp_path / "config.yaml"
    again.write_text(dump_config(loaded))
    assert load_config(again) == loaded
    # Reading a configuration imports nothing: a report of a run must not run its code.
    assert loaded.data.task == "my_tasks:Mine"
    assert divergence_function.cache_info().maxsize == 8
