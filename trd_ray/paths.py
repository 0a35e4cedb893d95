"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

from trd_ray.errors import ConfigError, describe


def user_path(path: Path | str, *, where: str) -> Path:
    """With the home folder in place of `~`. Raises `ConfigError` naming `where` if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            describe(
                "a home folder that is not known", where=where, got=path, 
                expected="a path, or ~ or ~user in front",
                remedy="correct the user's name, or write ./~name for a file of that name",
            )
        ) from error  # fmt: skip
