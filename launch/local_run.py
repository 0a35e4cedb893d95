"""`trd-ray train --local`: the real actors on this machine, small, and every error at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch.consoles import show
from trd_ray.config import TrdConfig
from trd_ray.config_docs import scalar_yaml
from trd_ray.config_loader import load_with_origins
from trd_ray.config_places import COMMAND_LINE
from trd_ray.errors import TrdRayError
from trd_ray.local_mode import local_mode
from trd_ray.resume import differences


def local_config(path: Path, overrides: Sequence[str]) -> TrdConfig:
    """The configuration of a local run; shows what it changes. Raises what `load_config` raises."""
    loaded = load_with_origins(path, overrides)
    given = {key for key, place in loaded.origins.items() if place == COMMAND_LINE}
    config = local_mode(loaded.config, keep=given)
    changes = differences(loaded.config, config)
    show("--local changes what is not set on the command line:" if changes else "--local changes nothing")
    for change in changes:
        show(f"  {change.key}: {scalar_yaml(change.before)} -> {scalar_yaml(change.after)}")
    return config


@contextmanager
def actors_own_words() -> Iterator[None]:
    """Show the traceback of an actor, as it was there, before the error that it led to here."""
    try:
        yield
    except TrdRayError as error:
        for text in _actor_tracebacks(error):
            print(text, file=sys.stderr)
        raise


def _actor_tracebacks(error: BaseException) -> Iterator[str]:
    """Of all errors that led to this one, each once."""
    from ray.exceptions import RayTaskError

    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    shown: set[str] = set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        text = str(one)  # Ray's message of an actor's error is the traceback there
        if isinstance(one, RayTaskError) and text not in shown:
            shown.add(text)
            yield text
        inner = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        waiting += [one.__context__, one.__cause__, *inner]
