"""The evaluation protocols by name, with their settings and where those come from."""

from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from whitebench.config import strict
from whitebench.errors import UserError, nearest
from whitebench.hashing import added
from whitebench.ranges import NonNegativeFloat, PartRange, PositiveFloat, PositiveInt, Share, Temperature

Interpolation = Literal["bilinear", "bicubic"]


@strict
class KNN:
    name: str
    source: str
    neighbours: PositiveInt
    distance: Literal["cosine", "euclidean"]
    temperature: Temperature | None = None
    """Votes weigh exp(cosine / temperature); None is one neighbour one vote, a tie going to the smallest label."""
    interpolation: Interpolation = added("bilinear")
    """How images are resized before their centre is cut out."""


@strict
class Linear:
    name: str
    source: str
    augment: bool
    """False: features of the centre crop, computed once. True: of random resized crops and flips, new each epoch."""
    optimizer: Literal["adam", "sgd", "larc"]
    lr: PositiveFloat
    lr_batch: PositiveInt | None
    """The rate is per this many images; None: it is not scaled with the batch."""
    batch: PositiveInt
    epochs: PositiveInt
    schedule: Literal["cosine", "cosine-by-step", "step", "exponential"]
    """A new rate every epoch, with `cosine-by-step` every step."""
    steps: tuple[PositiveInt, ...] = ()
    """Epochs at which `step` divides the rate by 10."""
    final_lr: NonNegativeFloat = 0.0
    """Where `exponential` ends."""
    weight_decay: NonNegativeFloat = 0.0
    init_std: PositiveFloat | None = None
    """Weights from N(0, std), zero bias; None is torch's default for a linear layer."""
    selection: Literal["last"] = "last"
    """Which epoch is reported. Probes that are evaluated every epoch also record the best one, apart from it."""
    interpolation: Interpolation = added("bilinear")
    """How images are resized before their centre is cut out; random crops are bilinear."""

    @property
    def base_lr(self) -> float:
        return self.lr * self.batch / self.lr_batch if self.lr_batch else self.lr


@strict
class Semi:
    """Backbone and a linear head are trained on a part of the labels, by SGD with momentum 0.9, norms in training mode.

    An epoch's incomplete last batch counts, as in the sources.
    """

    name: str
    source: str
    percent: Annotated[float, Field(gt=0, le=100)]
    """Share of the training images whose labels are used."""
    lr_backbone: NonNegativeFloat
    lr_head: NonNegativeFloat
    batch: PositiveInt
    epochs: PositiveInt
    schedule: Literal["constant", "cosine", "step"]
    """By epoch; cosine ends at 0."""
    steps: tuple[PositiveInt, ...] = ()
    """Epochs at which `step` multiplies both rates by `gamma`."""
    gamma: Share = 0.1
    weight_decay: NonNegativeFloat = 0.0
    init_std: PositiveFloat | None = 0.01
    """Of the head, as `Linear.init_std`."""
    scale: PartRange = (0.08, 1.0)
    """Of the random resized crops, which are bilinear."""
    flip_p: Share = 0.5
    standard_list: bool = True
    """Whether its source takes the standard list of ImageNet's images: then a drawn subset deviates from it."""
    selection: Literal["last"] = "last"
    """Which epoch is reported; the best one is recorded apart from it."""


Protocol = KNN | Linear | Semi

_in_steps = partial(
    Linear,
    augment=True,
    optimizer="sgd",
    lr_batch=None,
    batch=256,
    epochs=100,
    schedule="step",
    steps=(60, 80),
    init_std=0.01,
)
"""MoCo's linear protocol, which others took over with rates of their own."""

_in_cosine = partial(
    Linear, augment=True, optimizer="sgd", lr_batch=None, batch=256, epochs=100, schedule="cosine", init_std=0.01
)
"""Barlow Twins' likewise."""

_larc = partial(Linear, augment=True, optimizer="larc", lr=0.1, lr_batch=256, schedule="cosine", init_std=0.01)
"""SimSiam's, from which CW-RGP's comes."""


def _solo(lr: float, methods: str) -> Linear:
    source = f"vturrisi/solo-learn@9187ea3: scripts/linear/imagenet-100 of {methods}"
    return _in_steps(f"solo-{lr:g}", source, lr=lr, init_std=None)


_finetune = partial(Semi, batch=256, epochs=20)
_intl_finetune = partial(_finetune, lr_head=0.2, schedule="constant")
"""Constant: the scripts leave INTL's schedule at its default, which divides the rates at epochs 60 and 80 only."""
_swav_finetune = partial(
    _finetune,
    source="facebookresearch/swav@06b1b7c: eval_semisup.py and README.md, 8 GPUs x 32 images with synchronised norms",
    schedule="step",
    steps=(12, 16),
    gamma=0.2,
    init_std=None,
)
_INTL, _BARLOW, _VICREG = (
    "winci-ai/INTL@0aa69af: evaluate.py and scripts",
    "facebookresearch/barlowtwins@8e8d284: evaluate.py and README.md",
    "facebookresearch/vicreg@4e12602: evaluate.py and README.md",
)

