"""What encoders trained on the sample encode: the digit, or the background that both views of an image share.

python benchmarks/background.py RUN [RUN ...]    (folders of pretrainings: runs/pretrain/*)

Of the validation images' backbone features, by cosine: how often an image's nearest neighbour is of its class; how
far its background (mean colour of the picture's edge) is from its neighbour's, over the mean distance of any two; and
the effective rank. A neighbour distance near 1 is chance, near 0 means that the background decides.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoint import read_backbone
from pretrain.data.betons.manifest import read_manifest
from pretrain.data.loaders.build import evaluation_batches
from pretrain.diagnostics.measures import effective_rank
from pretrain.evaluate.features import collect, load_backbone, normalise_for
from pretrain.losses.similarity import unit_rows
from whitebench.errors import run_command

EDGE = 1 / 8
"""Of the side: what counts as the picture's edge."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a pretraining's folder")
    parser.add_argument("--dataset", default="sample", help="default: %(default)s")
    options = parser.parse_args()
    print("| pretraining | neighbour of the class | neighbour's background, of chance | effective rank |")
    print("|---|---|---|---|")
    for run in options.runs:
        same, distance, rank = measure(run, options.dataset)
        print(f"| {run.name} | {same:.1%} | {distance:.2f} | {rank:.1f} |", flush=True)


@torch.no_grad()
def measure(run: Path, dataset: str) -> tuple[float, float, float]:
    backbone = read_backbone(run)
    network, normalise = load_backbone(backbone).eval(), normalise_for(backbone)
    size = int(backbone.metadata["image_size"])

    def encode(images: Tensor) -> Tensor:
        features: Tensor = network(normalise(images))
        return torch.cat([features, edge_colour(images)], dim=1)

    columns, label = collect(encode, evaluation_batches(read_manifest(dataset), "val", size, size, batch=64))
    features, background = columns[:, :-3], columns[:, -3:]
    likeness = unit_rows(features) @ unit_rows(features).mT
    neighbour = likeness.fill_diagonal_(-torch.inf).argmax(dim=1)
    apart = (background - background[neighbour]).norm(dim=1).mean() / torch.pdist(background).mean()
    rank = effective_rank(torch.linalg.eigvalsh(features.double().T.cov()).clamp_min(0))
    return float((label[neighbour] == label).float().mean()), float(apart), rank


def edge_colour(images: Tensor) -> Tensor:
    """uint8 [B, 3, S, S] -> float32 [B, 3], the mean over a frame of EDGE of the side."""
    width = max(1, round(EDGE * images.shape[-1]))
    frame = torch.ones(images.shape[-2:], dtype=torch.bool)
    frame[width:-width, width:-width] = False
    return images[..., frame].float().mean(dim=-1)


if __name__ == "__main__":
    run_command(main)
