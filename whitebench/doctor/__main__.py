"""Says what of the suite works on this host, and how to fix what does not: `make doctor`, `whitebench doctor`.

Needs only the standard library, of any Python 3.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from whitebench.doctor.finding import LIMITED, MISSING, OK, Finding
from whitebench.doctor.host import (
    check_compiler,
    check_cores,
    check_data,
    check_disks,
    check_git,
    check_python,
    check_slurm,
    check_suite,
)
from whitebench.doctor.packages import PROBES, answer, check_packages, probe_all

COLOURS = {OK: "32", LIMITED: "33", MISSING: "31"}


def main(arguments: list[str] | None = None) -> int:
    """Prints the findings; 0 where `make sweep` can work, 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog="python doctor.py", description="Says what of the suite works here, and how to fix what does not."
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--probe", nargs="+", choices=list(PROBES), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.probe:
        return answer(options.probe)
    findings = examine()
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        _show(findings, colour=sys.stdout.isatty())
    return int(any(finding.state == MISSING for finding in findings))


def examine() -> list[Finding]:
    """All findings. The slow ones (imports, SLURM) are made side by side."""
    with ThreadPoolExecutor(2) as pool:
        probed, slurm = pool.submit(probe_all), pool.submit(check_slurm)
        quick = [check_python(), check_packages(), check_suite(), check_git(), check_compiler()]
        machine = [check_cores(), *check_disks()]
        return [*quick, *probed.result(), slurm.result(), *check_data(), *machine]


def _show(findings: Iterable[Finding], colour: bool) -> None:
    findings = list(findings)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        state = f"{finding.state:8}"
        label = f"\033[{COLOURS[finding.state]}m{state}\033[0m" if colour else state
        print(f"{label} {finding.name:{width}}  {finding.what}")
        if finding.remedy:
            print(f"{'':8} {'':{width}}  -> {finding.remedy}")
    missing = [finding.name for finding in findings if finding.state == MISSING]
    print(f"\nmissing: {', '.join(missing)}" if missing else "\nmake sweep can work here")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of the output (head, less) has ended
        sys.stderr.close()
