"""What is evaluated, and how: both determine the id of the evaluation's record."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pretrain.architectures import check_sizes
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.hashing import added
from whitebench.ranges import PositiveInt, Seed

if TYPE_CHECKING:
    from pretrain.checkpoint import Backbone
    from pretrain.recipe import Recipe

STAGES = ("linear", "knn", "semi", "finetune", "fewshot", "voc07", "retrieval", "robust")
FEATURES = ("backbone", "embedding", "transformed")


@dataclass(frozen=True)
class Target:
    """What is evaluated, on what."""

    parent: str
    """Id of the pretraining's record, or "sha256:..." of a foreign checkpoint."""
    label: str
    """For run ids, e.g. "intl-s0"."""
    dataset: str
    crop: int
    resize: int
    cell: dict[str, Any]
    epoch: int | None = None
    """Of a backbone that was kept during training; None: the last."""
    encoder: str | None = None
    """Of a checkpoint that holds several: a part of its name; None: the one that its project evaluates."""
    unsafe_pickle: bool = False
    """Whether the checkpoint may run code of whoever wrote it; of no influence on the result."""

    @classmethod
    def of_recipe(cls, recipe: "Recipe", parent: str, dataset: str | None = None, epoch: int | None = None) -> "Target":
        """`dataset` instead of the recipe's."""
        dataset = dataset or recipe.evaluation.dataset or recipe.data.dataset
        cell = {"recipe": recipe.name, "method": recipe.method_name, "seed": recipe.seed, "dataset": dataset}
        return cls(parent, recipe.label, dataset, recipe.evaluation_crop, recipe.evaluation_resize, cell, epoch)

    @classmethod
    def of_backbone(
        cls,
        backbone: "Backbone",
        dataset: str | None,
        crop: int | None,
        resize: int | None,
        file: str = "foreign",
        encoder: str | None = None,
        unsafe_pickle: bool = False,
    ) -> "Target":
        """From the metadata of our own checkpoints; the arguments override it, and foreign checkpoints need them.

        Args:
            file: name of the checkpoint's file, which stands for a foreign one in tables.
        Raises:
            UserError: neither says on which dataset, and with which crop; a crop larger than the resized image.
        """
        metadata = backbone.metadata
        dataset = dataset or metadata.get("eval_dataset") or metadata.get("dataset")
        crop = metadata.get("image_size") if crop is None else crop
        resize = metadata.get("eval_resize") if resize is None else resize
        if dataset is None or crop is None or resize is None:
            raise UserError("the checkpoint does not say what it was trained on: give --dataset, --crop and --resize")
        if not 1 <= crop <= resize:
            raise UserError(
                f"--crop {crop} --resize {resize}: the crop is at least 1 pixel, the resized side not smaller"
            )
        patch = backbone.options.get("patch_size")
        check_sizes(backbone.arch, {"--crop": crop}, patch if isinstance(patch, int) else None)
        parent = metadata.get("id") or f"sha256:{backbone.sha256}"
        recipe = metadata.get("recipe", "foreign")
        file = f"{file} ({encoder})" if encoder else file
        cell = {
            "recipe": metadata.get("recipe", file),
            "method": metadata.get("method", "foreign"),
            "seed": metadata.get("seed", 0),
            "dataset": dataset,
        }
        label = f"{recipe.rpartition('/')[2]}-s{cell['seed']}"
        epoch = metadata.get("kept_epoch")
        return cls(parent, label, dataset, crop, resize, cell, epoch, encoder, unsafe_pickle)


@strict
class Options:
    """How an evaluation is done; all of it but `workers` determines its result (of a `list`, the names in it)."""

    protocol: str
    seed: Seed = 0
    device: str = "cpu"
    threads: PositiveInt = 1
    workers: PositiveInt = 1
    loader: Literal["ffcv", "folder"] = added("ffcv")
    """FFCV's JPEG decoder differs from Pillow's by about one level of 255 on average: enough to change an accuracy."""
    features: Literal["backbone", "embedding", "transformed"] = added("backbone")
    """Input of linear probe and k-NN: the backbone's output, the projector's, or the method's transform of that."""
    list: Path | None = None
    """File that names the labelled images where only a part of the labels is used, one a line; None draws them by
    seed."""
    shots: tuple[PositiveInt, ...] | None = added(None)
    """Images per class of few-shot evaluation, instead of the protocol's."""
    probe: str | None = added(None)
    """Protocol of the linear probe that `robust` evaluates; None: `features`."""
    shift: str | None = added(None)
    """The set of `robust`: a folder of $WHITEBENCH_DATA, or a path."""
    world_size: PositiveInt = added(1)
    """Processes that evaluate together, one per GPU; each has its share of the images. The result is that of one
    process up to rounding."""
