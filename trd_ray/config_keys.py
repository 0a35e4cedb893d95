"""The names of options: all of them, their sections, the nearest to a misspelt one, what a value must be."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable

from trd_ray.config import TrdConfig


@functools.cache
def known_keys(root: type = TrdConfig) -> tuple[str, ...]:
    """Dotted paths of all options, in the order of config.py."""
    return tuple(_leaf_paths(root, prefix=""))


@functools.cache
def sections(root: type = TrdConfig) -> tuple[str, ...]:
    """Dotted paths of all blocks, the innermost first."""
    found = {key.rsplit(".", n)[0] for key in known_keys(root) for n in range(1, key.count(".") + 1)}
    return tuple(sorted(found, key=lambda section: (-section.count("."), section)))


def nearest_key(key: str, root: type = TrdConfig) -> str:
    """The known key that is most like `key`; one with the same last name before others."""
    keys = known_keys(root)
    last = key.rsplit(".", 1)[-1]
    same_name = [known for known in keys if known.rsplit(".", 1)[-1] == last]
    return difflib.get_close_matches(key, same_name or keys, n=1, cutoff=0.0)[0]


def option_type(key: str, root: type = TrdConfig) -> object:
    """The annotation of an option (of a section: its class). Raises `KeyError` if there is none."""
    cls: object = root
    for part in key.split("."):
        cls = _hints(cls)[part]
    return cls


def type_words(cls: object) -> str:
    """What a value of this type may be, for people."""
    if typing.get_origin(cls) is tuple:
        return f"a list [..., ...] of {type_words(typing.get_args(cls)[0]).removeprefix('one of ')}"
    members = getattr(cls, "__members__", None)
    if members:
        return "one of " + ", ".join(str(m.value) for m in members.values())
    return str(getattr(cls, "__name__", cls))


@functools.cache
def _hints(cls: object) -> dict[str, object]:
    """Of a dataclass. Found out once: it evaluates the text of each annotation."""
    return typing.get_type_hints(cls)


def _leaf_paths(cls: type, *, prefix: str) -> Iterable[str]:
    hints = _hints(cls)
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from _leaf_paths(typing.cast(type, hints[item.name]), prefix=f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}"
