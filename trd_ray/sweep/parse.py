"""Axes and seeds out of YAML nodes. Every `ConfigError` names file and line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from trd_ray.config_keys import option_type
from trd_ray.config_loader import plain_value, require_known, require_literal
from trd_ray.config_places import COMMAND_LINE
from trd_ray.config_sources import Leaf, unique_pairs
from trd_ray.errors import ConfigError, describe
from trd_ray.sweep.axes import CONFIG, METHOD, Axis, AxisKind, Point, Value

_FILE_FOLDERS = {METHOD: ("../method", "configs/method"), CONFIG: ("../experiment", "configs/experiment")}
"""Where a bare name is looked for: relative to the sweep file, then to the working directory."""
_NOT_AN_AXIS = {
    "run.seed": "seeds: [0, 1]",
    "run.dir": "dir: runs/sweep, in which each trial has a folder",
    "ray.address": "ray: {address: ...}",
}
# YAML 1.1 takes 1e-4, without a point, for a text.
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def parse_axes(leaf: Leaf, path: Path) -> Iterator[Axis]:
    """`axes: {key: {kind: values}}`, or `key: [values]` for a grid."""
    mapping = _mapping(leaf, "`key: {grid: [...]}` lines")
    for key_node, node in unique_pairs(mapping, file=source_of(leaf, path)):
        key, place = str(key_node.value), f"{path}:{key_node.start_mark.line + 1} axes"
        _check_key(key, node, place)
        yield _axis(key, node, place, path)


def parse_zip(leaf: Leaf, path: Path) -> Iterator[Axis]:
    """`zip: [{key: [values], other: [values]}]`: each mapping is an axis whose keys move together."""
    if not isinstance(leaf.node, yaml.SequenceNode):
        _refuse("`zip` must be a list of mappings", leaf.place, leaf.node.value, "- {key: [..], other: [..]}")
    for node in leaf.node.value:
        place = f"{path}:{node.start_mark.line + 1} zip"
        mapping = _mapping(Leaf(key="zip", node=node, place=place), "`key: [..]`")
        columns = {
            str(key_node.value): _column(str(key_node.value), values, place, path)
            for key_node, values in unique_pairs(mapping, file=source_of(leaf, path))
        }
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) != 1:
            _refuse("keys that move together need as many values each", place, lengths, "one length")
        rows = zip(*columns.values(), strict=True)
        points = tuple(tuple(zip(columns, row, strict=True)) for row in rows)
        _require_distinct(points, place)
        yield Axis(keys=tuple(columns), kind=AxisKind.GRID, points=points, place=place)


def parse_seeds(leaf: Leaf) -> tuple[int, ...]:
    """`seeds: [0, 1]`."""
    given = plain_value(leaf.node, where=f"{leaf.key} ({leaf.place})")
    seeds = [seed for seed in given if type(seed) is int and seed >= 0] if isinstance(given, list) else []
    if not seeds or seeds != given or len(set(seeds)) != len(seeds):
        _refuse(
            "`seeds` must be a list of seeds", leaf.place, given, "different whole numbers from 0, [0, 1]"
        )
    return tuple(seeds)


def source_of(leaf: Leaf, path: Path) -> Path:
    """The sweep file, or `command line` in its place."""
    return Path(COMMAND_LINE) if leaf.place == COMMAND_LINE else path


def file_of(key: str, value: str, path: Path) -> Path:
    """The file that a value of `method` or `config` names: a path relative to the sweep file, or a name."""
    found = _candidates(key, value, path)
    for candidate in found:
        if candidate.is_file():
            return candidate
    names = sorted({file.stem for folder in found for file in folder.parent.glob("*.yaml")})
    near = difflib.get_close_matches(Path(value).stem, names, n=1, cutoff=0.0)
    _refuse(
        f"the {key} is not there",
        f"{path}: axes.{key}",
        value,
        f"a file; the nearest is {near[0]}" if near else f"one of {', '.join(map(str, found))}",
    )


def _candidates(key: str, value: str, path: Path) -> list[Path]:
    if "/" in value or value.endswith((".yaml", ".yml")):
        return [path.parent / value]
    beside, working = _FILE_FOLDERS[key]
    return [folder / f"{value}.yaml" for folder in (path.parent / beside, path.parent, Path(working))]


def _axis(key: str, node: yaml.Node, place: str, path: Path) -> Axis:
    is_pattern = isinstance(node, yaml.ScalarNode) and key in (METHOD, CONFIG)
    if isinstance(node, yaml.SequenceNode) or is_pattern:
        kind, values = AxisKind.GRID, node
    else:
        pairs = _mapping(Leaf(key=key, node=node, place=place), "{grid: [...]}").value
        if len(pairs) != 1 or pairs[0][0].value not in list(AxisKind):
            _refuse(
                "an axis has one kind",
                f"{place}.{key}",
                [str(k.value) for k, _ in pairs],
                f"one of {', '.join(AxisKind)}",
            )
        kind, values = AxisKind(pairs[0][0].value), pairs[0][1]
    if kind.is_range:
        low, high = _range(key, kind, values, place)
        return Axis(keys=(key,), kind=kind, low=low, high=high, place=place)
    points = tuple(((key, value),) for value in _column(key, values, place, path))
    _require_distinct(points, place)
    return Axis(keys=(key,), kind=kind, points=points, place=place)


def _range(key: str, kind: AxisKind, node: yaml.Node, place: str) -> tuple[float, float]:
    values = plain_value(node, where=f"{place}.{key}")
    numbers = [_number(v) for v in values] if isinstance(values, list) else []
    ends = [float(v) for v in numbers if isinstance(v, int | float) and not isinstance(v, bool)]
    least = 0.0 if kind is AxisKind.LOGUNIFORM else -float("inf")
    if len(numbers) != 2 or len(ends) != 2 or not least < ends[0] < ends[1] < float("inf"):
        above = " above 0" if kind is AxisKind.LOGUNIFORM else ""
        _refuse("a range has two ends", f"{place}.{key}", values, f"[low, high], low below high{above}")
    return ends[0], ends[1]


def _column(key: str, node: yaml.Node, place: str, path: Path) -> list[Value]:
    _check_key(key, node, place)
    is_file = key in (METHOD, CONFIG)
    is_text = is_file or option_type(key) is str
    values = plain_value(node, where=f"{place}.{key}", is_text=is_text)
    if not isinstance(values, list):
        values = [values] if is_file and isinstance(values, str) else []
    if not values or not all(isinstance(value, str | int | float | bool) for value in values):
        _refuse("an axis needs values", f"{place}.{key}", values, "a list of plain values")
    if not is_file:
        require_literal(values, where=f"{place}.{key}")
        return [value if is_text else _number(value) for value in values]
    return [name for value in values for name in _files(key, str(value), path)]


def _files(key: str, value: str, path: Path) -> list[str]:
    """Names as they are; a pattern stands for the files that match."""
    if "*" not in value:
        file_of(key, value, path)
        return [value]
    folder = path.parent
    # Relative to the sweep file as the pattern is, so that a name means the same from any directory.
    base, pattern = Path(value).parent, Path(value).name
    found = [str(base / file.name) for file in sorted((folder / base).glob(pattern))]
    if not found:
        _refuse("no file matches", f"{path}: axes.{key}", value, "a pattern such as ../method/opd_*.yaml")
    return found


def _check_key(key: str, node: yaml.Node, place: str) -> None:
    if key in _NOT_AN_AXIS:
        _refuse("this is not an axis", place, key, _NOT_AN_AXIS[key])
    if key not in (METHOD, CONFIG):
        require_known(Leaf(key=key, node=node, place=place))


def _require_distinct(points: Sequence[Point], place: str) -> None:
    if len(set(points)) != len(points):
        twice = next(point for point in points if points.count(point) > 1)
        _refuse("a value stands twice", place, dict(twice), "each value once; `seeds` repeats trials")


def _mapping(leaf: Leaf, expected: str) -> yaml.MappingNode:
    if not isinstance(leaf.node, yaml.MappingNode) or not leaf.node.value:
        _refuse(f"{leaf.key} must hold keys", leaf.place, leaf.node.value or "nothing", expected)
    return leaf.node


def _number(value: Value) -> Value:
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _refuse(what: str, where: str, got: object, expected: str) -> NoReturn:
    raise ConfigError(
        describe(
            what, where=where, got=got, expected=expected, remedy="see docs/sweeps.md for each kind of axis"
        )
    )
