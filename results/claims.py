"""python results/claims.py [RUNS ...]: the papers' claims, what was measured for each, and the verdict.

`inputs/claims.yaml` names the claims and their tests, `slurm/sweeps/claims.yaml` runs their arms, and this evaluates
the records: a row of `claims.csv` is one test. n counts pretrainings.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from whitebench.errors import UserError, run_command
from whitebench.files import write_atomically
from whitebench.records import runs_root

HERE = Path(__file__).parent
TABLE, RECORDS = "claims.csv", "records/claims"
"""Apart from those of the leaderboards, to which the claims' arms do not belong."""
CLAIMS = HERE / "inputs" / "claims.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python results/claims.py",
        description="Tests the papers' claims on the runs of slurm/sweeps/claims.yaml and claims-whitened.yaml.",
    )
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs (default: $WHITEBENCH_RUNS, or ./runs)")
    parser.add_argument("--out", type=Path, default=HERE, help="where claims.csv goes (default: results)")
    parser.add_argument("--with-published", action="store_true", help=f"also the published records, OUT/{RECORDS}")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--publish", action="store_true", help=f"also copy the records behind it to OUT/{RECORDS}")
    mode.add_argument("--check", action="store_true", help=f"fail if OUT's claims.csv is not what OUT/{RECORDS} gives")
    options = parser.parse_args(arguments)
    missing = [path for path in options.runs if not path.is_dir()]
    if missing:
        raise UserError(f"{missing[0]}: no such folder of runs")
    from results.leaderboards.claim_file import arms, read_claims
    from results.leaderboards.claim_tests import by_measure, judge, measure_each, read_records, resolutions, show
    from results.leaderboards.stale import changed_since, stale_recipes
    from results.leaderboards.table_formats import inert
    from results.leaderboards.write import publish, writing_to

    stated, path = read_claims(CLAIMS), options.out / TABLE
    published = [options.out / RECORDS] if options.check or options.publish or options.with_published else []
    roots = [] if options.check else options.runs or [runs_root()]
    records = read_records([*roots, *published], arms(stated.claims))
    measured = measure_each(records.values())
    table = judge(stated.claims, by_measure(measured), resolutions(records.values()), measured)
    text = table.map(inert).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    if options.check:
        if not path.exists() and not records:
            print(f"{options.out}: no claims are published")
            return 0
        if not path.is_file() or path.read_text() != text:
            raise UserError(f"{path}: is not what {options.out / RECORDS} gives")
        stale = stale_recipes(records.values())
        for recipe, cause in sorted(stale.items()):
            print(f"stale: {recipe}: {changed_since(cause)}", file=sys.stderr)
        if stale:
            raise UserError(f"{len(stale)} published arms are stale: run them again, or remove their records")
        print(f"{path}: is what {RECORDS}/ gives")
        return 0
    with writing_to(options.out):
        write_atomically(path, text.encode())
    print(f"tests written {stated.written}, p corrected for all {len(table)} tests")
    print("\n".join(f"changed after results were seen, {change}" for change in stated.changes))
    print(show(table))
    if options.publish:
        print(f"{publish(records, options.out / RECORDS)} records published in {options.out / RECORDS}")
    return 0


if __name__ == "__main__":
    run_command(main)
