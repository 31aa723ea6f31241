"""The `whitebench` command: every command of the suite, from any folder.

A console script does not put the current folder in front of the suite's own packages, so that a `results.py` of the
user's does no harm. Modules are imported when their command runs, which keeps `--help` fast.
"""

import importlib
import sys
from typing import NamedTuple

from whitebench.errors import UserError, nearest, run_command


class Command(NamedTuple):
    module: str
    """Has a `main()` that reads `sys.argv` and returns an exit code or None."""
    summary: str


COMMANDS = {
    "pretrain": Command("pretrain.__main__", "pretrain a backbone by a recipe"),
    "evaluate": Command(
        "pretrain.evaluate.__main__", "evaluate a backbone: linear probe, k-NN, fine-tuning, few-shot, retrieval, ..."
    ),
    "data": Command("pretrain.data.__main__", "write, check and show datasets"),
    "diagnose": Command("pretrain.diagnostics.__main__", "draw the spectra of a pretraining"),
    "detect": Command("transfer.coco_det", "fine-tune a checkpoint for detection and report AP"),
    "sweep": Command("slurm.launch_sweep", "run a sweep on this machine or on SLURM"),
    "plan": Command("slurm.cost.__main__", "estimate what a pretraining or a sweep costs"),
    "recipes": Command("results.recipe_list", "list recipes with published and measured values"),
    "aggregate": Command("results.aggregate", "build the tables from run folders"),
    "report": Command("results.report", "build the report page"),
    "export": Command("results.export", "export a pretraining with a model card"),
    "claims": Command("results.claims", "test the papers' claims on the runs"),
    "doctor": Command("whitebench.doctor.__main__", "say what works on this host and how to fix the rest"),
}


def main() -> None:
    """Entry point of the console script."""
    run_command(lambda: run(sys.argv[1:]))


def run(arguments: list[str]) -> int | None:
    """Runs the command that `arguments` name, with the rest as its own arguments; returns its exit code.

    Raises:
        UserError: the first argument is not a command.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'{nearest(name, COMMANDS)}")
    sys.argv = [f"whitebench {name}", *rest]
    code: int | None = importlib.import_module(COMMANDS[name].module).main()
    return code


def _usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: whitebench COMMAND [...]\n\nSelf-supervised pretraining compared on classification and detection.\n\n"
        f"{commands}\n\n`whitebench COMMAND --help` explains a command."
    )
