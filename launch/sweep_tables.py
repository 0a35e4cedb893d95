from rich.table import Table


def leaderboard_table(board):
    t = Table("variant", "mean", "n")
    [t.add_row(r.variant, str(r.mean), str(r.num_done)) for r in board.rows]
    return t
