"""The one loader: YAML files with parents, then overrides, into the frozen tree of config.py.

Order: the defaults of config.py, the parents named under `extends` (relative to the file, in
order), the file, the `key.path=value` overrides. Later ones win. Errors name the file and line.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
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
class Leaf:
    """One `key.path: value` of a source, and where it stands."""

    key: str
    node: yaml.Node
    place: str


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> TrdConfig:
    """Read `path`, its parents and `overrides` (`key.path=value`, YAML values).

    Raises `ConfigError` for a missing file, broken YAML, an unknown key (with the nearest known
    one), a wrong type, or a value out of range.
    """
    return load_layers([Path(path)], override_leaves(overrides))


def load_layers(paths: Sequence[Path], settings: Sequence[Leaf] = ()) -> TrdConfig:
    """As `load_config`, of several files, later ones winning, and of settings from elsewhere."""
    return load_layered(paths)(settings)


def load_layered(paths: Sequence[Path]) -> Callable[[Sequence[Leaf]], TrdConfig]:
    """`load_layers` for many sets of settings over the same files, which are read once."""
    files = [leaf for path in paths for leaf in _file_chain(path, seen=())]
    merged = merge_leaves(OmegaConf.structured(TrdConfig), files)
    return lambda settings: _to_tree(merge_leaves(merged, settings))


def dump_config(config: TrdConfig) -> str:
    """The whole tree as YAML that `load_config` reads back to an equal tree."""
    text: str = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
    return text


@functools.cache
def known_keys(root: type = TrdConfig) -> tuple[str, ...]:
    """Dotted paths of all options, in the order of config.py."""
    return tuple(_leaf_paths(root, prefix=""))


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value.value if isinstance(value, StrEnum) else value


def _file_chain(path: Path, *, seen: tuple[Path, ...]) -> list[Leaf]:
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
    root = compose_file(path)
    leaves: list[Leaf] = []
    own: list[Leaf] = []
    for key_node, value in root.value if root is not None else ():
        if key_node.value == EXTENDS:
            for parent in _parents(path, value):
                leaves += _file_chain(parent, seen=(*seen, resolved))
        else:
            own += flatten_node(key_node, value, prefix="", file=path)
    return leaves + own


def compose_file(path: Path) -> yaml.MappingNode | None:
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


def flatten_node(key_node: yaml.Node, value: yaml.Node, *, prefix: str, file: Path) -> list[Leaf]:
    key = f"{prefix}{key_node.value}"
    place = f"{file}:{key_node.start_mark.line + 1}"
    if isinstance(value, yaml.MappingNode) and value.value:
        leaves: list[Leaf] = []
        for child_key, child in value.value:
            leaves += flatten_node(child_key, child, prefix=f"{key}.", file=file)
        return leaves
    return [Leaf(key=key, node=value, place=place)]


def override_leaves(overrides: Sequence[str]) -> list[Leaf]:
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
        leaves.append(Leaf(key=key.strip(), node=node or nothing, place=f"command line: {text}"))
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
    try:
        value: object = yaml.SafeLoader("").construct_document(leaf.node)
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
    return value


def _merge_one(config: DictConfig, leaf: Leaf, value: object, root: type) -> DictConfig:
    tree: dict[str, object] = {}
    _put(tree, leaf.key.split("."), value)
    try:
        return typing.cast(DictConfig, OmegaConf.merge(config, OmegaConf.create(tree)))
    except OmegaConfBaseException as error:
        raise ConfigError(
            describe(
                "wrong type",
                where=f"{leaf.key} ({leaf.place})",
                got=f"{value!r} ({type(value).__name__})",
                expected=_expected_type(leaf.key, root),
                remedy=f"change the value; {_page(root)} lists every option",
            )
        ) from error


def require_known(leaf: Leaf, root: type = TrdConfig) -> None:
    """Raise `ConfigError` with the nearest known key unless `leaf.key` is an option of `root`."""
    keys = known_keys(root)
    if leaf.key in keys:
        return
    if leaf.key in _sections(root):
        expected, remedy = (
            "keys below it",
            f"write for example {next(k for k in keys if k.startswith(leaf.key))}",
        )
        what = "a section has no value of its own"
    else:
        near = difflib.get_close_matches(leaf.key, keys, n=1, cutoff=0.0)
        what, expected = "unknown option", f"a known key; the nearest is {near[0]}"
        remedy = f"correct the key; {_page(root)} lists every option"
    raise ConfigError(
        describe(what, where=f"{leaf.key} ({leaf.place})", got=leaf.key, expected=expected, remedy=remedy)
    )


def _page(root: type) -> str:
    """Where the options of a tree are listed."""
    return "configs/base.yaml" if root is TrdConfig else "docs/sweeps.md"


def _to_tree(config: DictConfig) -> TrdConfig:
    try:
        return typing.cast(TrdConfig, OmegaConf.to_object(config))
    except ConfigError as error:
        raise ConfigError(_with_whole_key(str(error), config)) from error


def _with_whole_key(message: str, config: DictConfig) -> str:
    """Name the key from the root: a block that stands in several places knows only its own name."""
    for section in _sections(TrdConfig):
        block = section.rsplit(".", 1)[-1]
        try:
            OmegaConf.to_object(OmegaConf.select(config, section))
        except ConfigError as error:
            if str(error) == message and f" {block}." in message:
                return message.replace(f" {block}.", f" {section}.")
    return message


def _sections(root: type) -> list[str]:
    """Dotted paths of all blocks, the innermost first."""
    found = {key.rsplit(".", n)[0] for key in known_keys(root) for n in range(1, key.count(".") + 1)}
    return sorted(found, key=lambda section: (-section.count("."), section))


def _leaf_paths(cls: type, *, prefix: str) -> Iterable[str]:
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from _leaf_paths(typing.cast(type, hints[item.name]), prefix=f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}"


def _expected_type(key: str, root: type) -> str:
    cls = root
    for part in key.split("."):
        cls = typing.get_type_hints(cls)[part]
    members = getattr(cls, "__members__", None)
    if members:
        return "one of " + ", ".join(str(m.value) for m in members.values())
    return cls.__name__
