"""The consoles of the command line: results go to standard output, problems to standard error."""

from __future__ import annotations

from rich.console import Console

console = Console()
error_console = Console(stderr=True)
