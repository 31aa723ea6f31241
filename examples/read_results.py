"""Reads the tables of results with pandas: python examples/read_results.py [FOLDER] (default: results).

Prints each leaderboard's methods with their intervals, and what its runs cost.
"""

import sys
from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parents[1] / "results"
HASHES = ["config", "eval_config", "pretrain_code", "code", "data_hash", "eval_data_hash", "protocol_hash"]
"""Columns that may consist of digits only: read as text."""


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    if not (folder / "runs.csv").is_file():
        print(f"{folder}: no runs.csv yet; python results/aggregate.py writes it from your runs")
        return
    runs = pd.read_csv(folder / "runs.csv", dtype=dict.fromkeys([*HASHES, "git", "pretrain_git"], "string"))
    done = runs[runs.status == "done"]
    print(f"{len(done)} evaluations of {done.parent.nunique()} pretrainings")
    for path in sorted(folder.glob("leaderboard_*.csv")):
        board = pd.read_csv(path, dtype=dict.fromkeys(["config", "eval_config", "seeds"], "string"))
        metric = next(name for name in ("top1", "box_AP", "mAP") if f"{name}_mean" in board)
        rows = board[["recipe", f"{metric}_mean", f"{metric}_low", f"{metric}_high", "n_pretrain", "versus_best"]]
        print(f"\n{path.stem.removeprefix('leaderboard_')}\n{rows.to_string(index=False)}")
        print(f"{board.stale.notna().sum()} of {len(board)} rows are stale: their code has changed since")
    hours = done.drop_duplicates("parent").pretrain_cpu_s.sum() / 3600
    print(f"\npretraining took {hours:.2f} hours of CPU time")


if __name__ == "__main__":
    main()
