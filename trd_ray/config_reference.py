"""What every option means, from the dataclasses: for `trd-ray config docs` and docs/configuration.md.

Run `python -m trd_ray.config_reference > docs/configuration.md` after a change of config.py; a test compares.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass

from trd_ray.config import TrdConfig
from trd_ray.config_docs import scalar_yaml
from trd_ray.config_keys import known_keys, nearest_key, option_type, sections, type_words
from trd_ray.errors import ConfigError, describe, expectation_of, place_of
from trd_ray.field_docs import field_descriptions

_PROBES = (-1, 10**12)
"""Values outside of most ranges: what the check of an option says about them is its range."""
_HEADER = """\
# Configuration

Every option of trd-ray, made from `trd_ray/config.py`. The same in the terminal, and as a file to copy from:

```bash
trd-ray config docs                       # all options
trd-ray config docs learner.optimizer     # those of one section, or one option
trd-ray config show CONFIG [key=value ..] # what a run would use; --origin: and which line says so
trd-ray config diff CONFIG [OTHER]        # what differs from another one, or from the defaults
cat configs/base.yaml                     # all defaults
```

A configuration file names only what differs from the defaults, and may build on others
(`extends: [other.yaml]`, relative to the file; later ones win, then the file itself, then `key=value` on the
command line). A range that is given is checked before anything is started.
The value of a text option is what is written there: `run.dir=1.10` stays `1.10`, and on the command line
`#` begins no comment. `${...}` and `???` are refused: values do not refer to each other.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionDoc:
    """One option."""

    key: str
    meaning: str
    kind: str
    """What a value may be: a type, or the values themselves."""
    default: str
    """As in YAML."""
    bounds: str
    """The range, in words; empty where any value of the type will do."""

    @property
    def facts(self) -> str:
        """Type, range and default in one line."""
        parts = [self.kind, *([self.bounds] if self.bounds else []), f"default {self.default}"]
        return ", ".join(parts)


def option_docs(prefix: str = "") -> tuple[OptionDoc, ...]:
    """The options of a section, or the one of that name; all without a prefix.

    Raises `ConfigError` with the nearest key if there is none.
    """
    keys = known_keys()
    if prefix and prefix not in keys and prefix not in sections():
        raise ConfigError(
            describe(
                "unknown option", where="KEY", got=prefix,
                expected=f"an option or a section; the nearest is {_nearest(prefix)}",
                remedy="`trd-ray config docs` without a key lists all",
            )
        )  # fmt: skip
    return tuple(_option(key) for key in keys if not prefix or key == prefix or key.startswith(f"{prefix}."))


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, sections(), n=1, cutoff=0.8)
    return near[0] if near else nearest_key(name)


def section_meaning(section: str) -> str:
    """What a section is for: the words under its field, or those of its class."""
    parent, _, name = section.rpartition(".")
    holder = typing.cast(type, option_type(parent)) if parent else TrdConfig
    own = field_descriptions(holder).get(name)
    return " ".join((own or inspect.getdoc(typing.cast(type, option_type(section))) or "").split())


def reference_markdown() -> str:
    """The text of docs/configuration.md."""
    return _HEADER + "".join(_sections())


def _sections() -> Iterator[str]:
    by_section: dict[str, list[OptionDoc]] = {}
    for doc in option_docs():
        by_section.setdefault(doc.key.rpartition(".")[0], []).append(doc)
    for section, docs in by_section.items():
        yield f"\n## {section}\n\n{section_meaning(section)}\n\n"
        yield "| option | value | default | meaning |\n|---|---|---|---|\n"
        for doc in docs:
            value = ", ".join(part for part in (doc.kind, doc.bounds) if part)
            cells = (f"`{doc.key}`", value, f"`{doc.default}`", doc.meaning)
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _option(key: str) -> OptionDoc:
    section, _, name = key.rpartition(".")
    holder = typing.cast(type, option_type(section))
    kind = option_type(key)
    return OptionDoc(
        key=key,
        meaning=" ".join(_descriptions(holder).get(name, "").split()),
        kind="true or false" if kind is bool else type_words(kind),
        default=scalar_yaml(_default(key)),
        bounds=_bounds(holder, name) if kind in (int, float) else "",
    )


def _default(key: str) -> object:
    value: object = _defaults()
    for part in key.split("."):
        value = getattr(value, part)
    return value


@functools.cache
def _defaults() -> TrdConfig:
    return TrdConfig()


@functools.cache
def _descriptions(holder: type) -> dict[str, str]:
    return field_descriptions(holder)


def _bounds(holder: type, name: str) -> str:
    """The words of the check itself, so that they cannot differ from it."""
    for probe in _PROBES:
        try:
            dataclasses.replace(holder(), **{name: probe})
        except ConfigError as error:
            if place_of(str(error)).rpartition(".")[2] == name:
                return expectation_of(str(error))
    return ""


if __name__ == "__main__":
    sys.stdout.write(reference_markdown())
