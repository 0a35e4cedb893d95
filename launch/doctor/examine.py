"""All checks of `trd-ray doctor`, in order."""

from __future__ import annotations

from launch.consoles import console, show
from launch.doctor.finding import Finding, exit_code, findings_json, findings_table
from launch.doctor.machine import read_machine
from launch.doctor.machine_checks import MACHINE_CHECKS, Subject
from launch.doctor.ray_checks import join
from trd_ray.config import TrdConfig
from trd_ray.errors import TrdRayError


def examine(config: TrdConfig | None, *, quick: bool, as_json: bool) -> int:
    """Make the checks and print them. Returns the exit code: 0 if nothing failed, else 1.

    Args:
        config: None: the machine alone.
        quick: with a configuration too, only what needs no models and no actors.
    """
    findings = machine_findings(config)
    if config is not None and not quick:
        findings += _run_findings(config)
    if as_json:
        show(findings_json(findings))
    else:
        console.print(findings_table(findings))
    return exit_code(findings)


def machine_findings(config: TrdConfig | None) -> list[Finding]:
    """Of the machine, and of the cluster that the configuration names."""
    remote = config is not None and config.ray.address != "local"
    subject = Subject(
        machine=read_machine(),
        config=config,
        joined=join(config.ray.address) if config is not None and remote else None,
        num_parameters=None if config is None else _num_parameters(config),
    )
    return [check(subject) for check in MACHINE_CHECKS]


def _num_parameters(config: TrdConfig) -> int | None:
    from trd_ray.planned_models import planned_facts

    try:
        return planned_facts(config.student.model).num_parameters
    except TrdRayError:
        return None  # what is wrong with the model is another check's finding


def _run_findings(config: TrdConfig) -> list[Finding]:
    # The real stack is slow to load, and a machine without it can still be examined.
    from launch.doctor.inputs import input_findings, read_checked
    from launch.doctor.parity_names import parity_not_made
    from launch.doctor.self_teaching import self_teaching

    taught = self_teaching(config)
    read = read_checked(config, taught)
    if isinstance(read, Finding):
        return [read, *input_findings(None), *parity_not_made("models and data could not be read")]
    inputs, own_inputs = read
    from launch.doctor.parity import parity_findings

    return [*input_findings(inputs), *parity_findings(taught, own_inputs)]
