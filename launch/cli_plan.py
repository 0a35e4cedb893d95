"""`trd-ray plan CONFIG`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.arguments import ConfigArgument, OverridesArgument


def plan(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    rates: Annotated[
        Path | None,
        typer.Option(
            "--rates", help="A run folder: take rates and lengths from its records.", show_default=False
        ),
    ] = None,
    prompt_tokens: Annotated[
        float | None, typer.Option("--prompt-tokens", min=1, help="Mean tokens of a prompt.")
    ] = None,
    rollout_tokens: Annotated[
        float | None, typer.Option("--rollout-tokens", min=1, help="Mean tokens of a rollout.")
    ] = None,
    refinement_tokens: Annotated[
        float | None, typer.Option("--refinement-tokens", min=1, help="Mean tokens of a refinement.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a run will cost: memory, bytes on the network, stage times, the bottleneck. Starts nothing."""
    from launch.plan_view import print_plan
    from trd_ray.config_loader import load_config
    from trd_ray.cost.plan import GivenLengths

    given = GivenLengths(prompt=prompt_tokens, rollout=rollout_tokens, refinement=refinement_tokens)
    print_plan(load_config(config, overrides or []), rates_from=rates, given=given, as_json=as_json)
