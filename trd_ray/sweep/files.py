"""The leaderboard on disk."""

from pathlib import Path
from trd_ray.sweep.leaderboard import Leaderboard


def write_leaderboard(board: Leaderboard, folder: Path) -> None: ...
