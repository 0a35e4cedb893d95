"""What is written in YAML files, their parents and overrides: settings, each with its place.

A file may name parents under `extends`, relative to itself; their settings come before its own. Errors name
file, line and column and quote the line.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from trd_ray.config_keys import known_keys
from trd_ray.config_places import COMMAND_LINE, Place, error_spot, node_spot
from trd_ray.errors import ConfigError, describe

EXTENDS = "extends"
MOST_SHOWN = 200
"""Characters of a wrong value that a message shows."""
NULL, TEXT, LIST, TIME = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "str", "seq", "timestamp"))
"""Tags of YAML nodes."""
_MOST_DEPTH = 6
"""Levels of sections that are looked into; no option is so deep, but an alias may refer to what holds it."""


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One `key.path: value` of a source, and where it stands."""

    key: str
    node: yaml.Node
    place: str
    """In words."""
    spot: Place | None = None
    """Where exactly; None for what no one wrote."""

    def at_key(self) -> str:
        """For `where:` of a message about the key."""
        return (
            f"{self.key} ({self.place})" if self.spot is None else self.spot.quoted(self.key, self.spot.key)
        )

    def at_value(self) -> str:
        """For `where:` of a message about the value."""
        if self.spot is None:
            return f"{self.key} ({self.place})"
        return self.spot.quoted(self.key, self.spot.value)


def file_leaves(path: Path, *, seen: tuple[Path, ...] = (), named: _Naming | None = None) -> list[Leaf]:
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
    root = compose_file(path, where=str(path) if named is None else named.quoted(path))
    by = () if named is None else (named.place, *named.extended_by)
    leaves: list[Leaf] = []
    own: list[Leaf] = []
    for key_node, value in unique_pairs(root, file=path):
        if key_node.value == EXTENDS:
            for naming in _parents(path, value, extended_by=by):
                leaves += file_leaves(naming.parent, seen=(*seen, resolved), named=naming)
        else:
            own += flatten_node(key_node, value, prefix="", file=path, extended_by=by)
    require_set_once(own)
    return leaves + own


def require_set_once(leaves: Sequence[Leaf]) -> None:
    """Raise `ConfigError` if one file sets an option twice, as `a.b: 1` and in `a: {b: 2}`."""
    first: dict[str, Leaf] = {}
    for leaf in leaves:
        if leaf.key in first:
            before = first[leaf.key]
            raise ConfigError(
                describe(
                    "the same option twice in one file",
                    where=f"{leaf.at_key()}\n{' ' * 12}beside {before.at_key()}",
                    got=f"{leaf.key} at {before.place} and at {leaf.place}",
                    expected="each option once", remedy="remove one of them",
                )
            )  # fmt: skip
        first[leaf.key] = leaf


def compose_file(path: Path, *, where: str = "") -> yaml.MappingNode | None:
    """The keys of a YAML file; None if it is empty.

    Args:
        where: by whom the file is named, for the message if it is missing.

    Raises `ConfigError`.
    """
    text = _read(path, where=where or str(path))
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _broken_yaml(error, where=str(path)) from error
    except RecursionError as error:
        raise ConfigError(
            describe(
                "YAML is nested too deeply", where=str(path), got="a value in a value, hundreds of times",
                expected="sections and values", remedy="see configs/base.yaml for every key",
            )
        ) from error  # fmt: skip
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            describe(
                "a configuration file must hold keys",
                where=f"{path}:1\n{node_spot(root).quoted()}",
                got=root.tag.removeprefix("tag:yaml.org,2002:"),
                expected="`key: value` lines",
                remedy="see configs/base.yaml for every key",
            )
        )
    return root


