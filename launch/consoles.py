"""The consoles of the command line: results go to standard output, problems to standard error."""

from __future__ import annotations

from rich.console import Console

console = Console()
error_console = Console(stderr=True)


def show(text: str) -> None:
    """Print a text as it is: no markup in it, no line broken in two."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
