"""The one loader: YAML files with parents, then overrides, into the frozen tree of config.py.

Order: the defaults of config.py, the parents named under `extends` (relative to the file, in
order), the file, the `key.path=value` overrides. Later ones win. Errors name file, line and column, and
quote the line.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trd_ray.config import TrdConfig
from trd_ray.config_keys import known_keys, nearest_key, option_type, sections, type_words
from trd_ray.config_sources import (
    LIST,
    MOST_SHOWN,
    NULL,
    TIME,
    Leaf,
    file_leaves,
    is_unquoted,
    override_leaves,
    yaml_problem,
)
from trd_ray.errors import ConfigError, describe, place_of, with_place

_MOST_BITS = 1000
"""Of a whole number; one with more is no float, and may have more digits than Python writes."""
# Beside its own errors PyYAML lets through those of the conversions that it calls.
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, ValueError)


@dataclass(frozen=True, kw_only=True)
class LoadedConfig:
    """A configuration, and which source each value comes from."""

    config: TrdConfig
    origins: Mapping[str, str]
    """Key -> `file:line:column` or `command line`; a key that is not here has its default."""


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> TrdConfig:
    """Read `path`, its parents and `overrides` (`key.path=value`, YAML values).

    Raises `ConfigError` for a missing file, broken YAML, an unknown key (with the nearest known
    one), a wrong type, or a value out of range.
    """
    return load_layers([Path(path)], override_leaves(overrides))


def load_with_origins(path: Path | str, overrides: Sequence[str] = ()) -> LoadedConfig:
    """As `load_config`, with the place of each value."""
    leaves = [*file_leaves(Path(path)), *override_leaves(overrides)]
    config = _to_tree(merge_leaves(OmegaConf.structured(TrdConfig), leaves), leaves)
    return LoadedConfig(config=config, origins={leaf.key: leaf.place for leaf in leaves})


def load_layers(paths: Sequence[Path], settings: Sequence[Leaf] = ()) -> TrdConfig:
    """As `load_config`, of several files, later ones winning, and of settings from elsewhere."""
    return load_layered(paths)(settings)


def load_layered(paths: Sequence[Path]) -> Callable[[Sequence[Leaf]], TrdConfig]:
    """`load_layers` for many sets of settings over the same files, which are read once."""
    files = [leaf for path in paths for leaf in file_leaves(path)]
    merged = merge_leaves(OmegaConf.structured(TrdConfig), files)
    return lambda settings: _to_tree(merge_leaves(merged, settings), [*files, *settings])


def dump_config(config: TrdConfig) -> str:
    """The whole tree as YAML that `load_config` reads back to an equal tree."""
    text: str = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
    return text


def plain_config(config: TrdConfig) -> dict[str, object]:
    """The whole tree as nested mappings of plain values."""
    return typing.cast(dict[str, object], _plain(config))


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value


def merge_leaves(config: DictConfig, leaves: Sequence[Leaf]) -> DictConfig:
    """Merge into a structured tree, later leaves winning. Raises `ConfigError` naming a leaf's place."""
    root = OmegaConf.get_type(config)
    assert root is not None  # structured
    for batch in _without_repetition(leaves):
        values = [_value(leaf, root) for leaf in batch]
        tree: dict[str, object] = {}
        for leaf, value in zip(batch, values, strict=True):
            _put(tree, leaf.key.split("."), value)
        try:
            config = typing.cast(DictConfig, OmegaConf.merge(config, OmegaConf.create(tree)))
        except OmegaConfBaseException:
            # One merge for all is fast; only the merge of each alone tells which is wrong.
            for leaf, value in zip(batch, values, strict=True):
                config = _merge_one(config, leaf, value, root)
    return config


def _without_repetition(leaves: Sequence[Leaf]) -> Iterator[list[Leaf]]:
    """In order, cut where a key comes a second time."""
    batch: list[Leaf] = []
    keys: set[str] = set()
    for leaf in leaves:
        if leaf.key in keys:
            yield batch
            batch, keys = [], set()
        batch.append(leaf)
        keys.add(leaf.key)
    if batch:
        yield batch


def _put(tree: dict[str, object], parts: Sequence[str], value: object) -> None:
    for part in parts[:-1]:
        tree = typing.cast(dict[str, object], tree.setdefault(part, {}))
    tree[parts[-1]] = value


def _value(leaf: Leaf, root: type) -> object:
    require_known(leaf, root)
    cls = option_type(leaf.key, root)
    value = plain_value(leaf.node, where=leaf.at_value(), is_text=str in (cls, *typing.get_args(cls)))
    if value is None:
        raise ConfigError(
            describe(
                "option without a value",
                where=leaf.at_value(),
                got="nothing",
                expected="a value",
                remedy="write a value, or remove the line to keep the default",
            )
        )
    if not _fits_kind(value, cls):
        raise _wrong_type(leaf, value, root)
    require_literal(value, where=leaf.at_value())
    return value


def plain_value(node: yaml.Node, *, where: str, is_text: bool = False) -> object:
    """What a node says.

    Args:
        where: for the message if it cannot be read.
        is_text: the option is a text or a list of texts: `1.10`, `007` and `on` stay as they are written.

    Raises `ConfigError`.
    """
    if isinstance(node, yaml.SequenceNode) and node.tag == LIST:
        return [_plain_item(item, where=where, is_text=is_text) for item in node.value]
    return _plain_item(node, where=where, is_text=is_text)


