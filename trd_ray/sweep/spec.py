"""A sweep file in memory, and the one loader of it."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from trd_ray.config_loader import merge_leaves
from trd_ray.config_sources import (
    Leaf,
    compose_file,
    flatten_node,
    override_leaves,
    require_set_once,
    unique_pairs,
)
from trd_ray.errors import ConfigError, describe
from trd_ray.sweep.axes import CONFIG, METHOD, Axis
from trd_ray.sweep.options import MetricConfig, SearchKind, StopKind, SweepOptions
from trd_ray.sweep.parse import file_of, parse_axes, parse_seeds, parse_zip, source_of

_BY_HAND = ("set", "axes", "zip", "seeds")
_PREFIX = "sweep."


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Everything that a sweep file and the command line say."""

    path: Path
    options: SweepOptions
    fixed: tuple[Leaf, ...]
    """Options that all trials share, over their files."""
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    """Values of `run.seed`; empty leaves it to the configuration."""

    @property
    def folder(self) -> Path:
        return Path(self.options.dir).expanduser()

    @property
    def random_axes(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.axes if axis.kind.is_random)

    def files(self, settings: Sequence[tuple[str, object]]) -> tuple[Path, ...]:
        """Configuration files of a trial with these values of `method` and `config`, later ones winning."""
        chosen = {key: str(value) for key, value in settings if key in (METHOD, CONFIG)}
        first = (
            file_of(CONFIG, chosen[CONFIG], self.path)
            if CONFIG in chosen
            else self.path.parent / self.options.base
        )
        return (first, file_of(METHOD, chosen[METHOD], self.path)) if METHOD in chosen else (first,)


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file and `key=value` overrides: of `sweep.*` its own options, of others every trial's.

    Raises `ConfigError` for whatever is wrong in it; the trials themselves are checked by
    `trd_ray.sweep.trials`.
    """
    given = override_leaves(overrides)
    own = [_without_prefix(leaf) for leaf in given if leaf.key.startswith(_PREFIX)]
    sections, leaves = _read(path)
    for leaf in own:
        if leaf.key in _BY_HAND:
            sections[leaf.key] = leaf
    option_leaves = [*leaves, *(leaf for leaf in own if leaf.key not in _BY_HAND)]
    tree = merge_leaves(OmegaConf.structured(SweepOptions), option_leaves)
    sweep = Sweep(
        path=path,
        options=typing.cast(SweepOptions, OmegaConf.to_object(tree)),
        fixed=(*_fixed(sections, path), *(leaf for leaf in given if not leaf.key.startswith(_PREFIX))),
        axes=(*_parsed(sections, "axes", path), *_parsed(sections, "zip", path)),
        seeds=parse_seeds(sections["seeds"]) if "seeds" in sections else (),
    )
    _check(sweep)
    return sweep


def dump_options(options: SweepOptions) -> str:
    """As YAML that `load_metric` reads."""
    text: str = OmegaConf.to_yaml(OmegaConf.structured(options))
    return text


def load_metric(path: Path, overrides: Sequence[str]) -> MetricConfig:
    """The metric of dumped options, with `metric.key=value` overrides. Raises `ConfigError`."""
    _, leaves = _read(path)
    tree = merge_leaves(OmegaConf.structured(SweepOptions), [*leaves, *override_leaves(overrides)])
    return typing.cast(SweepOptions, OmegaConf.to_object(tree)).metric


def _without_prefix(leaf: Leaf) -> Leaf:
    return Leaf(key=leaf.key.removeprefix(_PREFIX), node=leaf.node, place=leaf.place)


def _read(path: Path) -> tuple[dict[str, Leaf], list[Leaf]]:
    """The sections that are read by hand, and the leaves of all others."""
    sections: dict[str, Leaf] = {}
    leaves: list[Leaf] = []
    for key_node, value in unique_pairs(compose_file(path), file=path):
        place = f"{path}:{key_node.start_mark.line + 1}"
        _require_section(str(key_node.value), place)
        if key_node.value in _BY_HAND:
            sections[key_node.value] = Leaf(key=key_node.value, node=value, place=place)
        else:
            leaves += flatten_node(key_node, value, prefix="", file=path)
    require_set_once(leaves)
    return sections, leaves


def _require_section(name: str, place: str) -> None:
    known = (*_BY_HAND, *(item for item in SweepOptions.__dataclass_fields__))
    first = name.partition(".")[0]
    if first in known:
        return
    near = difflib.get_close_matches(first, known, n=1, cutoff=0.0)[0]
    raise ConfigError(
        describe(
            "unknown part of a sweep file",
            where=place,
            got=name,
            expected=f"one of {', '.join(known)}; the nearest is {near}",
            remedy="correct it; options that all trials share stand under `set`",
        )
    )


def _fixed(sections: dict[str, Leaf], path: Path) -> list[Leaf]:
    if "set" not in sections:
        return []
    node = sections["set"].node
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            describe(
                "`set` must hold options",
                where=sections["set"].place,
                got=str(node.value),
                expected="`key: value` lines",
                remedy="write for example set: {run.num_steps: 10}",
            )
        )
    file = source_of(sections["set"], path)
    leaves: list[Leaf] = []
    for key_node, value in unique_pairs(node, file=file):
        leaves += flatten_node(key_node, value, prefix="", file=file)
    require_set_once(leaves)
    return leaves


def _parsed(sections: dict[str, Leaf], name: str, path: Path) -> Iterator[Axis]:
    if name in sections:
        yield from (parse_axes if name == "axes" else parse_zip)(sections[name], path)


def _check(sweep: Sweep) -> None:
    _check_keys(sweep)
    search = sweep.options.search
    has_config = any(CONFIG in axis.keys for axis in sweep.axes)
    if not sweep.options.base and not has_config:
        _refuse(
            sweep,
            "there is no configuration to start from",
            "base",
            "nothing",
            "a file relative to the sweep file, or an axis `config`",
            "add for example base: run.yaml",
        )
    if search.kind is SearchKind.ALL and search.num_samples > 1 and not sweep.random_axes:
        _refuse(
            sweep,
            "several samples of nothing",
            "search.num_samples",
            search.num_samples,
            "1 without an axis of kind choice, uniform or loguniform",
            "add such an axis, or use `seeds`",
        )
    if search.kind is SearchKind.OPTUNA and (len(sweep.seeds) > 1 or not sweep.axes):
        _refuse(
            sweep,
            "Optuna searches over axes, one run a proposal",
            "search.kind",
            f"{len(sweep.axes)} axes, seeds {list(sweep.seeds)}",
            "one axis or more, at most one seed",
            "repeat the best values over seeds in a sweep of their own",
        )
    if sweep.options.stop_early.kind is StopKind.ASHA and sweep.options.metric.last > 1:
        _refuse(
            sweep,
            "a stopped trial is judged by its newest value",
            "metric.last",
            sweep.options.metric.last,
            "1 with stop_early.kind=asha",
            "set metric.last=1",
        )


def _check_keys(sweep: Sweep) -> None:
    seen: dict[str, str] = {}
    for axis in sweep.axes:
        for key in axis.keys:
            if key in seen:
                _refuse(
                    sweep,
                    "two axes set one option",
                    axis.place,
                    key,
                    f"one axis, as in {seen[key]}",
                    "remove one of them",
                )
            seen[key] = axis.place
    for leaf in sweep.fixed:
        if leaf.key in seen:
            _refuse(
                sweep,
                "an axis sets this option already",
                leaf.place,
                leaf.key,
                f"the axis at {seen[leaf.key]} alone",
                "remove one of them",
            )
        if leaf.key == "run.seed" and sweep.seeds:
            _refuse(
                sweep,
                "`seeds` sets this option already",
                leaf.place,
                leaf.key,
                "`seeds` alone",
                "remove one of them",
            )
        if leaf.key in SET_BY_SWEEP:
            _refuse(
                sweep, "the sweep sets this option", leaf.place, leaf.key, SET_BY_SWEEP[leaf.key], "remove it"
            )


SET_BY_SWEEP = {
    "run.dir": "`dir` of the sweep file (sweep.dir=... on the command line); each trial has a folder in it",
    "ray.address": "`ray: {address: ...}` of the sweep file (sweep.ray.address=... on the command line)",
}
"""Options of a trial that are not for the user to set, and what to use."""


def _refuse(sweep: Sweep, what: str, where: str, got: object, expected: str, remedy: str) -> None:
    place = where if str(sweep.path) in where or "command line" in where else f"{sweep.path}: {where}"
    raise ConfigError(describe(what, where=place, got=got, expected=expected, remedy=remedy))
