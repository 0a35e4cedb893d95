"""Reads a written page as a browser would: its elements, and the data that it carries."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np

from trd_ray.report.blob import unpack

VOID = {"meta", "link", "br", "path", "circle", "input"}


class Page(HTMLParser):
    """Checks nesting and collects what the tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.panels: list[str] = []
        self.packed: dict[str, str] = {}
        self.executable: list[str] = []
        self.words: list[str] = []
        self._id: str | None = None
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self._id = values.get("id") if tag == "script" else None
        assert not any(name.startswith("on") for name in values), "a handler in the markup"

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open:
            return
        if self.open[-1] == "h3":
            self.panels.append(data)
        if self.open[-1] == "script":
            if self._id is None:
                self.executable.append(data)
            else:
                self.packed[self._id] = data
        elif self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a reader sees before any script runs."""
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def runs(self) -> list[dict]:
        return json.loads(self.packed["runs"])

    def index(self, run: int = 0) -> tuple[dict, dict[str, np.ndarray]]:
        return unpack(self.packed[f"run-{run}-index"])

    def kinds(self, run: int = 0) -> Counter[str]:
        values, arrays = self.index(run)
        return Counter(values["enums"]["kind"][kind] for kind in arrays["kind"])

    def blocks(self, run: int = 0) -> list[tuple[dict, dict[str, np.ndarray]]]:
        names = [name for name in self.packed if name.startswith(f"run-{run}-block-")]
        return [unpack(self.packed[name]) for name in names]

    def texts(self, name: str, run: int = 0) -> list[str | None]:
        return [text for values, _ in self.blocks(run) for text in values[name]]
