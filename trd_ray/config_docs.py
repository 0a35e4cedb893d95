"""Writes `configs/base.yaml` out of config.py: every key, its default, its description.

Run `python -m trd_ray.config_docs > configs/base.yaml` after a change of config.py; a test compares.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import textwrap
import typing
from collections.abc import Iterator
from enum import StrEnum

import yaml

from trd_ray.config import TrdConfig
from trd_ray.field_docs import field_descriptions

_WIDTH = 100
_HEADER = """\
# Every option of trd-ray with its default. Made from trd_ray/config.py.
# An experiment file names only what differs, and may build on others: `extends: [other.yaml]`.
"""


def base_yaml() -> str:
    """The text of configs/base.yaml."""
    return _HEADER + "".join(_section(TrdConfig(), indent=0))


def _section(value: object, *, indent: int) -> Iterator[str]:
    cls = type(value)
    descriptions = field_descriptions(cls)
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        child = getattr(value, item.name)
        if indent == 0:
            yield "\n"
        text = descriptions.get(item.name, "")
        if dataclasses.is_dataclass(child):
            text = text or inspect.getdoc(type(child)) or ""
            yield _comment(text, indent)
            yield f"{' ' * indent}{item.name}:\n"
            yield from _section(child, indent=indent + 2)
        else:
            yield _comment(_with_choices(text, hints[item.name]), indent)
            yield f"{' ' * indent}{item.name}: {scalar_yaml(child)}\n"


def _with_choices(text: str, hint: object) -> str:
    if isinstance(hint, type) and issubclass(hint, StrEnum) and "`" not in text:
        return f"{text} One of: {', '.join(m.value for m in hint)}.".strip()
    return text


def _comment(text: str, indent: int) -> str:
    flat = " ".join(text.split())
    if not flat:
        return ""
    prefix = " " * indent + "# "
    return "\n".join(textwrap.wrap(flat, _WIDTH, initial_indent=prefix, subsequent_indent=prefix)) + "\n"


def scalar_yaml(value: object) -> str:
    """A value as it stands in YAML."""
    values = list(value) if isinstance(value, tuple) else value
    plain = [_plain(item) for item in values] if isinstance(values, list) else _plain(values)
    text: str = yaml.safe_dump(plain, default_flow_style=True)
    return text.removesuffix("...\n").strip()


def _plain(value: object) -> object:
    return value.value if isinstance(value, StrEnum) else value


if __name__ == "__main__":
    sys.stdout.write(base_yaml())
