"""A few lines of a terminal, redrawn in place, which survive that the terminal is made narrower."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment

REFRESH_HZ = 4
"""Each redraw is one write; more of them than this is a flicker over a slow connection."""


class LiveLines:
    """Wraps `rich.live.Live`. Not thread-safe: `update` is called from one thread."""

    def __init__(self, console: Console, render: Callable[[], RenderableType]) -> None:
        """
        Args:
            render: the first thing to show.
        """
        self._console = console
        self._width = console.width
        self._shown = render()
        self._live = self._new()

    def _new(self) -> Live:
        return Live(self._shown, console=self._console, auto_refresh=False, transient=True)

    def start(self) -> None:
        """Begin to draw."""
        self._live.start(refresh=True)

    def stop(self) -> None:
        """Take the lines away."""
        self._live.stop()

    def update(self, shown: RenderableType) -> None:
        """Show this from now on."""
        width = self._console.width
        if width < self._width and self._live.is_started:
            self._after_narrowing(width)
        self._width = width
        self._shown = shown
        self._live.update(shown, refresh=True)

    def _after_narrowing(self, width: int) -> None:
        """Terminals break lines that are too long now into several; Rich would leave the surplus there."""
        lengths = [Segment.get_line_length(line) for line in self._lines(self._width)]
        surplus = sum(-(-length // width) - 1 for length in lengths if length > width)
        self._live.stop()
        erase = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)]
        self._console.control(Control(ControlType.CARRIAGE_RETURN, *(erase * surplus)))
        self._live = self._new()
        self._live.start()

    def _lines(self, width: int) -> list[list[Segment]]:
        options = self._console.options.update(width=width)
        return self._console.render_lines(self._shown, options, pad=False)
