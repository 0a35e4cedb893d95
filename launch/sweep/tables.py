"""The tables of a sweep on the terminal."""

from __future__ import annotations

from rich.table import Table

from trd_ray.sweep.files import cells, columns
from trd_ray.sweep.leaderboard import Leaderboard


def leaderboard_table(board: Leaderboard) -> Table:
    """As in `leaderboard.md`."""
    table = Table(*columns(board), title=board.name)
    for row in cells(board):
        table.add_row(*row)
    return table
