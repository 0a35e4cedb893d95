"""Remakes the pictures in docs/images from real runs.

    python -m tests.e2e.report_screenshots RUN OTHER_RUN [--out docs/images]

`report.png`: the top of RUN's report. `report_viewer.png`: its trajectories, coloured by divergence.
`report_viewer_dark.png`: their changes, in the dark theme. `report_compare.png` and
`report_compare_viewer.png`: both runs beside each other.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Browser

from tests.e2e.browser import Opened, chromium
from trd_ray.report import write_report


def remake(browser: Browser, run: Path, other: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    one = write_report(run)
    with tempfile.TemporaryDirectory() as folder:
        both = write_report([run, other], Path(folder) / "comparison.html")
        _picture(browser, one, out / "report.png", height=1000)
        _picture(browser, one, out / "report_viewer.png", keys="1c", viewer=True)
        _picture(browser, one, out / "report_viewer_dark.png", keys="1", viewer=True, dark=True)
        _picture(browser, both, out / "report_compare.png", height=1000)
        _picture(browser, both, out / "report_compare_viewer.png", keys="1b", viewer=True)


def _picture(
    browser: Browser, page: Path, target: Path, *, keys: str = "", viewer: bool = False,
    dark: bool = False, height: int = 900,
) -> None:  # fmt: skip
    report = Opened(browser, page, dark=dark, height=height)
    report.wait_until_searchable()
    for key in keys:
        report.page.keyboard.press(key)
    if viewer:
        report.show_viewer()
    # Nothing on the page says that it is drawn to the last line; half a second is enough on any machine.
    report.page.wait_for_timeout(500)
    report.page.screenshot(path=target)
    report.require_quiet()
    report.page.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    with chromium() as opened:
        remake(opened, args.run, args.other, args.out)
