"""The commands `trd-ray sweep` and `trd-ray leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SweepArgument = Annotated[Path, typer.Argument(help="A sweep file, for example configs/sweep/methods.yaml")]


def sweep(
    sweep_file: SweepArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="key.path=value for every trial; sweep.key=value for the sweep itself", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Run the trials that failed, were interrupted or never began.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trials and what they cost, start nothing.")
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option("--like", help="With --dry-run: a run folder to estimate by.", show_default=False),
    ] = None,
) -> None:
    """Run a configuration many times with other methods, options or seeds; compare in a leaderboard."""
    from trd_ray.sweep.spec import load_sweep

    loaded = load_sweep(sweep_file, overrides or [])
    if dry_run:
        from launch.sweep.dry_run import show_sweep

        show_sweep(loaded, like=like)
        return
    if like is not None:
        raise typer.BadParameter("it is for --dry-run", param_hint="'--like'")
    from launch.sweep.run import run_sweep

    raise typer.Exit(run_sweep(loaded, resume=resume))


def leaderboard(
    sweep_dir: Annotated[Path, typer.Argument(help="A sweep folder.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="metric.name=... metric.mode=... and so on", show_default=False),
    ] = None,
) -> None:
    """Write the leaderboard of a sweep anew, also while it runs, and by another metric if one is given."""
    from launch.consoles import console, show
    from launch.sweep.tables import leaderboard_table
    from trd_ray.sweep.files import write_leaderboard
    from trd_ray.sweep.leaderboard import read_leaderboard
    from trd_ray.sweep.spec import load_metric
    from trd_ray.sweep.state import SweepFolder, SweepState

    folder = SweepFolder(sweep_dir)
    state = SweepState.read(folder)
    board = read_leaderboard(folder, state, load_metric(folder.options, overrides or []))
    write_leaderboard(board, folder.path)
    console.print(leaderboard_table(board))
    show(str(folder.path / "leaderboard.html"))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(sweep)
    app.command()(leaderboard)
