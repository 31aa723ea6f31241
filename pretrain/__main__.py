"""The command `python -m pretrain RECIPE [key=value ...]`."""

import argparse

from whitebench.errors import UserError, run_command

EXAMPLES = """\
examples:
  python -m pretrain sample/intl                              the built-in sample, on this machine
  python -m pretrain imagenet1k/intl-100ep seed=1             a published recipe
  python -m pretrain my.yaml batch=512 schedule.epochs=50     your own file, with changes
  torchrun --nproc-per-node 4 -m pretrain imagenet1k/cwrgp-100ep world_size=4

A run is named by what determines its result. Started again, it resumes where it stopped; once done, it reports that.
Runs are kept in $WHITEBENCH_RUNS (default ./runs), data in $WHITEBENCH_DATA (default ./data)."""


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m pretrain",
        description="Pretrain a backbone by a recipe.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("recipe", nargs="?", help="a name shown by --list, or the path of a YAML file")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="dotted recipe keys, e.g. optimizer.lr=0.1")
    command.add_argument("--list", action="store_true", help="show the recipes: what papers report, what was measured")
    command.add_argument("--show", action="store_true", help="print the resolved recipe and its run id; do not train")
    return command


def main() -> None:
    command = parser()
    arguments = command.parse_intermixed_args()
    if arguments.list:
        from whitebench import cli  # the list reads tables, which are above this package

        cli.run(["recipes"])
    elif arguments.recipe is None:
        command.error("a recipe is needed (python -m pretrain --list shows them)")
    elif arguments.show:
        show(arguments.recipe, arguments.overrides)
    else:
        start(arguments.recipe, arguments.overrides)


def start(name: str, texts: list[str]) -> None:
    from pretrain.recipe import load
    from pretrain.train import train
    from whitebench.config import parse_overrides
    from whitebench.files import BACKBONE
    from whitebench.records import stage_folder

    overrides = parse_overrides(texts)
    recipe = load(name, overrides)
    record = train(recipe, {"overrides": {key: value for key, value in overrides.items() if key != "seed"}})
    if record is not None:
        print(f"{record.id}: done; {stage_folder('pretrain', record.id) / BACKBONE}")


def show(name: str, texts: list[str]) -> None:
    import yaml

    from pretrain.recipe import load
    from pretrain.run_identity import pretrain_id, resolved

    recipe = resolved(load(name, texts))
    print(yaml.safe_dump(recipe.identity(), sort_keys=False), end="")
    try:
        print(f"# run id: {pretrain_id(recipe)}")
    except UserError as error:  # the recipe can be looked at before its data is there
        print(f"# run id: unknown ({error})")


if __name__ == "__main__":
    run_command(main)
