"""The pages hold together: links, anchors, pictures, reach; nothing private in them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.contract.docs_pages import PAGES, ROOT, anchors, links, name_of, prose

pages = pytest.mark.parametrize("page", PAGES, ids=name_of)
# Folders of a reader's machine that examples may name.
_EXAMPLE_FOLDERS = frozenset(
    [
        "shared",
        "tmp",
        "dev",
        "proc",
        "etc",
        "data",
        "models",
        "mnt",
        "nfs",
        "opt",
        "scratch",
        "usr",
        "var",
        "home",
    ]
)
_ABSOLUTE = re.compile(r"(?<![\w./:~$}>-])/([a-z]+)/[\w.-]+")
_REGISTRIES = ("pypi", "pythonhosted", "npmjs", "debian")


@pages
def test_links_lead_somewhere(page: Path):
    for link in links(page):
        if link.is_relative:
            assert link.path.exists(), f"{link.target}: no such file"
            assert link.path.is_relative_to(ROOT), f"{link.target}: outside of the project"
            if link.anchor and link.path.suffix == ".md":
                assert link.anchor in anchors(link.path), f"{link.target}: no such heading"


@pages
def test_pictures_are_pictures(page: Path):
    for link in links(page):
        if link.is_image and link.is_relative:
            head = link.path.read_bytes()[:256]
            assert head.startswith(b"\x89PNG") or b"<svg" in head, link.target
            assert link.path.stat().st_size < 1_000_000, f"{link.target} is too large to load with a page"


def test_every_page_is_reached_from_the_readme():
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen:
            seen.add(page)
            waiting += [link.path for link in links(page) if link.is_relative and link.path.suffix == ".md"]
    assert [name_of(page) for page in PAGES if page not in seen] == []


def test_the_index_names_every_page_once_on_a_line_of_its_own():
    index = ROOT / "docs/README.md"
    rows = [line for line in prose(index).splitlines() if line.startswith("| [")]
    for page in sorted((ROOT / "docs").glob("*.md")):
        if page != index:
            assert sum(row.startswith(f"| [{page.name}]({page.name})") for row in rows) == 1, page.name


@pages
def test_nothing_private_is_named(page: Path):
    text = page.read_text()
    for link in links(page):
        host = urlsplit(link.target).netloc
        assert not any(registry in host for registry in _REGISTRIES), (
            f"{link.target}: name the package instead"
        )
    for found in _ABSOLUTE.finditer(text):
        assert found[1] in _EXAMPLE_FOLDERS, f"{found[0]}: a folder of somebody's machine"


def test_the_picture_of_the_data_flow_is_plain_svg():
    text = (ROOT / "docs/images/dataflow.svg").read_text()
    assert "<script" not in text and "href=" not in text  # nothing runs, nothing is fetched
    assert "prefers-color-scheme: dark" in text
    assert '<rect class="page"' in text  # has a ground of its own, so it is readable on any page
