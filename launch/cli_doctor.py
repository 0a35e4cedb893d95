"""`trd-ray doctor [CONFIG]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.arguments import OverridesArgument
from launch.completion import complete_config


def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="A YAML file; none examines the machine alone.",
            show_default=False,
            autocompletion=complete_config,
        ),
    ] = None,
    overrides: OverridesArgument = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The machine alone, also with a configuration: start no actors.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check this machine, and with a configuration that engine, teacher and learner agree.

    Exit code 0 if nothing failed, 1 if something did, 2 for a bad configuration.
    """
    from launch.doctor.examine import examine
    from trd_ray.config_loader import load_config

    loaded = None if config is None else load_config(config, overrides or [])
    raise typer.Exit(examine(loaded, quick=quick, as_json=as_json))
