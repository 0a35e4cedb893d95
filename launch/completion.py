"""What the shell offers after a Tab: configuration files, option names, values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer

_EXPERIMENTS = Path("configs/experiment")


def complete_config(ctx: typer.Context, incomplete: str) -> list[str]:
    """YAML files and folders; in place of nothing, the named experiments. A replay takes overrides here."""
    if ctx.params.get("replay") is not None:
        return complete_override(ctx, incomplete)
    return list(_files(incomplete))


def complete_override(ctx: typer.Context, incomplete: str) -> list[str]:
    """`key=` for each option that begins so; after the `=`, the values of an option that has few."""
    before = [str(ctx.params.get("config")), *(ctx.params.get("overrides") or [])]
    # Bash makes words of their own of what stands around an `=`; one at the end does not come here at all.
    if before[-1] == "=":
        return _values(before[-2], incomplete)
    if not incomplete and before[-1] in _known_keys():
        return _values(before[-1], "")
    key, separator, value = incomplete.partition("=")
    if separator:
        return [f"{key}={found}" for found in _values(key, value)]
    return [f"{known}=" for known in _known_keys() if known.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """Sections and options."""
    from trd_ray.config_keys import sections

    return [name for name in (*sorted(sections()), *_known_keys()) if name.startswith(incomplete)]


def _known_keys() -> tuple[str, ...]:
    from trd_ray.config_keys import known_keys

    return known_keys()


def _values(key: str, incomplete: str) -> list[str]:
    from trd_ray.config_keys import option_type

    if key not in _known_keys():
        return []
    kind = option_type(key)
    if kind is bool:
        values = ["true", "false"]
    else:
        values = [str(member.value) for member in getattr(kind, "__members__", {}).values()]
    return [value for value in values if value.startswith(incomplete)]


def _files(incomplete: str) -> Iterator[str]:
    folder, _, start = incomplete.rpartition("/")
    if not incomplete and _EXPERIMENTS.is_dir():
        folder, start = str(_EXPERIMENTS), ""
    root = Path(folder or ("/" if incomplete.startswith("/") else "."))
    if not root.is_dir():
        return
    prefix = f"{folder}/" if folder or incomplete.startswith("/") else ""
    for path in sorted(root.iterdir()):
        if not path.name.startswith(start) or (path.name.startswith(".") and not start):
            continue
        if path.is_dir():
            yield f"{prefix}{path.name}/"
        elif path.suffix in (".yaml", ".yml"):
            yield f"{prefix}{path.name}"