PROTOCOLS: dict[str, list[KNN] | list[Linear] | list[Semi]] = {
    "knn": [
        KNN("cosine-20", "this suite's default for its sample and for online monitoring", 20, "cosine"),
        KNN("euclidean-5", "winci-ai/CW-RGP@5bbf6ed, winci-ai/INTL@0aa69af: eval/knn.py", 5, "euclidean"),
        KNN("dino-20", "facebookresearch/dino@7c446df: eval_knn.py", 20, "cosine", 0.07, "bicubic"),
        KNN("dino-10", "facebookresearch/dino@7c446df: eval_knn.py", 10, "cosine", 0.07, "bicubic"),
        KNN("dino-100", "facebookresearch/dino@7c446df: eval_knn.py", 100, "cosine", 0.07, "bicubic"),
        KNN("dino-200", "facebookresearch/dino@7c446df: eval_knn.py", 200, "cosine", 0.07, "bicubic"),
        KNN("lightly-200", "lightly-ai/lightly@e8d317f: benchmarks/imagenet", 200, "cosine", 0.1),
    ],
    "linear": [
        Linear(
            "features",
            "small sets of htdt/self-supervised@d9662c8, CW-RGP@5bbf6ed, INTL@0aa69af: eval/sgd.py",
            augment=False,
            optimizer="adam",
            lr=1e-2,
            lr_batch=None,
            batch=1000,
            epochs=500,
            schedule="exponential",
            final_lr=1e-6,
            weight_decay=5e-6,
        ),
        Linear(
            "sample",
            "this suite's own for its sample: as `features`, in batches that a set of 1,437 images makes eleven of",
            augment=False,
            optimizer="adam",
            lr=1e-2,
            lr_batch=None,
            batch=128,
            epochs=500,
            schedule="exponential",
            final_lr=1e-6,
            weight_decay=5e-6,
        ),
        _larc(
            "cwrgp-imagenet",
            "winci-ai/CW-RGP@5bbf6ed: ImageNet/lincls.py and scripts (which keep the best epoch)",
            batch=1024,
            epochs=100,
        ),
        _in_steps("intl-imagenet", "winci-ai/INTL@0aa69af: evaluate.py and scripts, multi-crop runs", lr=0.4),
        _in_steps(
            "intl-2view", "winci-ai/INTL@0aa69af: evaluate.py and scripts, two-view and ImageNet-100 runs", lr=0.2
        ),
        _in_steps("moco", "facebookresearch/moco@f736491: main_lincls.py", lr=30.0),
        _in_steps("pcl", "salesforce/PCL@964da1f: eval_cls_imagenet.py and README.md", lr=5.0),
        _larc("simsiam", "facebookresearch/simsiam@a7bc177: main_lincls.py and README.md", batch=4096, epochs=90),
        _in_cosine("barlow", _BARLOW, lr=0.3, weight_decay=1e-6),
        _in_cosine("vicreg", _VICREG, lr=0.02, weight_decay=1e-6),
        _in_cosine(
            "swav",
            "facebookresearch/swav@06b1b7c: eval_linear.py and README.md, 8 GPUs x 32 images",
            lr=0.3,
            weight_decay=1e-6,
        ),
        _in_cosine(
            "dino",
            "facebookresearch/dino@7c446df: eval_linear.py, its defaults on 8 GPUs x 128 images (it recommends to tune "
            "the rate for each checkpoint; that of its ResNet-50 is not stated)",
            lr=0.001,
            lr_batch=256,
            batch=1024,
            interpolation="bicubic",
        ),
        Linear(
            "lightly",
            "lightly-ai/lightly@e8d317f: benchmarks/imagenet/resnet50/linear_eval.py, on its docs' 2 GPUs x 128 images",
            augment=True,
            optimizer="sgd",
            lr=0.1,
            lr_batch=256,
            batch=256,
            epochs=90,
            schedule="cosine-by-step",
        ),
        _solo(0.1, "barlow"),
        _solo(0.15, "deepclusterv2, swav"),
        _solo(0.3, "byol, dino, mocov3, nnclr, vibcreg, vicreg"),
        _solo(1.0, "simclr"),
        _solo(3.0, "mocov2plus, ressl"),
        _solo(30.0, "simsiam"),
    ],
    "semi": [
        Semi(
            "sample-10",
            "this suite's own, sized for its sample",
            percent=10,
            lr_backbone=0.01,
            lr_head=0.1,
            batch=32,
            epochs=20,
            schedule="cosine",
            scale=(0.35, 1.0),
            flip_p=0.0,
            standard_list=False,
        ),
        _intl_finetune("intl-1", f"{_INTL}, multi-crop runs", percent=1, lr_backbone=0.004),
        _intl_finetune("intl-10", f"{_INTL}, multi-crop runs", percent=10, lr_backbone=0.004),
        _intl_finetune("intl-2view-1", f"{_INTL}, two views", percent=1, lr_backbone=0.006),
        _intl_finetune("intl-2view-10", f"{_INTL}, two views", percent=10, lr_backbone=0.006),
        _finetune("barlow-1", _BARLOW, percent=1, lr_backbone=0.005, lr_head=0.5, schedule="cosine"),
        _finetune("vicreg-1", _VICREG, percent=1, lr_backbone=0.03, lr_head=0.08, schedule="cosine"),
        _finetune("vicreg-10", _VICREG, percent=10, lr_backbone=0.01, lr_head=0.1, schedule="cosine"),
        _swav_finetune("swav-1", percent=1, lr_backbone=0.02, lr_head=5.0),
        _swav_finetune("swav-10", percent=10, lr_backbone=0.01, lr_head=0.2),
    ],
}


def find_protocol(stage: str, name: str) -> Protocol:
    """The protocol of that name for the stage "linear", "knn" or "semi"; `UserError` names the nearest if none is."""
    protocols = {protocol.name: protocol for protocol in PROTOCOLS[stage]}
    if name not in protocols:
        raise UserError(f"unknown {stage} protocol '{name}'{nearest(name, protocols)}")
    return protocols[name]


def describe(stage: str) -> str:
    """The stage's protocols, a line each, for --help."""
    return "\n".join(f"  {protocol.name:16} {protocol.source}" for protocol in PROTOCOLS[stage])
