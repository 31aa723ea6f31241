"""Runs several short evaluations of one backbone; started alone or by torchrun: `evaluations_by_rank.py CKPT`.

States that runs drop at their end are kept, for comparison.
"""

import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain import resume
from pretrain.checkpoint import read_backbone
from pretrain.evaluate import finetune, ranks
from pretrain.evaluate.named_sets import prepare_datasets
from pretrain.evaluate.protocol_kinds import Finetune, Linear, LinearGrid, Semi
from pretrain.evaluate.protocols import PROTOCOLS
from pretrain.evaluate.stage import run
from pretrain.evaluate.target import Options, Target

SEMI = Semi("short", "", 100, 1e-3, 1e-2, batch=9, epochs=2, schedule="cosine", standard_list=False)
"""Of 24 images: batches of 9, 9 and 6, which two processes divide unevenly."""
LINEAR = Linear("short", "", False, "adam", 1e-2, None, batch=10, epochs=3, schedule="cosine")
CROPS = Linear("short-crops", "", True, "larc", 0.1, None, batch=12, epochs=2, schedule="cosine")
GRID = LinearGrid("short-grid", "", False, "sgd", (0.01, 0.1), None, 10, 3, "cosine", (0.0, 1e-3), (1, 2), 0.3)
MIXED = Finetune(
    "short",
    "",
    "sgd",
    lr=1e-3,
    lr_batch=None,
    batch=9,
    epochs=2,
    schedule="cosine-by-step",
    layer_decay=0.8,
    mixup=0.8,
    cutmix=1.0,
    smoothing=0.1,
    ema=0.9,
)
SHORT = (("linear", LINEAR), ("linear", CROPS), ("linear", GRID), ("semi", SEMI), ("finetune", MIXED))
NARROW = finetune.Classifier
EVALUATIONS = (
    ("knn", "cosine-20"),
    ("linear", "short"),
    ("linear", "short-crops"),
    ("linear", "short-grid"),
    ("semi", "short"),
    ("finetune", "short"),
    ("fewshot", "centroid"),
    ("retrieval", "square"),
    ("robust", "shifted"),
)


class WideClassifier(finetune.Classifier):
    """In float64, where two processes differ from one by the order of sums alone."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.double()

    def normalised(self, images: Tensor) -> Tensor:
        return super().normalised(images).double()


def main() -> None:
    for stage, protocol in SHORT:
        PROTOCOLS[stage].append(protocol)
    ranks.SAVE_EVERY_S = 0.0
    resume.forget = lambda folder: None
    ckpt = Path(sys.argv[1])
    backbone, processes = read_backbone(ckpt), ranks.processes_started()
    with ranks.started_world(processes, "cpu") as world:
        prepare_datasets(["shapes"], world)
        for stage, name in EVALUATIONS:
            target = Target.of_backbone(backbone, "pictures" if stage == "retrieval" else "shapes", None, None)
            own: dict[str, Any] = {"fewshot": {"shots": (1, 3)}, "robust": {"shift": "pictures", "probe": "short"}}
            setattr(finetune, "Classifier", WideClassifier if stage == "finetune" else NARROW)  # noqa: B010
            options = Options(name, world_size=processes, **own.get(stage, {}))
            run(stage, ckpt, target, options, world=world)


if __name__ == "__main__":
    main()
