"""`trd-ray submit CONFIG ...` and `trd-ray submit status | logs | stop`: runs on a cluster that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

_SEND = "(config)"


class _SubmitGroup(TyperGroup):
    """A group whose first word may also be a configuration file, or an option of sending one.

    A file that is called like a command is given as ./status.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [_SEND, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: typer.Context, args: list[str]
    ) -> tuple[str | None, TyperCommand, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return ("" if name == _SEND else name), command, rest

    def format_help(self, ctx: typer.Context, formatter: object) -> None:
        """That of sending first."""
        send = self.commands[_SEND]
        send.format_help(type(ctx)(send, info_name=ctx.info_name, parent=ctx.parent), formatter)
        super().format_help(ctx, formatter)


submit_app = typer.Typer(
    cls=_SubmitGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Jobs that were sent:",
    subcommand_metavar="status | logs | stop [JOB_ID] --address http://HOST:8265",
)

AddressOption = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="RAY_API_SERVER_ADDRESS",
        help="Ray's dashboard on the cluster's head: http://HOST:8265",
        show_default=False,
    ),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", help="Leave out what matches, as in .gitignore; !PATTERN brings back. Repeatable."
    ),
]
NoWaitOption = Annotated[
    bool, typer.Option("--no-wait", help="Print the job's id and return; the job goes on.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check, show what would be sent, send nothing.")
]
DriverCpusOption = Annotated[
    float,
    typer.Option("--driver-cpus", min=0.0, help="Cores kept for the driver; 0: on the head, none kept."),
]
DriverResourceOption = Annotated[
    list[str] | None,
    typer.Option("--driver-resource", help="NAME=AMOUNT that the driver's node must have. Repeatable."),
]
EnvOption = Annotated[
    list[str] | None,
    typer.Option("--env", help="NAME=VALUE for driver and actors; no secrets. Repeatable."),
]
PythonOption = Annotated[
    str,
    typer.Option(
        "--python", help="Python on the cluster; else the one that Ray runs with there.", show_default=False
    ),
]
JobArgument = Annotated[str, typer.Argument(help="As `trd-ray submit` printed it.", show_default=False)]


@submit_app.command(name=_SEND, hidden=True)
def submit(
    config: Annotated[
        Path,
        typer.Argument(help="A YAML file, for example configs/experiment/trd_opd.yaml", show_default=False),
    ],
    address: AddressOption,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides: key.path=value ...", show_default=False)
    ] = None,
    working_dir: Annotated[
        Path, typer.Option("--working-dir", help="Folder that travels; relative paths count from it.")
    ] = Path(),
    exclude: ExcludeOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in run.dir.")] = False,
    no_wait: NoWaitOption = False,
    dry_run: DryRunOption = False,
    driver_cpus: DriverCpusOption = 0.0,
    driver_resource: DriverResourceOption = None,
    env: EnvOption = None,
    python: PythonOption = "",
) -> None:
    """Send a run to a Ray cluster, follow its log, and end as it ends.

    run.dir must be an absolute path on the cluster.

    Exit codes: 0 the run succeeded, or was sent with --no-wait; 1 it failed or was stopped, or the cluster
    does not answer; 2 bad arguments, configuration or token: nothing was started.
    """
    url = _prepare(address)
    from launch.submit.job import DriverOptions, parse_env, parse_resources
    from launch.submit.send import Submission
    from launch.submit.send import submit as run_submit

    driver = DriverOptions(
        num_cpus=driver_cpus,
        resources=parse_resources(driver_resource or []),
        python=python,
        env=parse_env(env or []),
        resume=resume,
    )
    submission = Submission(
        config=config,
        overrides=overrides or [],
        folder=working_dir.expanduser().resolve(),
        excludes=exclude or [],
        driver=driver,
    )
    raise typer.Exit(run_submit(submission, url, wait=not no_wait, dry_run=dry_run))


@submit_app.command()
def status(
    address: AddressOption,
    job_id: Annotated[
        str | None,
        typer.Argument(help="As `trd-ray submit` printed it; none for all jobs.", show_default=False),
    ] = None,
) -> None:
    """Show one job, or all jobs of the cluster."""
    url = _prepare(address)
    from launch.submit.commands import status as show_status

    raise typer.Exit(show_status(url, job_id))


@submit_app.command()
def logs(
    job_id: JobArgument,
    address: AddressOption,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Until the job ends; the exit code is then the job's: 0 or 1."),
    ] = False,
) -> None:
    """Print what a job has printed."""
    url = _prepare(address)
    from launch.submit.commands import logs as show_logs

    raise typer.Exit(show_logs(url, job_id, follow=follow))


@submit_app.command()
def stop(
    job_id: JobArgument,
    address: AddressOption,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask, and do not wait for the end.")] = False,
) -> None:
    """End a job after the step in hand, with a checkpoint; `--resume` continues it."""
    url = _prepare(address)
    from launch.submit.commands import stop as stop_job

    raise typer.Exit(stop_job(url, job_id, wait=not no_wait))


def _prepare(address: str) -> str:
    """Check the address and the token's switch before Ray is imported."""
    from launch.submit.address import parse_address
    from launch.submit.auth import use_token_if_any

    url = parse_address(address)
    use_token_if_any()
    return url
