"""Views from JPEGs, images/s and CPU ms per image: ours, stock FFCV, torchvision (PIL, and v2), DALI, bare decoding.

python benchmarks/loader.py --images /path/to/imagefolder [--repeat 2] [--out loader.json] [--plot loader.png]
python benchmarks/loader.py --show loader.json [--plot loader.png]

Everyone runs in a process of its own, in turns, on the same photos (repeated to a useful number) and cores, after an
epoch to warm up; medians over epochs. Crops and flips only, bilinear, but where the name says more. Goals: two 224
views at 2.5 times stock FFCV's rate and 3 times torchvision's, for at most 1.25 times the bare decoding; 2 x 224 + 6 x
96 for at most 1.25 times 2 x 224; the first batch within 3 s. The last rows are what the writer's settings do.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from loader_contestants import CONTESTANTS, WRITTEN, available

RATIOS = (
    ("images/s over stock ffcv", "rate", "whitebench, 2 x 224", "stock ffcv, 2 x 224", "at least 2.5"),
    ("images/s over torchvision, PIL", "rate", "whitebench, 2 x 224", "torchvision PIL, 2 x 224", "at least 3"),
    ("images/s over torchvision, v2", "rate", "whitebench, 2 x 224", "torchvision v2, 2 x 224", "at least 3"),
    ("images/s over DALI on the CPU", "rate", "whitebench, 2 x 224", "DALI on the CPU, 2 x 224", ""),
    ("CPU of stock ffcv over whitebench", "cpu", "stock ffcv, 2 x 224", "whitebench, 2 x 224", ""),
    ("CPU of torchvision, PIL, over whitebench", "cpu", "torchvision PIL, 2 x 224", "whitebench, 2 x 224", ""),
    ("CPU of torchvision, v2, over whitebench", "cpu", "torchvision v2, 2 x 224", "whitebench, 2 x 224", ""),
    ("CPU over bare decoding", "cpu", "whitebench, 2 x 224", "bare decoding", "at most 1.25"),
    (
        "CPU of 2 x 224 + 6 x 96 over 2 x 224",
        "cpu",
        "whitebench, 2 x 224 + 6 x 96",
        "whitebench, 2 x 224",
        "at most 1.25",
    ),
)
PACKAGES = ("torch", "torchvision", "ffcv", "numba", "pillow", "nvidia-dali-cuda130")
Results = dict[str, Any]


def main() -> None:
    options = _parser().parse_args()
    if options.contestant:
        print(json.dumps(turn(options)))
        return
    if options.show:
        results = json.loads(options.show.read_text())
    elif options.images:
        results = race(options)
    else:
        raise SystemExit("loader.py: --images FOLDER is needed, or --show FILE")
    print(table(results))
    if options.plot:
        draw(results, options.plot)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="<class>/<image>")
    parser.add_argument("--repeat", type=int, default=4, help="times each photo is there (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="threads or processes (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=3, help="timed in each turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, metavar="NAME", help="of: " + "; ".join(CONTESTANTS))
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="keep all that was measured")
    parser.add_argument("--show", type=Path, metavar="FILE.json", help="print (and plot) stored results; run nothing")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--datasets", type=Path, help=argparse.SUPPRESS)
    return parser


def race(options: argparse.Namespace) -> Results:
    """What each contestant's turns measured, on which files, machine and versions."""
    with tempfile.TemporaryDirectory() as folder:
        from pretrain.data.betons.images import WriteSettings
        from pretrain.data.betons.write import write_dataset

        images, options.datasets = Path(folder) / "images", Path(folder) / "datasets"
        repeat(options.images, images, options.repeat)
        sizes = {}
        for name, settings in WRITTEN.items():
            folder = options.datasets / name
            manifest = write_dataset(
                images, folder, settings=WriteSettings(**settings), workers=options.workers, skip_bad=True
            )
            count = manifest.splits["train"].count
            sizes[name] = (folder / "train.beton").stat().st_size / count
        options.images = images
        results = {
            "images": count,
            "kilobytes": {name: size / 1e3 for name, size in sizes.items()},
            **{name: getattr(options, name) for name in ("workers", "batch", "epochs", "repeat")},
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "versions": {name: version for name in PACKAGES if (version := _version(name))},
            "load": [os.getloadavg()[0]],
            "turns": {},
        }
        compete(options, results)
        return results


