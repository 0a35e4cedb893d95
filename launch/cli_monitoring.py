"""`trd-ray monitoring`. What it writes is imported only when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def monitoring(
    output: Annotated[Path, typer.Argument(help="Folder to write; it may be there.")],
    ray_temp_dir: Annotated[
        Path, typer.Option(help="The temporary folder of the Ray cluster's head.")
    ] = Path("/tmp/ray"),
) -> None:
    """Write the configuration of Prometheus and Grafana for the metrics of runs on a Ray cluster."""
    from launch.monitoring.export import export

    export(output, ray_temp_dir)
