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
