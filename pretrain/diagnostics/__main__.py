"""The command `python -m pretrain.diagnostics RUN [RUN ...] --out spectra.png`."""

import argparse
from pathlib import Path

from whitebench.errors import UserError, run_command


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.diagnostics",
        description="Draw how the spectra of a pretraining's outputs develop: eigenvalues at each probe, effective "
        "rank, alignment and uniformity over epochs. Collapse shows as a spectrum that falls off early.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of pretrainings (runs/pretrain/<id>)")
    parser.add_argument(
        "--out", type=Path, default=Path("spectra.png"), help="image file to write (default: spectra.png)"
    )
    arguments = parser.parse_args()
    from pretrain.diagnostics.drawing import draw
    from pretrain.diagnostics.spectrum_probe import read_spectra
    from whitebench.files import SPECTRA

    spectra = {}
    for run in arguments.runs:
        spectra[run.name] = read_spectra(run)
        if not spectra[run.name]:
            raise UserError(f"{run}: no {SPECTRA}; give the folder of a pretraining (monitor.spectra_every)")
    draw(spectra, arguments.out)
    for name, lines in spectra.items():
        last = lines[-1]
        ranks = [
            f"{part} {last[part]['effective_rank']:.1f} of {len(last[part]['eigenvalues'])}"
            for part in ("backbone", "embedding", "transformed")
            if last[part] and "effective_rank" in last[part]
        ]
        print(f"{name}: epoch {last['epoch']}, effective rank: {', '.join(ranks)}")
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    run_command(main)