def _read(path: Path, *, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _broken_yaml(error, where=where) from error
    except OSError as error:
        near = _nearest_file(path)
        raise ConfigError(
            describe(
                "configuration file not found" if isinstance(error, FileNotFoundError) else "unreadable file",
                where=where,
                got=f"{path}: {error.strerror or error}",
                expected="a YAML file" + (f"; the nearest is {near}" if near else ""),
                remedy="check the path; named experiments are in configs/experiment/",
            )
        ) from error


def _nearest_file(path: Path) -> str | None:
    """A YAML file with a name like it, in its folder or among the experiments."""
    folders = (
        path.parent,
        Path("configs/experiment"),
        Path("configs/experiment/qwen3"),
        Path("configs/method"),
    )
    names = {file.stem: file for folder in reversed(folders) for file in folder.glob("*.y*ml")}
    near = difflib.get_close_matches(path.stem, names, n=1)
    return str(names[near[0]]) if near else None


@dataclass(frozen=True, kw_only=True)
class _Naming:
    """A parent, and the entry of `extends` that names it."""

    parent: Path
    place: str
    """`file:line` of the entry."""
    spot: Place
    extended_by: tuple[str, ...]

    def quoted(self, path: Path) -> str:
        return self.spot.quoted(str(path), self.spot.value)


def _parents(path: Path, node: yaml.Node, *, extended_by: tuple[str, ...]) -> Iterator[_Naming]:
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    for item in nodes:
        spot = Place.in_file(path, item, item, extended_by=extended_by)
        if not isinstance(item, yaml.ScalarNode) or not item.value:
            raise ConfigError(
                describe(
                    "a parent must be a file name", where=spot.quoted(EXTENDS, spot.value),
                    got=str(item.value)[:MOST_SHOWN] or "nothing", expected="extends: [other.yaml, ...]",
                    remedy="name YAML files, relative to this one",
                )
            )  # fmt: skip
        place = f"{path}:{item.start_mark.line + 1}"
        yield _Naming(
            parent=_plain_path(path.parent / item.value), place=place, spot=spot, extended_by=extended_by
        )


def _plain_path(path: Path) -> Path:
    """Without `..` in it, where that is the same file."""
    plain = Path(os.path.normpath(path))
    return plain if plain.resolve() == path.resolve() else path


def unique_pairs(node: yaml.MappingNode | None, *, file: Path) -> list[tuple[yaml.Node, yaml.Node]]:
    """Keys and values of a mapping. Raises `ConfigError` if a key comes twice: the first would be lost."""
    pairs = node.value if node is not None else []
    first: dict[str, yaml.Node] = {}
    for key, _ in pairs:
        name = str(key.value)
        if name in first:
            spot = Place.in_file(file, key, key)
            raise ConfigError(
                describe(
                    "the same key twice in one section", where=spot.quoted(name, spot.key),
                    got=f"{name} in lines {first[name].start_mark.line + 1} and {spot.key.line}",
                    expected="each key once", remedy="remove one of them",
                )
            )  # fmt: skip
        first[name] = key
    return pairs


def flatten_node(
    key_node: yaml.Node,
    value: yaml.Node,
    *,
    prefix: str,
    file: Path,
    extended_by: tuple[str, ...] = (),
) -> list[Leaf]:
    """The settings below one key of a file."""
    key = f"{prefix}{key_node.value}"
    if isinstance(value, yaml.MappingNode) and value.value and key.count(".") < _MOST_DEPTH:
        leaves: list[Leaf] = []
        for child_key, child in unique_pairs(value, file=file):
            leaves += flatten_node(child_key, child, prefix=f"{key}.", file=file, extended_by=extended_by)
        return leaves
    spot = Place.in_file(file, key_node, value, extended_by=extended_by)
    return [Leaf(key=key, node=value, place=spot.brief(spot.value), spot=spot)]


def override_leaves(overrides: Sequence[str]) -> list[Leaf]:
    """The settings of `key=value` on the command line."""
    leaves = []
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                describe(
                    "malformed override",
                    where=COMMAND_LINE,
                    got=repr(text),
                    expected="key.path=value",
                    remedy=_override_remedy(text),
                )
            )
        try:
            node = _override_node(value)
        except (yaml.YAMLError, RecursionError) as error:
            raise _broken_override(text) from error
        spot = Place.in_override(text)
        leaves.append(Leaf(key=key.strip(), node=node, place=COMMAND_LINE, spot=spot))
    return leaves


def _override_node(value: str) -> yaml.Node:
    """A value on the command line, where `#` begins no comment: what is typed is meant.

    Raises `yaml.YAMLError`.
    """
    node = yaml.compose(value, Loader=yaml.SafeLoader)
    if node is None:
        text = value.strip()
        return yaml.ScalarNode(TEXT, text) if text.startswith("#") else yaml.ScalarNode(NULL, "")
    rest = value
    for part in reversed(node.value) if isinstance(node, yaml.SequenceNode) else (node,):
        rest = rest[: part.start_mark.index] + rest[part.end_mark.index :]
    if "#" not in rest:
        return node
    if not is_unquoted(node) or value[: node.start_mark.index].strip():
        raise yaml.YAMLError("a comment")
    text = node.value + value[node.end_mark.index :].rstrip()
    return yaml.ScalarNode(TEXT, text, node.start_mark, node.end_mark)


def is_unquoted(node: yaml.Node) -> bool:
    """It is a scalar without quotes and without a tag: what it is was found out from its spelling."""
    if not isinstance(node, yaml.ScalarNode) or node.style:
        return False
    loader = yaml.SafeLoader("")
    tag: str = loader.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
    return node.tag == tag


def _override_remedy(text: str) -> str:
    if text.startswith("-"):
        return "options come before or after, with a known name: see --help"
    if text in known_keys():
        return f"write {text}=VALUE; `trd-ray config docs {text}` says what it may be"
    return "write for example run.num_steps=20"


def _broken_override(text: str) -> ConfigError:
    spot = Place.in_override(text)
    return ConfigError(
        describe(
            "broken YAML in a value",
            where=spot.quoted(text.partition("=")[0], spot.value),
            got=repr(text.partition("=")[2])[:MOST_SHOWN],
            expected="a plain value",
            remedy="quote it for YAML inside the shell's quotes: 'run.dir=\"a: b\"'",
        )
    )


def _broken_yaml(error: yaml.YAMLError | UnicodeDecodeError, *, where: str) -> ConfigError:
    spot = error_spot(error) if isinstance(error, yaml.MarkedYAMLError) else None
    if spot is not None:
        where = f"{where}:{spot.line}:{spot.start + 1}\n{spot.quoted()}"
    return ConfigError(
        describe(
            "broken YAML",
            where=where,
            got=yaml_problem(error),
            expected="valid YAML with plain values",
            remedy="mend the place that is named",
        )
    )


def yaml_problem(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """What a YAML reader found wrong, without the place."""
    if isinstance(error, yaml.MarkedYAMLError):
        return "; ".join(part for part in (error.context, error.problem) if part)
    return " ".join(str(error).split())