def repeat(source: Path, target: Path, times: int) -> None:
    """An ImageFolder of links to each image of `source`, `times` times."""
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        for number in range(times):
            link = target / path.parent.name / f"{number}-{path.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())


def compete(options: argparse.Namespace, results: Results) -> None:
    """Adds to the results turn by turn and stores them each time: an interrupted run can be printed."""
    names = [name for name in options.only or CONTESTANTS if not _left_out(name)]
    command = [sys.executable, __file__, "--images", str(options.images), "--datasets", str(options.datasets)]
    for name in ("workers", "batch", "epochs"):
        command += [f"--{name}", str(getattr(options, name))]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    for _ in range(options.rounds):
        for name in names:
            done = subprocess.run(
                [*command, "--contestant", name], env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            measured = json.loads(done.stdout.splitlines()[-1])
            results["turns"].setdefault(name, []).append(measured)
            results["load"].append(os.getloadavg()[0])
            if options.out:
                options.out.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{name}: {statistics.median(measured['cpu']):.2f} ms", file=sys.stderr, flush=True)


def _left_out(name: str) -> bool:
    reason = available(name)
    if reason:
        print(f"{name}: left out: {reason}", file=sys.stderr)
    return bool(reason)


def turn(options: argparse.Namespace) -> dict[str, Any]:
    """The seconds of the warm-up, and images/s and CPU ms per image of each epoch after it."""
    import torch  # noqa: F401 - whose import is not the loader's cost

    began = time.perf_counter()
    epoch = CONTESTANTS[options.contestant](options)
    epoch(0)
    measured: dict[str, Any] = {"warm_up": time.perf_counter() - began, "rate": [], "cpu": []}
    for number in range(1, options.epochs + 1):
        began, cpu = time.perf_counter(), cpu_seconds()
        images = epoch(number)
        measured["rate"].append(images / (time.perf_counter() - began))
        measured["cpu"].append(1000 * (cpu_seconds() - cpu) / images)
    return measured


def cpu_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def medians(results: Results) -> dict[str, dict[str, float]]:
    return {
        name: {key: statistics.median(value for one in turns for value in one[key]) for key in ("rate", "cpu")}
        for name, turns in results["turns"].items()
    }


def table(results: Results) -> str:
    """In Markdown."""
    rows = medians(results)
    counts = sorted({sum(len(turn["rate"]) for turn in turns) for turns in results["turns"].values()})
    epochs = " or ".join(map(str, counts))
    load = f"{min(results['load']):.0f} to {max(results['load']):.0f}"
    lines = [
        f"{results['images']:,} JPEGs ({results['kilobytes']['original']:.0f} KB on average), {results['workers']} "
        f"workers on {results['cores']} {results['machine']} cores at a load of {load}, batches of {results['batch']}, "
        f"n = {epochs} epochs each; Python {results['python']}, "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + ".",
        "",
        "| median over epochs | images/s | CPU ms/image |",
        "|---|---|---|",
        *(f"| {name} | {one['rate']:.0f} | {one['cpu']:.2f} |" for name, one in rows.items()),
        "",
        "| ratio | measured | goal |",
        "|---|---|---|",
        *(
            f"| {what} | {rows[mine][key] / rows[other][key]:.2f} | {goal} |"
            for what, key, mine, other, goal in RATIOS
            if mine in rows and other in rows
        ),
        "",
        "| written as | KB/image |",
        "|---|---|",
        *(f"| {name} | {size:.0f} |" for name, size in results["kilobytes"].items()),
    ]
    return "\n".join(lines)


def draw(results: Results, path: Path) -> None:
    """CPU time of each contestant, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = medians(results)
    names = list(rows)[::-1]
    colours = [
        "#3b6ea5" if name.startswith("whitebench") else "#999999" if "bare" in name else "#d08c3f" for name in names
    ]
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(names) + 1.2), layout="constrained")
    bars = axes.barh(names, [rows[name]["cpu"] for name in names], color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.axvline(rows["bare decoding"]["cpu"], color="#999999", linewidth=0.8) if "bare decoding" in rows else None
    axes.set_xlabel("CPU ms per image (median; less is better)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
