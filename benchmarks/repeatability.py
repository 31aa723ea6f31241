"""Which numbers of a run are equal to the last digit elsewhere, and which to how many digits.

python benchmarks/repeatability.py [RECIPE] [key=value ...] [--out FOLDER]

Pretrains one recipe and seed, with its linear probe and k-NN, in fresh processes: twice as it is, then with other
numbers of OpenMP threads in the environment, and with the kernels that torch, oneDNN and MKL would take on other
processors. That stands in for other machines; an accuracy that is equal here may still differ there.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETUPS: dict[str, dict[str, str]] = {
    "as it is": {},
    "once more": {},
    "OMP_NUM_THREADS=2": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    "MKL_CBWR=COMPATIBLE": {"MKL_CBWR": "COMPATIBLE"},
    "MKL's AVX2 kernels": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "oneDNN's AVX2 kernels": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "torch's AVX2 kernels": {"ATEN_CPU_CAPABILITY": "avx2"},
    "all AVX2 kernels": {
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx2",
    },
}
HEADER = ("set-up", "weights", "weights, largest difference", "loss", "linear top-1", "k-NN top-1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="sample/intl")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--out", type=Path, help="keep the runs here (default: a temporary folder)")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        results = [
            run(options.recipe, options.overrides, out / str(n), setup) for n, setup in enumerate(SETUPS.values())
        ]
    rows = [row(name, result, results[0]) for name, result in zip(SETUPS, results, strict=True)]
    print(f"{options.recipe} {' '.join(options.overrides)} seed=0, n = 1 run each; {results[0]['processor']}")
    for cells in (HEADER, ("---",) * len(HEADER), *rows):
        print(f"| {' | '.join(cells)} |")


def run(recipe: str, overrides: list[str], runs: Path, setup: dict[str, str]) -> dict[str, Any]:
    """The numbers of one pretraining and its evaluations below the folder `runs`."""
    environment = {**os.environ, **setup, "WHITEBENCH_RUNS": str(runs)}

    def python(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, check=True, stdout=sys.stderr)

    python("pretrain", recipe, *overrides, "seed=0")
    [folder] = (runs / "pretrain").iterdir()
    for stage, protocol in (("linear", "features"), ("knn", "cosine-20")):
        python("pretrain.evaluate", stage, "--ckpt", str(folder), "--protocol", protocol)
    records = {path.parents[1].name: json.loads(path.read_bytes()) for path in runs.glob("*/*/run.json")}
    pretraining = records["pretrain"]
    return {
        "processor": pretraining["environment"].get("processor", "processor unknown"),
        "sha256": pretraining["artifacts"]["backbone"]["sha256"],
        "weights": weights(folder / "backbone.safetensors"),
        "loss": pretraining["metrics"]["loss"],
        **{stage: records[stage]["metrics"]["top1"] for stage in ("linear", "knn")},
    }


def weights(path: Path) -> Any:
    """All floating-point tensors of a file as one vector, float64."""
    import torch
    from safetensors.torch import load_file

    tensors = [tensor for tensor in load_file(path).values() if tensor.is_floating_point()]
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def row(name: str, result: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """Cells of one set-up: what is equal to the first one, and to how many digits the rest."""
    distance = float((result["weights"] - first["weights"]).abs().max() / first["weights"].abs().max())
    return [
        name,
        "equal bytes" if result["sha256"] == first["sha256"] else "differ",
        f"{distance:.1e}" if distance else "0",
        f"{result['loss']:.6f} ({digits(result['loss'], first['loss'])})",
        *(f"{result[stage]:.2f}" for stage in ("linear", "knn")),
    ]


def digits(value: float, reference: float) -> str:
    """To how many decimal digits two numbers agree."""
    if value == reference:
        return "equal"
    error = abs(value - reference) / max(abs(reference), sys.float_info.min)
    return f"{max(0, math.floor(-math.log10(error)))} digits" if error < 1 else "0 digits"


if __name__ == "__main__":
    main()
