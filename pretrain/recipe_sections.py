"""The sections of a recipe: every key with its type, range and default."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pretrain.architectures import canonical_backbone
from whitebench.config import strict
from whitebench.hashing import added
from whitebench.ranges import (
    Hue,
    Line,
    NonNegativeFloat,
    NonNegativeInt,
    PartAbove,
    PartRange,
    PositiveFloat,
    PositiveInt,
    RatioRange,
    Share,
    ShareBelowOne,
    SigmaRange,
)


@strict
class Paper:
    """Where a recipe comes from, and what its source reports."""

    title: str = ""
    """Of the paper."""
    source: str = ""
    """Where the settings are published."""
    reported: dict[str, float] = field(default_factory=dict)
    """Metric to the published value, in per cent as papers give it."""
    tolerance: dict[str, float] = field(default_factory=dict)
    """Metric to the distance within which we call it reproduced."""
    reconstruction: bool = False
    """True where the paper's exact method or settings are not known: tables then say so."""


@strict
class Views:
    """A group of views that are cut in the same way."""

    size: Annotated[int, Field(ge=1, le=8192)]
    """Side of the square crop, pixels."""
    count: Annotated[int, Field(ge=1, le=256)] = 1
    """Views of this group per image."""
    scale: PartRange = (0.2, 1.0)
    """Share of the image's area that a crop covers, drawn uniformly."""
    ratio: RatioRange = (3 / 4, 4 / 3)
    """Width over height of the crop before it is made square, drawn log-uniformly."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    flip_p: Share = 0.5
    """Probability of a horizontal flip."""


@strict
class Colour:
    """Photometric augmentation, in the order jitter, mix, gray, blur, solarize, invert.

    A probability is one number for all views, or a list of one per view.
    """

    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Hue] = (
        0.4,
        0.4,
        0.4,
        0.1,
    )
    """Strength of brightness, contrast, saturation, hue, as torchvision's ColorJitter; applied in random order."""
    jitter_p: Share | list[Share] = 0.0
    """Probability of all four. Other `_p` keys are probabilities of their operations."""
    mix_p: Share | list[Share] = 0.0
    """Each output channel becomes a random convex mixture of the input's (for the sample; in no paper)."""
    gray_p: Share | list[Share] = 0.0
    blur_p: Share | list[Share] = 0.0
    blur_sigma: SigmaRange = (0.1, 2.0)
    """Pixels."""
    solarize_p: Share | list[Share] = 0.0
    solarize_threshold: Annotated[int, Field(ge=0, le=256)] = 128
    """Values from this one on are inverted; 256: none."""
    invert_p: Share | list[Share] = 0.0
    before_crop: bool = added(False)
    """All of it on the whole image, before a view is cut from it: then contrast turns about the image's mean, not the
    crop's. Needs loader=device, or placement=loader."""


Placement = Literal["loader", "accelerator"]
"""Where colour augmentation runs."""


@strict
class Data:
    dataset: Annotated[Line, Field(min_length=1)]
    """A folder of $WHITEBENCH_DATA, written by `python -m pretrain.data`."""
    views: Annotated[tuple[Views, ...], Field(min_length=1)]
    """Groups of views, each cut in one way; `data.views.0.size` overrides a key of the first group."""
    colour: Colour = field(default_factory=Colour)
    loader: Literal["ffcv", "folder", "device"] = "ffcv"
    """ffcv reads a beton, folder an ImageFolder; device keeps a small dataset on the accelerator."""
    placement: Literal["auto", "loader", "accelerator"] = "auto"
    """Where photometric augmentation runs. auto: the accelerator for `device`; for `ffcv` and `folder` what
    `python -m pretrain.data measure` found faster for these views, or else the loader."""
    shuffle_window: PositiveInt | None = added(None)
    """Images are shuffled within windows of this many, for a beton (FFCV's file format) larger than memory; null: among
    all."""


