"""Which tables there are in the papers' layouts: their columns, each a dataset, evaluation and metric."""

from collections.abc import Sequence
from dataclasses import dataclass

from results.leaderboards.table_cells import Column

NO_EPOCHS = "not stated"


@dataclass(frozen=True)
class Slot:
    """A column of values."""

    group: str
    name: str
    dataset: str
    stage: str
    metric: str
    epochs: str | None = None
    """Of pretraining, where that tells columns apart."""
    protocol: str | None = None
    """How our protocol's name ends, likewise."""

    @property
    def column(self) -> Column:
        return Column(self.name, self.group)


@dataclass(frozen=True)
class Layout:
    name: str
    title: str
    slots: tuple[Slot, ...]
    by_epochs: bool = False
    """Whether epochs are columns, and not a part of a row's setting."""

    @property
    def setting(self) -> tuple[str, ...]:
        """Columns that tell rows apart, in addition to the method."""
        return ("architecture", "batch", "views", *(() if self.by_epochs else ("epochs",)))


SMALL = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "stl10": "STL-10", "tiny-imagenet": "Tiny-ImageNet"}
EPOCHS = ("100", "200", "400", "800", "1000", "")
KINDS = {"linear": "linear", "knn": "k-NN"}
BOX = (("AP50", "box_AP50"), ("AP", "box_AP"), ("AP75", "box_AP75"))
MASK = tuple((name, metric.replace("box", "mask")) for name, metric in BOX)


def _detection(dataset: str, parts: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> tuple[Slot, ...]:
    return tuple(Slot(group, name, dataset, "detect", metric) for group, names in parts for name, metric in names)


LAYOUTS = (
    Layout(
        "imagenet",
        "ImageNet-1k: linear probe and k-NN by epochs of pretraining, top-1 in per cent",
        tuple(
            Slot(f"{kind}, epochs", epochs or NO_EPOCHS, "imagenet1k", stage, "top1", epochs)
            for stage, kind in KINDS.items()
            for epochs in EPOCHS
        ),
        by_epochs=True,
    ),
    Layout(
        "small",
        "Small and medium sets: linear probe and 5-NN on frozen features, top-1 in per cent",
        tuple(
            Slot(title, name, dataset, stage, "top1")
            for dataset, title in SMALL.items()
            for stage, name in (("linear", "linear"), ("knn", "5-NN"))
        ),
    ),
    Layout(
        "imagenet100",
        "ImageNet-100: linear probe and 5-NN on frozen features, per cent",
        (
            Slot("", "linear top-1", "imagenet100", "linear", "top1"),
            Slot("", "linear top-5", "imagenet100", "linear", "top5"),
            Slot("", "5-NN top-1", "imagenet100", "knn", "top1"),
        ),
    ),
    *(
        Layout(
            f"semi_{dataset}",
            f"{title}: fine-tuned on a part of the labels, per cent",
            tuple(
                Slot(f"{share} % of labels", metric.replace("top", "top-"), dataset, "semi", metric, None, f"-{share}")
                for share in (1, 10)
                for metric in ("top1", "top5")
            ),
        )
        for dataset, title in (("imagenet1k", "ImageNet-1k"), ("sample", "Built-in sample"))
    ),
    Layout("coco", "COCO: Mask R-CNN, per cent", _detection("coco", (("box", BOX), ("mask", MASK)))),
    Layout("voc", "VOC 07+12: Faster R-CNN, per cent", _detection("voc", (("", BOX),))),
    Layout(
        "sample",
        "Built-in sample: linear probe, k-NN and detection, per cent",
        (
            Slot("digits", "linear", "sample", "linear", "top1"),
            Slot("digits", "k-NN", "sample", "knn", "top1"),
            *_detection("sample-det", (("box", BOX), ("mask", MASK))),
        ),
    ),
)
