"""Runs several short evaluations of one backbone; started alone or by torchrun: `evaluations_by_rank.py CKPT`.

States that runs drop at their end are kept, for comparison.
"""

import sys
from pathlib import Path

from pretrain import resume
from pretrain.checkpoint import read_backbone
from pretrain.evaluate import ranks
from pretrain.evaluate.protocols import PROTOCOLS, Finetune, Linear, Semi
from pretrain.evaluate.stage import run
from pretrain.evaluate.target import Options, Target

SEMI = Semi("short", "", 10, 1e-4, 1e-3, batch=30, epochs=2, schedule="cosine", scale=(0.35, 1.0), standard_list=False)
"""Of 43 images: batches of 30 and 13, which two processes divide unevenly. Small rates: rounding errors do not grow."""
LINEAR = Linear("short", "", False, "adam", 1e-2, None, batch=100, epochs=3, schedule="cosine")
AUGMENTED = Linear("short-crops", "", True, "larc", 0.1, None, batch=128, epochs=1, schedule="cosine")
MIXED = Finetune(
    "short",
    "",
    "sgd",
    lr=1e-3,
    lr_batch=None,
    batch=30,
    epochs=2,
    schedule="cosine-by-step",
    layer_decay=0.8,
    mixup=0.8,
    cutmix=1.0,
    smoothing=0.1,
    ema=0.9,
    percent=10,
    standard_list=False,
)
EVALUATIONS = (
    ("knn", "cosine-20"),
    ("linear", "short"),
    ("linear", "short-crops"),
    ("semi", "short"),
    ("finetune", "short"),
)


def main() -> None:
    for stage, protocol in (("linear", LINEAR), ("linear", AUGMENTED), ("semi", SEMI), ("finetune", MIXED)):
        PROTOCOLS[stage].append(protocol)
    ranks.SAVE_EVERY_S = 0.0
    resume.forget = lambda folder: None
    ckpt = Path(sys.argv[1])
    target = Target.of_backbone(read_backbone(ckpt), None, None, None)
    processes = ranks.processes_started()
    with ranks.started_world(processes, "cpu") as world:
        for stage, name in EVALUATIONS:
            run(stage, ckpt, target, Options(name, world_size=processes), world=world)


if __name__ == "__main__":
    main()
