"""Range checks for options. Each failure names the key, the value, the range and the remedy."""

from __future__ import annotations

import math

from trd_ray.errors import ConfigError, describe
from trd_ray.extensions import is_import_path


def require(condition: bool, key: str, got: object, expected: str, remedy: str) -> None:
    """Raise `ConfigError` for `key` unless `condition` holds."""
    if not condition:
        raise ConfigError(describe("invalid option", where=key, got=got, expected=expected, remedy=remedy))


def require_at_least(key: str, got: float, least: float) -> None:
    require(got >= least, key, got, f"{least} or more", f"set {key} to {least} or more")
    _require_finite(key, got)


def require_positive(key: str, got: float) -> None:
    require(got > 0, key, got, "more than 0", f"set {key} above 0")
    _require_finite(key, got)


def _require_finite(key: str, got: float) -> None:
    require(got != math.inf, key, got, "a finite number", f"set {key} to a number that is large enough")


def require_between(key: str, got: float, least: float, most: float) -> None:
    require(least <= got <= most, key, got, f"between {least} and {most}", f"set {key} to {least} .. {most}")


def require_import_path(key: str, got: str, *, needed: bool) -> None:
    """`needed`: the option that goes with it has the value `custom`."""
    if got or needed:
        require(is_import_path(got), key, repr(got), "package.module:function", "name your function")
