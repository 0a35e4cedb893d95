"""`--dry-run`: what a run would be. Checks everything that can be checked, starts nothing."""

from __future__ import annotations

from launch.consoles import show
from launch.plan_view import show_costs, show_memory
from launch.preflight import check_files, check_run, check_without_inputs, require_same_run
from trd_ray.config import TrdConfig
from trd_ray.config_loader import dump_config
from trd_ray.cost.plan import cost_plan
from trd_ray.log_size import log_bytes_per_step
from trd_ray.model_files import ModelFacts, model_facts
from trd_ray.placement_drawing import draw_placement
from trd_ray.placement_plan import placement_plan
from trd_ray.planned_models import missing_model, planned_facts
from trd_ray.run_folder import RunFolder

_MIB = 2**20
_LATER = (
    "checked when the run is started, and by --deep: that the tokenizers load, the chat templates take a "
    "message over, and each problem fits into the generators' context."
)


def show_plan(config: TrdConfig, *, no_ray: bool, deep: bool = False, resume: bool = False) -> None:
    """Print the resolved configuration, the method, the placement and the memory plan.

    A model of the hub that is not on this machine is planned with from its published figures. What is not
    checked is said. Raises what `check_run` raises.

    Args:
        deep: make every check of a start. Otherwise no tokenizer is loaded if the files show that it will do.
        resume: the run is there, and has begun with these options.
    """
    missing = [name for name in _models(config) if missing_model(name)]
    if missing:
        facts = (planned_facts(config.student.model), planned_facts(config.teacher_model))
        check_without_inputs(config, student=facts[0], teacher=facts[1], no_ray=no_ray)
    else:
        facts, deep = _check(config, no_ray=no_ray, deep=deep)
    if resume:
        require_same_run(RunFolder.open(config.run.dir), config)
    else:
        RunFolder(config.run.dir).require_free()
    show(dump_config(config))
    show(f"method: {config.method.sentence()}\n")
    if missing:
        show(
            f"not on this machine: {', '.join(missing)}. Planned with its published figures; tokenizers, "
            "chat template and data are checked when the run is started.\n"
        )
    elif not deep:
        show(f"{_LATER}\n")
    show(f"buffer log: {_log_words(log_bytes_per_step(config, teacher=facts[1]))}\n")
    if no_ray:
        show("placement: one process, no Ray")
        return
    drawing = draw_placement(placement_plan(config), gpus_per_node=config.placement.gpus_per_node)
    show("\n".join([f"placement ({config.placement.mode.value}): {drawing[0]}", *drawing[1:], ""]))
    plan = cost_plan(config, student=facts[0], teacher=facts[1])
    show_memory(plan)
    show_costs(plan)


def _check(config: TrdConfig, *, no_ray: bool, deep: bool) -> tuple[tuple[ModelFacts, ModelFacts], bool]:
    """Facts of student and teacher, and whether everything was checked."""
    facts = None if deep else check_files(config, no_ray=no_ray)
    if facts is not None:
        return facts, False
    inputs = check_run(config, no_ray=no_ray)
    return (model_facts(inputs.student_path), model_facts(inputs.teacher_path)), True


def _models(config: TrdConfig) -> tuple[str, ...]:
    return tuple(dict.fromkeys((config.student.model, config.teacher_model)))


def _log_words(num_bytes: int) -> str:
    if num_bytes == 0:
        return "none (pipeline.log_targets=false)"
    return f"at most {num_bytes / _MIB:,.1f} MiB a step on disk, with every answer as long as it may be"
