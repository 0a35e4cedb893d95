"""What the pages tell people to type or to look for exists: commands, options, keys, configurations, code,
messages, metrics. Nothing is run but Python that is marked so."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import shlex
from enum import EnumType
from functools import lru_cache
from pathlib import Path

import pytest
import typer
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typer.core import TyperGroup

from launch.cli import app
from tests.contract.docs_pages import PAGES, ROOT, bash_commands, blocks, name_of, prose, spans
from trd_ray import choices, outcomes, types
from trd_ray.config import TrdConfig
from trd_ray.config_loader import known_keys, load_config
from trd_ray.errors import ConfigError
from trd_ray.evaluation import EvalReport
from trd_ray.metrics import StepMetrics
from trd_ray.runtime_metrics import RuntimeMetrics

pages = pytest.mark.parametrize("page", PAGES, ids=name_of)
SECTIONS = {key.partition(".")[0] for key in known_keys()}
# A single option may contradict the defaults and be right elsewhere; it must be valid in one of these.
BASES = (
    "trd_opd",
    "trd_opd_filtered",
    "trd_opd_top_k",
    "grpo",
    "opsd_ema",
    "qwen3/trd_opd_4b",
    "qwen3/trd_opd_top_k_4b",
)
_OVERRIDE = re.compile(rf"(?:{'|'.join(SECTIONS)})(?:\.[a-z_0-9]+)+=\S.*")
_KEY = re.compile(rf"((?:{'|'.join(SECTIONS)})(?:\.[a-z_0-9]+)+)(?:\.\*|\.)?(?::.*)?")
_OF_RAY = ("ray.init", "ray.get", "ray.remote", "ray.shutdown")
"""Functions that look like options of the section `ray`."""
_FILES = (".json", ".jsonl", ".yaml", ".html", ".py", ".parquet", ".md", ".proto", ".txt")
_PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]{2,}\b|\.\.\.|/path/|path/to/|[<{]")
_PREFIXES = {
    "trd-ray": [], ".venv/bin/trd-ray": [], "python -m launch.cli": [], "python -m launch.train": ["train"],
}  # fmt: skip


def arguments(command: str) -> list[str] | None:
    """Those of trd-ray that a shell command ends in; None if it calls something else."""
    for prefix, first in _PREFIXES.items():
        found = re.search(rf"(?:^|\s|-- ){re.escape(prefix)}(?=\s|$)", command)
        if found:
            return first + shlex.split(command[found.end() :], comments=True)
    return None


def parse(args: list[str]) -> tuple[str, dict[str, object]]:
    """The command's name and what it would be called with. Raises as the command line does."""
    command, context, name = typer.main.get_command(app), None, "trd-ray"
    while True:
        context = command.make_context(name, list(args), parent=context)
        if not isinstance(command, TyperGroup):
            return name, context.params
        name, command, args = command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None


@lru_cache(maxsize=1)
def command_options() -> dict[str, set[str]]:
    """Options by `trd-ray` command."""
    found: dict[str, set[str]] = {}

    def walk(command: object, path: tuple[str, ...]) -> None:
        found[" ".join(path)] = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)} | {
            "--help"
        }  # type: ignore[attr-defined]
        for name, child in getattr(command, "commands", {}).items():
            walk(child, (*path, name))

    walk(typer.main.get_command(app), ())
    return found


def is_valid(overrides: list[str]) -> bool:
    return any(holds(name, tuple(overrides)) for name in BASES)


@lru_cache(maxsize=len(BASES))
def base_tree(name: str) -> TrdConfig:
    return load_config(ROOT / f"configs/experiment/{name}.yaml")


@lru_cache(maxsize=1024)
def holds(base: str, overrides: tuple[str, ...]) -> bool:
    """All at once, which the loader does one by one so that it can name a line."""
    tree = OmegaConf.structured(base_tree(base))
    try:
        OmegaConf.to_object(OmegaConf.merge(tree, OmegaConf.from_dotlist(list(overrides))))
    except (ConfigError, OmegaConfBaseException):
        return False
    return True


@pages
def test_commands_of_blocks_parse(page: Path):
    for command in bash_commands(page):
        args = arguments(command)
        if args:
            try:
                parse(args)
            except typer.Exit:
                pass  # --help
            except Exception as error:
                raise AssertionError(f"{command}: {type(error).__name__}: {error}") from error


@pages
def test_options_of_commands_in_blocks_are_valid(page: Path):
    for command in bash_commands(page):
        given = [arg for arg in arguments(command) or [] if _OVERRIDE.fullmatch(arg)]
        files = [arg for arg in arguments(command) or [] if arg.startswith("configs/experiment/")]
        for file in files:
            load_config(ROOT / file, given)
        if given and not files:
            assert is_valid(given), command