@strict
class Network:
    backbone: Annotated[str, AfterValidator(canonical_backbone)] = "resnet50"
    """resnet18, resnet34, resnet50 or resnet101 (torchvision's); resnet18-32 or resnet18-16, a ResNet-18 with half or a
    quarter of the channels; vit_tiny, vit_small, vit_base or vit_large, with _patch16 or _patch8 (without: 16);
    timm:NAME for any network of timm, e.g. timm:convnext_tiny."""
    stem: Literal["imagenet", "cifar", "cifar-pad2", "small"] = "imagenet"
    """imagenet: 7x7 stride 2 and max-pooling; cifar: 3x3, no pooling; cifar-pad2: the same, padded by 2 (INTL's);
    small: 3x3 and max-pooling (STL-10, Tiny-ImageNet)."""
    projector: tuple[PositiveInt, ...] = ()
    """Widths of its linear layers; batch norm and ReLU between them. Empty: no projector."""
    projector_bias: bool = True
    """Of the hidden linear layers."""
    projector_last_norm: Literal["none", "affine", "plain"] = "none"
    """Batch norm after the last layer: none, with or without its affine part."""
    projector_norm: bool = added(True)
    """Whether the hidden layers have batch norm (MoCo's and DINO's have not)."""
    projector_activation: Literal["relu", "gelu"] = added("relu")
    whitening: Literal["none", "zca", "iternorm"] = added("none")
    """A layer that whitens over the batch, for any method (`pretrain.whitening_layer`; arXiv 2408.07519)."""
    whitening_at: Literal["projector", "encoder"] = added("projector")
    """The end of the projector, or of the encoder: between the backbone, which is evaluated and exported without it,
    and the projector."""
    whitening_groups: PositiveInt = added(1)
    """Groups of channels that are whitened by themselves."""
    whitening_iterations: PositiveInt = added(5)
    """T, of iternorm."""
    whitening_eps: NonNegativeFloat = added(1e-5)
    """Added to the covariance's diagonal."""
    projector_last_bias: bool = added(True)
    """Of the last linear layer (Barlow Twins' and VICReg's have none, SimSiam's is frozen at zero)."""
    stem_init: Literal["default", "kaiming"] = "default"
    """Of a 3x3 stem. default: PyTorch's for a new convolution, standard deviation 0.11, as the official codes of small
    sets have it; kaiming: normal by fan-out, 0.058, as a ResNet's other convolutions."""
    zero_init_residual: bool = False
    sync_bn: bool = True
    """With several processes: batch norm over all of them."""
    projector_input: PositiveInt | None = added(None)
    """Width of a linear layer between the backbone and the projector, without norm and activation (LeJEPA's); null: no
    such layer."""
    pooling: Literal["cls", "mean"] | None = added(None)
    """What a vision transformer's features are: its class token, or the mean of its patches' tokens, both after the
    final norm; null: as timm has it for this network."""
    drop_path: ShareBelowOne = added(0.0)
    """Probability that the last block of a network of timm is skipped; it rises linearly from 0 (stochastic depth)."""
    heads: PositiveInt | None = added(None)
    """Attention heads of a vision transformer; null: timm's (MoCo v3's ViT-S has 12, not 6)."""
    positions: Literal["learned", "sincos"] = added("learned")
    """Position embeddings of a vision transformer: learned, or fixed sines and cosines (MoCo v3, MAE). They are made
    for the largest view, and resized (bicubic, anti-aliased) for the others."""
    frozen_patch_embedding: bool = added(False)
    """Whether a vision transformer's patch embedding stays at its random start (MoCo v3)."""
    vit_init: Literal["timm", "moco", "mae"] = added("timm")
    """Initial weights of a vision transformer: timm's (normal, 0.02), MoCo v3's or MAE's (Xavier-uniform)."""


@strict
class Optimizer:
    name: Literal["sgd", "adam", "adamw", "lars", "larc", "lars-clipped", "lars-unclipped"] = "sgd"
    """larc: SGD with the rates of apex's LARC without clipping; lars-clipped and lars-unclipped: solo-learn's LARS; see
    `pretrain.optim`."""
    lr: PositiveFloat = 0.05
    """Peak learning rate, per `lr_batch` images of the global batch."""
    lr_batch: PositiveInt | None = 256
    """null: the rate is not scaled with the batch."""
    momentum: ShareBelowOne = 0.9
    """Of adam and adamw, beta_1."""
    nesterov: bool = added(False)
    """Nesterov's form of momentum: the update is the gradient plus momentum times the new velocity. Not of adam and
    adamw."""
    trust: PositiveFloat | None = added(None)
    """Of lars, larc and solo-learn's: the factor of |weight| / |update|; null: 0.001, and 0.02 for solo-learn's."""
    weight_decay: NonNegativeFloat = 1e-4
    decay_1d: bool = True
    """Whether biases and norms (parameters of one dimension) decay, too."""
    lr_1d: NonNegativeFloat | None = added(None)
    """Learning rate of these, like `lr`; null: the same rate."""
    final_weight_decay: NonNegativeFloat | None = added(None)
    """Where a cosine from `weight_decay`, updated every step, ends; null: weight decay is constant."""
    clip: PositiveFloat | None = added(None)
    """Gradients of a larger norm are scaled down to it before each update; null: none are."""
    clip_norm: Literal["tensor", "global"] = added("tensor")
    """Whose norm: each tensor's own (DINO), or that of all gradients together."""
    beta_2: ShareBelowOne = added(0.999)
    """Of adam and adamw (MAE: 0.95)."""
    layer_decay: PartAbove | None = added(None)
    """Of a backbone of timm: the rate of each layer is this share of the next one's, up to the final norm and the
    projector, which have the full rate (BEiT, MAE's fine-tuning: 0.65 to 0.75); null: all layers have the same rate."""


