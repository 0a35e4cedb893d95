"""Configurations as text for people: with the origin of each value, what differs, what options mean."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

import yaml

from trd_ray.config import TrdConfig
from trd_ray.config_docs import scalar_yaml
from trd_ray.config_loader import LoadedConfig, plain_config
from trd_ray.config_reference import option_docs
from trd_ray.resume import differences

_WIDTH = 96
_UNBROKEN = 10**6


def yaml_with_origins(loaded: LoadedConfig) -> str:
    """The whole tree as YAML, each value with a comment that says where it comes from."""
    return "".join(_lines(plain_config(loaded.config), loaded.origins, prefix=""))


def _lines(tree: Mapping[str, object], origins: Mapping[str, str], *, prefix: str) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield f"{indent}{name}:\n"
            yield from _lines(value, origins, prefix=f"{key}.")
            continue
        text = yaml.safe_dump({name: value}, width=_UNBROKEN, allow_unicode=True)
        first, *rest = text.splitlines()
        comment = origins.get(key, "default")
        if rest:  # a comment in a text of several lines would be part of it
            yield f"{indent}# {comment}\n" + "".join(f"{indent}{line}\n" for line in (first, *rest))
        else:
            yield f"{indent}{first}  # {comment}\n"


def differing_lines(before: TrdConfig, after: TrdConfig) -> Iterator[str]:
    """`key: before -> after`, or that nothing differs."""
    changes = differences(before, after)
    if not changes:
        yield "no differences"
    for change in changes:
        yield f"{change.key}: {scalar_yaml(change.before)} -> {scalar_yaml(change.after)}"


def docs_lines(prefix: str) -> Iterator[str]:
    """Each option of a section: its facts, and under them its meaning."""
    for doc in option_docs(prefix):
        yield f"{doc.key}  ({doc.facts})"
        yield from textwrap.wrap(doc.meaning, _WIDTH, initial_indent="    ", subsequent_indent="    ")
