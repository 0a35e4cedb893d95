"""The pages as data: links, headings, code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```[ ]*$", re.M | re.S)
_LINK = re.compile(r"(?P<image>!?)\[[^\]\[]*\]\((?P<target>[^)\s]+)\)")
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.M)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: Path
    info: str
    text: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]


@dataclass(frozen=True, kw_only=True)
class Link:
    page: Path
    target: str
    is_image: bool

    @property
    def is_relative(self) -> bool:
        return not re.match(r"[a-z]+:", self.target)

    @property
    def path(self) -> Path:
        """Of the file; the page itself for a bare anchor."""
        name = self.target.partition("#")[0]
        return (self.page.parent / name).resolve() if name else self.page

    @property
    def anchor(self) -> str:
        return self.target.partition("#")[2]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return _FENCE.sub("", page.read_text())


def blocks(page: Path) -> list[Block]:
    return [
        Block(page=page, info=found["info"].strip(), text=found["text"])
        for found in _FENCE.finditer(page.read_text())
    ]


def links(page: Path) -> list[Link]:
    text = _SPAN.sub("", prose(page))
    return [
        Link(page=page, target=found["target"], is_image=bool(found["image"]))
        for found in _LINK.finditer(text)
    ]


def spans(page: Path) -> list[str]:
    """Code inside sentences and tables, on one line each."""
    return [" ".join(span.split()) for span in _SPAN.findall(prose(page))]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    found: set[str] = set()
    for heading in _HEADING.findall(prose(page)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = 0
        while (f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(f"{slug}-{number}" if number else slug)
    return found


def bash_commands(page: Path) -> list[str]:
    """Whole commands of bash blocks, continued lines joined, comments and prompts cut."""
    commands = []
    for block in blocks(page):
        if block.language in ("bash", "sh", "console"):
            joined = re.sub(r"\\\n\s*", " ", block.text)
            commands += [line.strip().removeprefix("$ ") for line in joined.splitlines() if line.strip()]
    return commands
