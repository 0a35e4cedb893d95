"""The one loader: YAML files with parents, then overrides, into the frozen tree of config.py.

Order: the defaults of config.py, the parents named under `extends` (relative to the file, in
order), the file, the `key.path=value` overrides. Later ones win. Errors name the file and line.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trd_ray.config import TrdConfig
from trd_ray.errors import ConfigError, describe

EXTENDS = "extends"


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    """One `key.path: value` of a source, and where it stands."""

    key: str
    node: yaml.Node
    place: str


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> TrdConfig:
    """Read `path`, its parents and `overrides` (`key.path=value`, YAML values).

    Raises `ConfigError` for a missing file, broken YAML, an unknown key (with the nearest known
    one), a wrong type, or a value out of range.
    """
    sources = [*_file_chain(Path(path), seen=()), *_override_sources(overrides)]
    merged = OmegaConf.structured(TrdConfig)
    for leaf in sources:
        merged = _merge_leaf(merged, leaf)
    return _to_tree(merged)


def dump_config(config: TrdConfig) -> str:
    """The whole tree as YAML that `load_config` reads back to an equal tree."""
    text: str = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
    return text


def plain_config(config: TrdConfig) -> dict[str, object]:
    """The whole tree as nested mappings of plain values."""
    return typing.cast(dict[str, object], _plain(config))


def known_keys() -> tuple[str, ...]:
    """Dotted paths of all options, in the order of config.py."""
    return tuple(_leaf_paths(TrdConfig, prefix=""))


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value


def _file_chain(path: Path, *, seen: tuple[Path, ...]) -> list[_Leaf]:
    """Leaves of the parents of `path`, then its own."""
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(str(p) for p in (*seen, resolved))
        raise ConfigError(
            describe(
                "configuration files extend each other in a circle",
                where=str(path),
                got=chain,
                expected="a chain that ends",
                remedy=f"remove one of the `{EXTENDS}` entries",
            )
        )
    root = _compose(path)
    leaves: list[_Leaf] = []
    own: list[_Leaf] = []
    for key_node, value in root.value if root is not None else ():
        if key_node.value == EXTENDS:
            for parent in _parents(path, value):
                leaves += _file_chain(parent, seen=(*seen, resolved))
        else:
            own += _flatten(key_node, value, prefix="", file=path)
    return leaves + own


def _compose(path: Path) -> yaml.MappingNode | None:
    if not path.is_file():
        raise ConfigError(
            describe(
                "configuration file not found",
                where=str(path),
                got="no such file",
                expected="a YAML file",
                remedy="check the path; named experiments are in configs/experiment/",
            )
        )
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _broken_yaml(error, where=str(path)) from error
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            describe(
                "a configuration file must hold keys",
                where=f"{path}:1",
                got=root.tag,
                expected="`key: value` lines",
                remedy="see configs/base.yaml for every key",
            )
        )
    return root


def _parents(path: Path, node: yaml.Node) -> Iterable[Path]:
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    for item in nodes:
        yield path.parent / str(item.value)


def _flatten(key_node: yaml.Node, value: yaml.Node, *, prefix: str, file: Path) -> list[_Leaf]:
    key = f"{prefix}{key_node.value}"
    place = f"{file}:{key_node.start_mark.line + 1}"
    if isinstance(value, yaml.MappingNode) and value.value:
        leaves: list[_Leaf] = []
        for child_key, child in value.value:
            leaves += _flatten(child_key, child, prefix=f"{key}.", file=file)
        return leaves
    return [_Leaf(key=key, node=value, place=place)]


def _override_sources(overrides: Sequence[str]) -> list[_Leaf]:
    leaves = []
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                describe(
                    "malformed override",
                    where="command line",
                    got=text,
                    expected="key.path=value",
                    remedy="write for example run.num_steps=20",
                )
            )
        try:
            node = yaml.compose(value, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            raise _broken_yaml(error, where=f"command line: {text}") from error
        nothing = yaml.ScalarNode("tag:yaml.org,2002:null", "")
        leaves.append(_Leaf(key=key.strip(), node=node or nothing, place=f"command line: {text}"))
    return leaves


def _broken_yaml(error: yaml.YAMLError | UnicodeDecodeError, *, where: str) -> ConfigError:
    return ConfigError(
        describe(
            "broken YAML",
            where=where,
            got=" ".join(str(error).split()),
            expected="valid YAML with plain values",
            remedy="mend the place that is named",
        )
    )


def _merge_leaf(config: DictConfig, leaf: _Leaf) -> DictConfig:
    _check_known(leaf)
    try:
        value = yaml.SafeLoader("").construct_document(leaf.node)
    except yaml.YAMLError as error:
        raise _broken_yaml(error, where=f"{leaf.key} ({leaf.place})") from error
    if value is None:
        raise ConfigError(
            describe(
                "option without a value",
                where=f"{leaf.key} ({leaf.place})",
                got="nothing",
                expected="a value",
                remedy="write a value, or remove the line to keep the default",
            )
        )
    given = value
    first, *rest = leaf.key.split(".")
    for part in reversed(rest):
        value = {part: value}
    try:
        return typing.cast(DictConfig, OmegaConf.merge(config, OmegaConf.create({first: value})))
    except OmegaConfBaseException as error:
        raise ConfigError(
            describe(
                "wrong type",
                where=f"{leaf.key} ({leaf.place})",
                got=f"{given!r} ({type(given).__name__})",
                expected=_expected_type(leaf.key),
                remedy="change the value; configs/base.yaml lists every option",
            )
        ) from error


def _check_known(leaf: _Leaf) -> None:
    keys = known_keys()
    if leaf.key in keys:
        return
    if leaf.key in _sections():
        expected, remedy = (
            "keys below it",
            f"write for example {next(k for k in keys if k.startswith(leaf.key))}",
        )
        what = "a section has no value of its own"
    else:
        near = difflib.get_close_matches(leaf.key, keys, n=1, cutoff=0.0)
        what, expected = "unknown option", f"a known key; the nearest is {near[0]}"
        remedy = "correct the key; configs/base.yaml lists every option"
    raise ConfigError(
        describe(what, where=f"{leaf.key} ({leaf.place})", got=leaf.key, expected=expected, remedy=remedy)
    )


def _to_tree(config: DictConfig) -> TrdConfig:
    try:
        return typing.cast(TrdConfig, OmegaConf.to_object(config))
    except ConfigError as error:
        raise ConfigError(_with_whole_key(str(error), config)) from error


def _with_whole_key(message: str, config: DictConfig) -> str:
    """Name the key from the root: a block that stands in several places knows only its own name."""
    for section in _sections():
        block = section.rsplit(".", 1)[-1]
        try:
            OmegaConf.to_object(OmegaConf.select(config, section))
        except ConfigError as error:
            if str(error) == message and f" {block}." in message:
                return message.replace(f" {block}.", f" {section}.")
    return message


def _sections() -> list[str]:
    """Dotted paths of all blocks, the innermost first."""
    found = {key.rsplit(".", n)[0] for key in known_keys() for n in range(1, key.count(".") + 1)}
    return sorted(found, key=lambda section: (-section.count("."), section))


def _leaf_paths(cls: type, *, prefix: str) -> Iterable[str]:
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from _leaf_paths(typing.cast(type, hints[item.name]), prefix=f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}"


def _expected_type(key: str) -> str:
    cls: type = TrdConfig
    for part in key.split("."):
        cls = typing.get_type_hints(cls)[part]
    if typing.get_origin(cls) is tuple:
        cls = typing.get_args(cls)[0]
        return f"a list [..., ...] of {_words_of(cls).removeprefix('one of ')}"
    return _words_of(cls)


def _words_of(cls: type) -> str:
    members = getattr(cls, "__members__", None)
    if members:
        return "one of " + ", ".join(str(m.value) for m in members.values())
    return cls.__name__
