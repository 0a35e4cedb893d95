"""A headless Chromium that opens one local file and tells what it asked for and complained about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
TIMEOUT_MS = 120_000
"""Generous: the machine may be busy."""


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, timeout=TIMEOUT_MS)
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """A report in a page of its own."""

    def __init__(
        self, browser: Browser, path: Path, *, dark: bool = False, width: int = 1280, height: int = 900
    ) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.url = path.resolve().as_uri()
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        self.page.set_default_timeout(TIMEOUT_MS)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.goto(self.url)
        # The first trajectory is drawn.
        self.page.wait_for_selector("#detail .trajectory")

    def wait_until_searchable(self) -> None:
        # Not by a function to wait for: playwright makes it by eval, which the page's policy forbids.
        self.page.wait_for_selector("#viewer[data-searchable]")

    def millis(self, mark: str) -> float:
        """Of a mark, since the page was asked for."""
        return self.page.evaluate("(name) => performance.getEntriesByName(name).at(-1).startTime", mark)

    @property
    def filter_ms(self) -> float:
        """The last choice of trajectories, until the list and what is shown of it are drawn."""
        return self.page.evaluate("performance.getEntriesByName('filter').at(-1).duration")

    @property
    def num_shown(self) -> int:
        return int(self.page.inner_text("#count").split(" ")[0].replace(",", ""))

    def show_viewer(self) -> None:
        self.page.evaluate("document.getElementById('trajectories').scrollIntoView()")

    def require_quiet(self) -> None:
        """It asked for itself only, and nothing was wrong."""
        outside = [url for url in self.requests if url not in (self.url, "data:,")]
        assert outside == [] and self.complaints == [], (outside, self.complaints)
