"""Arguments that several commands take, with their completion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.completion import complete_config, complete_override

ConfigArgument = Annotated[
    Path,
    typer.Argument(
        help="A YAML file, for example configs/experiment/trd_opd.yaml", autocompletion=complete_config
    ),
]
OptionalConfigArgument = Annotated[
    str | None,
    typer.Argument(
        help="A YAML file, for example configs/experiment/trd_opd.yaml; none with --replay",
        autocompletion=complete_config,
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Overrides: key.path=value ...", show_default=False, autocompletion=complete_override
    ),
]
DeepOption = Annotated[
    bool,
    typer.Option("--deep", help="With --dry-run: load the tokenizers too, check every prompt's length."),
]
LocalOption = Annotated[
    bool,
    typer.Option(
        "--local",
        help="Real actors, one each, on this machine: small, errors at once, their logs here.",
    ),
]
