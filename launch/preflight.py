"""Every check that can be made before a process is started. A failure is exit code 2."""

from __future__ import annotations

import importlib.util
import os
import socket
from typing import TYPE_CHECKING

import psutil

from actors.amounts import GIB, total_request
from trd_ray.chat import check_chat_template
from trd_ray.choices import Divergence, RefineGate
from trd_ray.config import MethodConfig, TrdConfig
from trd_ray.errors import ConfigError, MissingDependencyError, describe
from trd_ray.input_checks import (
    all_problems,
    names_chat_template,
    read_eval_problems,
    read_task,
    read_training_problems,
    require_top_k,
    same_tokenizer_files,
)
from trd_ray.model_files import ModelFacts, model_facts, resolve_model
from trd_ray.placement_plan import PlacementPlan, placement_plan
from trd_ray.resume import check_same_run
from trd_ray.run_folder import RunFolder
from trd_ray.tasks.base import Task
from trd_ray.tasks.custom import check_grader
from trd_ray.tasks.registry import load_task
from trd_ray.trackers import check_trackers
from trd_ray.types import Problem

if TYPE_CHECKING:
    from trd_ray.assembly import RunInputs

REAL_STACK = ("ray", "vllm", "deepspeed")
"""Packages of a run that is not `--no-ray`."""
_CONNECT_S = 10.0
_TASK_PACKAGES = {"math": ("math_verify",)}


def check_run(config: TrdConfig, *, no_ray: bool) -> RunInputs:
    """Check and read everything that a run needs.

    Raises `ConfigError`, `DataError`, `ModelError` or `MissingDependencyError`.
    """
    from trd_ray.assembly import read_inputs  # imports transformers

    _check_machine(config, no_ray=no_ray)
    inputs = read_inputs(config)
    check_inputs(config, inputs)
    return inputs


def require_same_run(folder: RunFolder, config: TrdConfig) -> None:
    """Raises `ConfigError` unless the folder holds a run, no replay, that began with these options."""
    if folder.replay.exists():
        raise ConfigError(
            describe(
                "the folder holds a replay, which cannot be resumed", where="run.dir", got=folder.path,
                expected="the folder of a run", remedy="replay again with --replay and another run.dir",
            )
        )  # fmt: skip
    check_same_run(folder.config, config)


def check_inputs(config: TrdConfig, inputs: RunInputs) -> None:
    """What models and data must be for each other. Raises as `check_run`."""
    check_chat_template(inputs.tokenizer, inputs.student_path)
    check_chat_template(inputs.prompts.teacher_format.tokenizer, inputs.teacher_path)
    check_models(config, student=model_facts(inputs.student_path), teacher=model_facts(inputs.teacher_path))
    check_prompt_lengths(inputs)


def check_files(config: TrdConfig, *, no_ray: bool) -> tuple[ModelFacts, ModelFacts] | None:
    """The checks of `check_run` that need no tokenizer; much faster, since nothing heavy is imported.

    Returns the facts of student and teacher; None where the files alone do not show that their tokenizers and
    chat templates will do, which `check_run` then decides. Raises as `check_run`.
    """
    _check_machine(config, no_ray=no_ray)
    student_path, teacher_path = resolve_model(config.student.model), resolve_model(config.teacher_model)
    facts = model_facts(student_path), model_facts(teacher_path)
    vocab_size = same_tokenizer_files(student_path, teacher_path)
    if vocab_size is None or any(model.vocab_size < vocab_size for model in facts):
        return None
    if not (names_chat_template(student_path) and names_chat_template(teacher_path)):
        return None
    require_top_k(config.method, vocab_size=vocab_size)
    task = read_task(config)
    problems = all_problems(read_training_problems(config), read_eval_problems(config))
    check_models(config, student=facts[0], teacher=facts[1])
    _check_readable(task, problems)
    return facts


def check_without_inputs(
    config: TrdConfig, *, student: ModelFacts, teacher: ModelFacts, no_ray: bool
) -> None:
    """What can be checked where models and data are not on this machine. Raises as `check_run`."""
    _check_machine(config, no_ray=no_ray)
    load_task(config.data.task)
    check_models(config, student=student, teacher=teacher)


def _check_machine(config: TrdConfig, *, no_ray: bool) -> None:
    check_packages((*(() if no_ray else REAL_STACK), *_TASK_PACKAGES.get(config.data.task, ())))
    check_own_functions(config.method)
    check_trackers(config)
    if no_ray:
        check_one_process(config)
    else:
        check_resources(config, placement_plan(config))
        check_ports(config)
        check_address(config)


def check_own_functions(method: MethodConfig) -> None:
    """Load and try the functions of the user's own that a method names."""
    if method.divergence is Divergence.CUSTOM or method.refine_gate.kind is RefineGate.CUSTOM:
        from trd_ray.custom_functions import check_functions  # imports torch

        check_functions(method)


def check_models(config: TrdConfig, *, student: ModelFacts, teacher: ModelFacts) -> None:
    """Lengths that engines and models must hold. Raises `ConfigError`."""
    check_context(config, student=student, teacher=teacher)
    check_scored_lengths(config, student=student, teacher=teacher)
    check_prefill_lengths(config)


def check_one_process(config: TrdConfig) -> None:
    """Generator and learner are one module there: it cannot answer while it is trained."""
    if config.pipeline.max_staleness:
        raise ConfigError(
            describe(
                "generation cannot run ahead of the learner in one process",
                where="pipeline.max_staleness",
                got=config.pipeline.max_staleness,
                expected="0 with --no-ray",
                remedy="leave out --no-ray, or set pipeline.max_staleness=0",
            )
        )


