"""The report's section on the papers' claims: what `results/claims.csv` holds."""

from html import escape
from pathlib import Path

import pandas as pd

from results.claims import HOLDS, measured
from results.page.parts import cell, table


def claims(path: Path) -> str:
    """Of the table that `claims.py` has written; nothing where there is none."""
    if not path.exists():
        return ""
    judged = pd.read_csv(path, keep_default_na=False, na_values={"other_n": ""})
    rows = []
    for (claim, paper, verdict), tests in judged.groupby(["claim", "paper", "claim_verdict"], sort=False):
        lines = [
            f"{_verdict(t['verdict'])} {escape(t['test'])}: {escape(measured(t))}" for t in tests.to_dict("records")
        ]
        cells = [cell(_verdict(verdict), raw=True), cell(f"{claim} ({paper})"), cell("<br>".join(lines), raw=True)]
        rows.append((f"{claim} {paper} {verdict}", cells))
    hint = (
        '<p class="hint">Each is tested by small experiments (<code>slurm/sweeps/claims.yaml</code>), and holds if all '
        "its tests do: if the 95 % interval of each difference lies beyond its margin. n counts pretrainings.</p>"
    )
    return hint + table([("verdict", False), ("claim", False), ("tests", False)], rows)


def _verdict(verdict: object) -> str:
    text = str(verdict)
    return f'<span class="chip {"good" if text == HOLDS else ""}">{escape(text)}</span>'
