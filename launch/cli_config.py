"""`trd-ray config show | diff | docs`: what a configuration says, differs in, and could say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.arguments import ConfigArgument, OverridesArgument
from launch.completion import complete_config, complete_key

config_app = typer.Typer(no_args_is_help=True, help="Show, compare and explain configurations.")

OtherArgument = Annotated[
    Path | None,
    typer.Argument(help="Another one; the defaults if not given.", autocompletion=complete_config),
]
KeyArgument = Annotated[
    str, typer.Argument(help="An option or a section; all if not given.", autocompletion=complete_key)
]


@config_app.command()
def show(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    origin: Annotated[
        bool, typer.Option("--origin", help="Beside each value: the line that it comes from.")
    ] = False,
) -> None:
    """Print the resolved configuration as YAML: defaults, parents, the file, overrides."""
    from trd_ray.config_loader import dump_config, load_with_origins
    from trd_ray.config_views import yaml_with_origins

    loaded = load_with_origins(_file(config), overrides or [])
    print(yaml_with_origins(loaded) if origin else dump_config(loaded.config), end="")


@config_app.command()
def diff(config: ConfigArgument, other: OtherArgument = None) -> None:
    """Print the options that differ: from the defaults to CONFIG, or from CONFIG to OTHER."""
    from trd_ray.config import TrdConfig
    from trd_ray.config_loader import load_config
    from trd_ray.config_views import differing_lines

    first = load_config(_file(config))
    before, after = (TrdConfig(), first) if other is None else (first, load_config(_file(other)))
    for line in differing_lines(before, after):
        print(line)


@config_app.command()
def docs(key: KeyArgument = "") -> None:
    """Print what options mean: type, range, default."""
    from trd_ray.config_views import docs_lines

    for line in docs_lines(key):
        print(line)


def _file(path: Path) -> Path:
    """A run folder stands for the configuration in it."""
    return path / "config.yaml" if path.is_dir() else path
