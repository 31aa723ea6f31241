"""The papers' claims, as `results/claims.csv` has them."""

from pathlib import Path

import pandas as pd
from markupsafe import Markup

from results.leaderboards.claim_tests import HOLDS, measured
from results.page.data_tables import Cell, Head, Table, TableRow, chips
from results.page.environment import macro


def claim_table(path: Path) -> Table | None:
    """None where the file does not exist."""
    if not path.is_file():
        return None
    tests = pd.read_csv(path, keep_default_na=False, na_values={"other_n": ""})
    rows = []
    for (claim, paper, verdict), group in tests.groupby(["claim", "paper", "claim_verdict"], sort=False):
        lines = [(_verdict(test["verdict"]), test["test"], measured(test)) for test in group.to_dict("records")]
        text = "; ".join(f"{test['verdict']}: {test['test']}" for test in group.to_dict("records"))
        cells = [
            Cell(_verdict(verdict), csv=str(verdict)),
            Cell(f"{claim} ({paper})"),
            Cell(macro("cells.html", "tests")(lines), csv=text),
        ]
        rows.append(TableRow(f"{claim} {paper} {verdict}", cells))
    return Table("claims-table", [Head("verdict", "verdict"), Head("claim", "claim"), Head("tests", "tests")], rows)


def _verdict(verdict: object) -> Markup:
    return chips([str(verdict)], "good" if str(verdict) == HOLDS else "")