@strict
class Schedule:
    epochs: NonNegativeInt = 100
    """0 only for methods that are not trained (`random`)."""
    warmup_epochs: NonNegativeFloat = 0.0
    warmup_iterations: NonNegativeInt = 0
    """Linear warm-up from 0, in epochs or iterations (one of them)."""
    warmup_from: Share = added(0.0)
    """Where warm-up starts, as a share of the base rate."""
    counting: Literal["from-one", "from-zero", "inclusive"] = added("from-one")
    """How steps t = 0, 1, ... of W warm-up steps and T in all are counted; a recipe that does not say takes its
    method's official one. from-one: warm-up (t + 1) / W, cosine of (t + 1 - W) / (T - W), the base rate at t = W - 1
    (INTL); from-zero: t / W and (t - W) / (T - W), the base rate at t = W (Barlow Twins, VICReg); inclusive: warm-up
    t / (W - 1), cosine as from-zero, the base rate at both (SwAV, DINO)."""
    kind: Literal["cosine", "cosine-by-epoch", "step", "constant"] = "cosine"
    """cosine: updated every step. cosine-by-epoch and step change at the start of epochs only: a warm-up that ends
    within an epoch is followed by the base rate to that epoch's end (CW-RGP)."""
    final_lr: Share = 0.0
    """Where cosine ends, as a share of the base rate."""
    steps: tuple[int, ...] = ()
    """Epochs at which `step` multiplies the rate by `gamma`; negative ones count from the end."""
    gamma: Share = 0.1


@strict
class Monitor:
    """What is monitored during training. It does not change the weights and is not part of a run's identity."""

    knn_every: NonNegativeInt = 0
    """Epochs between online k-NN evaluations (20 neighbours, cosine); 0 means none."""
    knn_images: PositiveInt = 5000
    """At most this many training images serve as neighbours, evenly chosen."""
    spectra_every: NonNegativeInt | None = None
    """Epochs between probes of the outputs' spectra (`pretrain.diagnostics`); null: about ten in all; 0: none."""


@strict
class Evaluation:
    """How images are prepared for evaluation. Not part of the pretraining's identity, but of every evaluation's."""

    dataset: Line | None = None
    """Where labels are, if not in `data.dataset`, e.g. STL-10's labelled images; null: the same."""
    crop: PositiveInt | None = None
    """Side of the centre crop, pixels; null: the first view's size."""
    resize: PositiveInt | None = None
    """Short side before it; null: the crop for crops of up to 64 pixels, else 8/7 of it (256 for 224)."""
    linear: str = "features"
    """Protocol of the linear probe: a name of `pretrain.evaluate.protocols`."""
    knn: str = "cosine-20"
    """Protocol of the k-NN evaluation: a name of `pretrain.evaluate.protocols`."""
    semi: str = "sample-10"
    """Protocol of the semi-supervised evaluation: a name of `pretrain.evaluate.protocols`."""
    finetune: str = "sample"
    """Protocol of the fine-tuning: a name of `pretrain.evaluate.protocols`."""
    fewshot: str = "centroid"
    """Protocol of the few-shot classification: a name of `pretrain.evaluate.protocols`."""
    voc07: str = "svm"
    """Protocol of VOC 2007's multi-label classification: a name of `pretrain.evaluate.protocols`."""
    retrieval: str = "square"
    """Protocol of retrieval: a name of `pretrain.evaluate.protocols`."""
    robust: str = "shifted"
    """Protocol of robustness: a name of `pretrain.evaluate.protocols`."""


@strict
class Machine:
    """How this machine runs the training. Changes no bit of the result and is not part of a run's identity."""

    workers: PositiveInt = 1
    """Threads (ffcv) or processes (folder) that prepare views, per process."""
    processes: PositiveInt | None = None
    """Processes that train; null: `world_size`. Another number continues an unfinished run on fewer or more GPUs, where
    its batch statistics do not depend on that; the record says so."""
    checkpoint_minutes: NonNegativeFloat = 10.0
    """A checkpoint is written this often, and at the end of each epoch where the last is at least a minute old."""
    keep_every: PositiveInt | None = None
    """Epochs between backbones that are kept during training, for evaluations of it; null: only the last is. A sweep
    evaluates them as they appear."""
