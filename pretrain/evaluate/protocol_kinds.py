"""What an evaluation protocol of each kind consists of; the named ones are in `protocols`."""

from typing import Annotated, Literal

from pydantic import Field

from whitebench.config import strict
from whitebench.hashing import added
from whitebench.ranges import (
    NonNegativeFloat,
    PartRange,
    PositiveFloat,
    PositiveInt,
    Share,
    ShareBelowOne,
    Temperature,
)

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
class LinearGrid:
    """Linear probes for all combinations of rates, weight decays and inputs, trained together on the same features.

    The probe that is best on a held-out part of the training images is reported; validation images choose nothing.
    """

    name: str
    source: str
    augment: bool
    """As `Linear.augment`."""
    optimizer: Literal["adam", "sgd"]
    lrs: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    lr_batch: PositiveInt | None
    batch: PositiveInt
    epochs: PositiveInt
    schedule: Literal["cosine", "cosine-by-step"]
    weight_decays: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (0.0,)
    last_blocks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1,)
    """Inputs: pooled outputs of this many of the network's last blocks, side by side; 1: the backbone's output."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of each class's training images on which probes are compared, and not trained."""
    init_std: PositiveFloat | None = None
    interpolation: Interpolation = "bilinear"
    """How images are resized before their centre is cut out, and of the random crops."""
    omitted: tuple[str, ...] = ()
    """What the source has and this suite has not; runs record it as deviations."""
    selection: Literal["last"] = "last"
    """Which epoch is reported."""

    def single(self, lr: float, weight_decay: float) -> Linear:
        """The protocol of one of the probes."""
        return Linear(
            self.name,
            self.source,
            augment=self.augment,
            optimizer=self.optimizer,
            lr=lr,
            lr_batch=self.lr_batch,
            batch=self.batch,
            epochs=self.epochs,
            schedule=self.schedule,
            weight_decay=weight_decay,
            init_std=self.init_std,
            interpolation=self.interpolation,
        )


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
    interpolation: Interpolation = added("bilinear")
    """Of the random crops, and of the resize before a centre crop."""


@strict
class Finetune:
    """Backbone and a linear head are trained on all labels or a part of them, norms in training mode.

    An epoch's incomplete last batch counts. Weights of one dimension decay only with `decay_1d`.
    """

    name: str
    source: str
    optimizer: Literal["sgd", "adamw"]
    """SGD with momentum 0.9; AdamW with betas 0.9 and 0.999."""
    lr: PositiveFloat
    lr_batch: PositiveInt | None
    """The rate is per this many images; None: it is not scaled with the batch."""
    batch: PositiveInt
    epochs: PositiveInt
    schedule: Literal["cosine-by-step", "step"]
    steps: tuple[PositiveInt, ...] = ()
    """Epochs at which `step` multiplies the rate by `gamma`."""
    gamma: Share = 0.1
    warmup_epochs: NonNegativeFloat = 0.0
    """Linear, from 0."""
    final_lr: NonNegativeFloat = 0.0
    """Where cosine ends, of the head; layers below have their share of it."""
    weight_decay: NonNegativeFloat = 0.0
    decay_1d: bool = True
    nesterov: bool = False
    clip: PositiveFloat | None = None
    """Gradients with a larger norm, over all parameters, are scaled down to it."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A layer's rate over that of the layer above it; see `pretrain.evaluate.layer_decay`."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of the Beta distribution of mixup's factor; 0: no mixup. With cutmix, half of the batches have either."""
    cutmix: NonNegativeFloat = 0.0
    """Likewise of cutmix."""
    smoothing: ShareBelowOne = 0.0
    """Of labels: this share of each is spread over all classes."""
    ema: ShareBelowOne | None = None
    """Decay per step of an exponential moving average of weights and buffers, which is what is evaluated."""
    percent: Annotated[float, Field(gt=0, le=100)] = 100
    """Share of the training images whose labels are used."""
    init_std: PositiveFloat | None = None
    """Of the head, as `Linear.init_std`."""
    scale: PartRange = (0.08, 1.0)
    """Of the random resized crops."""
    flip_p: Share = 0.5
    interpolation: Interpolation = "bilinear"
    """Of the random crops, and of the resize before a centre crop."""
    standard_list: bool = True
    """Of a part of ImageNet's labels: whether a subset other than the standard one is a deviation."""
    omitted: tuple[str, ...] = ()
    """What the source has and this suite has not; runs record it as deviations."""
    selection: Literal["last"] = "last"
    """Which epoch is reported; the best one is recorded apart from it."""

    @property
    def base_lr(self) -> float:
        """Of the head."""
        return self.lr * self.batch / self.lr_batch if self.lr_batch else self.lr


@strict
class FewShot:
    """A classifier on the frozen features of a few images of each class."""

    name: str
    source: str
    classifier: Literal["centroid", "logistic"]
    """centroid: the nearest mean of a class, of features less the mean of all and of unit length. logistic:
    multinomial logistic regression without bias, of features less their own mean and of unit length."""
    shots: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 5, 10)
    """Images of each class."""
    draws: PositiveInt = 5
    """Of those images; the mean over them is reported, with an interval."""
    penalty: PositiveFloat = 0.00025
    """Of `logistic`: half of it times the squared weights is added to the sum of losses."""


@strict
class SVM:
    """Linear SVMs, one per class, on frozen features of unit length; squared hinge loss, positives weigh twice."""

    name: str
    source: str
    costs: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """C, chosen for each class by cross-validation on the training images."""
    folds: PositiveInt = 3
    iterations: PositiveInt = 2000


@strict
class Retrieval:
    """Images ranked by the cosine similarity of their frozen features with a query's."""

    name: str
    source: str
    longest: PositiveInt | None = added(None)
    """Images keep their shape, reduced until the longer side has this many pixels. None: squares of the crop's size."""
    boxes: bool = added(True)
    """Whether a query is cut to the box that the ground truth gives it."""
    scales: tuple[PositiveFloat, ...] = added((1.0,))
    """Features are averaged over the image at these scales."""
    unit_scales: bool = added(False)
    """Whether the features of each scale have length 1 before they are averaged."""


@strict
class Robust:
    """Accuracy of a linear probe on shifted images of its classes."""

    name: str
    source: str


Protocol = KNN | Linear | LinearGrid | Semi | Finetune | FewShot | SVM | Retrieval | Robust