@pages
def test_commands_in_sentences_exist(page: Path):
    known = command_options()
    for span in spans(page):
        if not span.startswith("trd-ray "):
            continue
        words = re.sub(r"[\[\]|]", " ", span).split()[1:]
        path = ""
        for word in words:
            deeper = f"{path} {word}".strip()
            if deeper not in known:
                break
            path = deeper
        assert path or words[0].startswith("--"), f"{span}: no such command"
        # An option may be the parent's: `submit` is a command and a group.
        inside = [name for name in known if name == path or (path and name.startswith(f"{path} "))]
        options = set().union(*(known[name] for name in inside))
        for word in words:
            if word.startswith("--") and word != "--":
                assert word.partition("=")[0] in options, f"{span}: no option {word}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_options_in_sentences_exist_and_are_valid(page: Path):
    """But of the CHANGELOG, which names options that are gone."""
    keys = known_keys()
    for span in spans(page):
        overrides = [word for word in shlex.split(span.replace("'", "")) if _OVERRIDE.fullmatch(word)]
        if overrides and not _PLACEHOLDER.search(span):
            assert is_valid(overrides), f"`{span}` is valid in none of {len(BASES)} configurations"
        found = _KEY.fullmatch(span)
        if found and not span.endswith(_FILES) and "=" not in span and span not in _OF_RAY:
            key = found[1]
            assert any(k == key or k.startswith(f"{key}.") for k in keys), f"`{span}`: no such option"


@pages
def test_configurations_in_blocks_load(page: Path, tmp_path: Path):
    for folder in ("configs", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for number, block in enumerate(block for block in blocks(page) if block.language == "yaml"):
        for tree in yaml.safe_load_all(block.text):
            if isinstance(tree, dict) and set(tree) <= SECTIONS | {"extends"}:
                file = tmp_path / f"block_{number}.yaml"
                file.write_text(block.text)
                load_config(file)


@pages
def test_python_in_blocks(page: Path):
    for block in blocks(page):
        if block.language != "python":
            continue
        ast.parse(block.text)
        _, _, file = block.info.partition("file=")
        if file:
            assert block.text == (page.parent / file).read_text(), f"{file} is shown otherwise than it is"
        if block.info.endswith(" run"):
            exec(compile(block.text, str(page), "exec"), {"__name__": "__docs__"})


@lru_cache(maxsize=1)
def source_messages() -> str:
    """Every string of the sources, one a line; what is filled in is the character NUL."""
    found = []
    for ring in ("trd_ray", "actors", "launch"):
        for path in sorted((ROOT / ring).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)
                    )
    return "\n".join(found)


def is_printed(message: str) -> bool:
    """Some string of the sources holds it, where words of it may be filled in."""
    messages = source_messages()
    if message in messages:
        return True
    words = message.split()
    for size in (1, 2):
        for start in range(len(words) - size + 1):
            if " ".join([*words[:start], "\0", *words[start + size :]]) in messages:
                return True
    return False


QUOTES = re.findall(r"^> (.+)$", prose(ROOT / "docs/runbooks.md"), re.M)


@pytest.mark.parametrize("message", QUOTES)
def test_quoted_messages_are_printed(message: str):
    assert is_printed(message)


def test_a_message_that_nobody_prints_is_noticed():
    assert len(QUOTES) > 15
    assert not is_printed("the actors do fit on the cluster")
    assert not is_printed("The loss is not a number")


@pytest.mark.parametrize("name", ["tuning", "runbooks", "concepts"])
def test_metrics_and_values_that_are_named_exist(name: str):
    page = ROOT / f"docs/{name}.md"
    records = (
        StepMetrics,
        RuntimeMetrics,
        EvalReport,
        *(v for v in vars(types).values() if inspect.isclass(v)),
    )
    known = {field.name for r in records if dataclasses.is_dataclass(r) for field in dataclasses.fields(r)}
    known |= {part for key in known_keys() for part in key.split(".")}
    for module in (choices, outcomes, types):
        known |= {m.value for e in vars(module).values() if isinstance(e, EnumType) for m in e}
    # Endings of `generator_idle_s` and the like; a folder of the run.
    known |= {"_idle_s", "buffer_log", "trd_ray", "y_o", "y_r"}
    for span in spans(page):
        if re.fullmatch(r"_?[a-z]+(_[a-z0-9]+)+", span):
            assert span in known, f"`{span}` in {name}.md is no metric, option or value"