def _plain_item(node: yaml.Node, *, where: str, is_text: bool) -> object:
    # A date stays one, and is refused as such.
    if is_text and is_unquoted(node) and node.tag not in (NULL, TIME):
        return node.value
    try:
        value: object = yaml.SafeLoader("").construct_document(node)
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise OverflowError("a number too long")
    except yaml.YAMLError as error:
        raise ConfigError(
            describe(
                "broken YAML", where=where, got=yaml_problem(error),
                expected="valid YAML with plain values", remedy="mend the place that is named",
            )
        ) from error  # fmt: skip
    except _UNREADABLE as error:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        shown = node.value if isinstance(node, yaml.ScalarNode) else str(error)
        raise ConfigError(
            describe(
                "unreadable value", where=where, got=f"{repr(shown)[:MOST_SHOWN]}, read as {kind}",
                expected=f"a valid {kind}; a number has 300 digits at most",
                remedy="correct the value; if it is meant as a text, write it in YAML's quotes",
            )
        ) from error  # fmt: skip
    return value


def require_literal(value: object, *, where: str) -> None:
    """Raise `ConfigError` for a text, alone or in a list, that OmegaConf would take for something else."""
    for text in value if isinstance(value, list) else (value,):
        if isinstance(text, str) and (text == "???" or "${" in text):
            raise ConfigError(
                describe(
                    "a value that refers to another, or is left open", where=where,
                    got=repr(text)[:MOST_SHOWN], expected="the value itself, not `???`, and without `${`",
                    remedy="write it out (the shell fills in variables only outside of single quotes)",
                )
            )  # fmt: skip


def _fits_kind(value: object, cls: object) -> bool:
    """A plain value where one is wanted, a list of them where a list is."""
    if typing.get_origin(cls) is tuple:
        return isinstance(value, list) and all(isinstance(item, str | int | float) for item in value)
    return isinstance(value, str | int | float)


def _wrong_type(leaf: Leaf, value: object, root: type) -> ConfigError:
    shown = repr(value)[:MOST_SHOWN] if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    is_date = isinstance(value, datetime.date)
    change = "if it is meant as a text, write it in YAML's quotes" if is_date else "change the value"
    return ConfigError(
        describe(
            "wrong type",
            where=leaf.at_value(),
            got=f"{shown} ({type(value).__name__})",
            expected=type_words(option_type(leaf.key, root)),
            remedy=f"{change}; {_page(root)} lists every option",
        )
    )


def _merge_one(config: DictConfig, leaf: Leaf, value: object, root: type) -> DictConfig:
    tree: dict[str, object] = {}
    _put(tree, leaf.key.split("."), value)
    try:
        return typing.cast(DictConfig, OmegaConf.merge(config, OmegaConf.create(tree)))
    except OmegaConfBaseException as error:
        raise _wrong_type(leaf, value, root) from error


def require_known(leaf: Leaf, root: type = TrdConfig) -> None:
    """Raise `ConfigError` with the nearest known key unless `leaf.key` is an option of `root`."""
    keys = known_keys(root)
    if leaf.key in keys:
        return
    parent = leaf.key.rpartition(".")[0]
    if leaf.key in sections(root):
        expected, remedy = (
            "keys below it",
            f"write for example {next(k for k in keys if k.startswith(leaf.key))}",
        )
        what = "a section has no value of its own"
    elif parent in keys:
        what, expected = "an option has no keys below it", f"a value of {parent}"
        remedy = f"write {parent}: {type_words(option_type(parent, root))}"
    else:
        what, expected = "unknown option", f"a known key; the nearest is {nearest_key(leaf.key, root)}"
        remedy = f"correct the key; {_page(root)} lists every option"
    raise ConfigError(describe(what, where=leaf.at_key(), got=leaf.key, expected=expected, remedy=remedy))


def _page(root: type) -> str:
    """Where the options of a tree are listed."""
    return "configs/base.yaml" if root is TrdConfig else "docs/sweeps.md"


def _to_tree(config: DictConfig, leaves: Sequence[Leaf]) -> TrdConfig:
    try:
        return typing.cast(TrdConfig, OmegaConf.to_object(config))
    except ConfigError as error:
        raise ConfigError(_with_place(_with_whole_key(str(error), config), leaves)) from error


def _with_place(message: str, leaves: Sequence[Leaf]) -> str:
    """Name the place of the option that a message is about, and of set options that it speaks of."""
    key = place_of(message)
    set_here = {leaf.key: leaf for leaf in leaves}
    section = key.rpartition(".")[0]
    words = set(re.findall(r"[\w.]+", message))
    spoken_of = [
        leaf.at_value()
        for leaf in set_here.values()
        if leaf.key != key and (leaf.key in words or _split(leaf.key) in {(section, word) for word in words})
    ]
    own = set_here[key].at_value() if key in set_here else f"{key} (its default)" if spoken_of else key
    return with_place(message, f"\n{' ' * 12}beside ".join((own, *spoken_of)))


def _split(key: str) -> tuple[str, str]:
    section, _, name = key.rpartition(".")
    return section, name


def _with_whole_key(message: str, config: DictConfig) -> str:
    """Name the key from the root: a block that stands in several places knows only its own name."""
    for section in sections():
        block = section.rsplit(".", 1)[-1]
        try:
            OmegaConf.to_object(OmegaConf.select(config, section))
        except ConfigError as error:
            if str(error) == message and f" {block}." in message:
                return message.replace(f" {block}.", f" {section}.")
    return message