def check_packages(needed: tuple[str, ...]) -> None:
    """What a run needs must be installed; nothing else takes its place."""
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            describe(
                "packages are not installed",
                where="this Python environment",
                got=f"no {', no '.join(missing)}",
                expected=", ".join(needed),
                remedy="run launch/setup.sh (CPU) or pip install '.[gpu]'; for a debugger without them, "
                "train with --no-ray",
            )
        )


def check_resources(config: TrdConfig, plan: PlacementPlan) -> None:
    """A private cluster has this machine's cores; more than those can never be placed."""
    if config.ray.address != "local":
        return
    asked = total_request(plan)
    cores = config.ray.num_cpus or len(os.sched_getaffinity(0))
    memory_gib = psutil.virtual_memory().total / GIB
    for what, got, most, each in (
        ("cores", asked["CPU"], float(cores), [(seat.name, seat.asked.cpus) for seat in plan.seats]),
        (
            "GiB of memory",
            asked["memory"] / GIB,
            memory_gib,
            [(seat.name, seat.asked.memory_gib) for seat in plan.seats],
        ),
    ):
        if got > most:
            raise ConfigError(
                describe(
                    f"the actors ask for more {what} than there are",
                    where="generator, teacher, learner: num_actors / num_ranks x resources",
                    got=f"{got:g} {what}: " + ", ".join(f"{name} {amount:g}" for name, amount in each),
                    expected=f"at most {most:g}",
                    remedy="lower num_actors, num_ranks or resources.* (fractions share a core)",
                )
            )


def check_ports(config: TrdConfig) -> None:
    """Ports that were chosen by the user must be free."""
    if config.ray.address != "local" or not config.ray.dashboard:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", config.ray.dashboard_port))
        except OSError as error:
            raise ConfigError(
                describe(
                    "the port is in use",
                    where="ray.dashboard_port",
                    got=f"{config.ray.dashboard_port}: {error.strerror}",
                    expected="a free port",
                    remedy="choose another port, or set ray.dashboard=false",
                )
            ) from error


def check_address(config: TrdConfig) -> None:
    """Somebody must listen at the address of a cluster that is to be joined."""
    head = config.ray.head
    if head is None:
        return
    try:
        socket.create_connection(head, timeout=_CONNECT_S).close()
    except OSError as error:
        raise ConfigError(
            describe(
                "no cluster answers at the address", where="ray.address",
                got=f"{config.ray.address}: {error.strerror or error}",
                expected="the head of a Ray cluster, which this machine can reach",
                remedy="check host and port (`ray status` on the head), or set ray.address=local",
            )
        ) from error  # fmt: skip


def check_context(config: TrdConfig, *, student: ModelFacts, teacher: ModelFacts) -> None:
    """Engines cannot hold longer sequences than their models were made for."""
    engines = [("generator.engine.max_model_len", config.generator.engine, student)]
    if config.teacher_group:
        engines.append(("teacher.engine.max_model_len", config.teacher.engine, teacher))
    for key, engine, facts in engines:
        context = facts.context_length
        if engine.max_model_len > context:
            raise ConfigError(
                describe(
                    "the engine's context is longer than the model's",
                    where=key,
                    got=engine.max_model_len,
                    expected=f"at most {context} ({facts.path})",
                    remedy=f"set {key}={context} or less",
                )
            )


def check_scored_lengths(config: TrdConfig, *, student: ModelFacts, teacher: ModelFacts) -> None:
    """Prompt and trajectory must fit into the models that score it and learn from it."""
    prompt = config.max_student_prompt
    output = config.max_trajectory_tokens
    for role, facts in (("teacher", teacher), ("student", student)):
        context = facts.context_length
        if prompt + output > context:
            raise ConfigError(
                describe(
                    f"a trajectory may be longer than the {role}'s context",
                    where="generator.engine.max_model_len, sampling.max_tokens",
                    got=f"up to {prompt} prompt and {output} output tokens",
                    expected=f"at most {context} together ({facts.path})",
                    remedy="lower generator.engine.max_model_len or sampling.max_tokens",
                )
            )


def check_prefill_lengths(config: TrdConfig) -> None:
    """An engine that scores holds prompt, trajectory and one token that it samples and drops."""
    if not (config.method.scores and config.teacher.score.by_engine):
        return
    longest = config.max_student_prompt + config.max_trajectory_tokens + 1
    if longest > config.teacher.engine.max_model_len:
        raise ConfigError(
            describe(
                "the longest trajectories do not fit into the engine that scores them, and would be rejected",
                where="teacher.engine.max_model_len",
                got=config.teacher.engine.max_model_len,
                expected=f"{longest} or more: prompt, trajectory and one token",
                remedy=f"set teacher.engine.max_model_len={longest}, or teacher.score=hidden",
            )
        )


def check_prompt_lengths(inputs: RunInputs) -> None:
    """Each problem of a finite source must fit into the generators' context."""
    problems = all_problems(inputs.stream, inputs.eval_problems)
    for problem in problems:
        inputs.prompts.student(problem)
    _check_readable(inputs.task, problems)


def _check_readable(task: Task, problems: tuple[Problem, ...]) -> None:
    """A problem that the task cannot read at all must not show only when it is graded."""
    for problem in problems:
        check_grader(task, problem)
