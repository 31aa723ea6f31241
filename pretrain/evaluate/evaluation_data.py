"""What the stages of evaluation are about: a dataset of this suite, or a folder of images in another layout."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pretrain.evaluate.protocol_kinds import FewShot, Linear, LinearGrid, Protocol
from pretrain.evaluate.target import Options, Target
from whitebench.errors import UserError

if TYPE_CHECKING:
    from pretrain.data.betons.manifest import Manifest


@dataclass(frozen=True)
class EvaluationData:
    """What a record says of the images."""

    name: str
    """The dataset's, in tables."""
    content_hash: str
    summary: dict[str, Any]


def evaluation_data(stage: str, protocol: Protocol, target: Target, options: Options) -> EvaluationData:
    """The images of an evaluation, checked.

    Raises:
        UserError: they do not exist, or lack what the protocol needs.
    """
    if stage == "voc07":
        from pretrain.evaluate.voc07 import read_labels

        voc = read_labels(target.dataset)
        return EvaluationData(target.dataset, voc.content_hash, voc.summary)
    if stage == "retrieval":
        from pretrain.evaluate.retrieval import read_set

        images = read_set(target.dataset)
        return EvaluationData(target.dataset, images.content_hash, images.summary)
    from pretrain.data.betons.manifest import read_manifest

    manifest = read_manifest(target.dataset)
    _check_dataset(manifest, protocol, options)
    if isinstance(protocol, FewShot):
        from pretrain.evaluate.fewshot import chosen, images_by_class

        images_by_class(manifest, chosen(protocol, options.shots))
    if stage == "robust":
        from pretrain.evaluate.robust import read_set as read_shifted

        if options.shift is None:
            raise UserError(
                "robust: name a set of shifted images, e.g. shift=imagenet-r (--shifts on the command line)"
            )
        shifted = read_shifted(options.shift, manifest.classes)
        return EvaluationData(options.shift, shifted.content_hash, shifted.summary)
    return EvaluationData(target.dataset, manifest.content_hash, manifest.summary)


def _check_dataset(manifest: "Manifest", protocol: Protocol, options: Options) -> None:
    for split in ("train", "val"):
        manifest.split(split)
    if not manifest.classes:
        raise UserError(f"dataset '{manifest.dataset}' has no labels; evaluate on another: --dataset NAME")
    train = manifest.split("train")
    count = train.count - train.unlabelled
    if count < options.world_size:
        raise UserError(
            f"dataset '{manifest.dataset}' has {count} labelled training images for world_size={options.world_size}; "
            "use fewer processes"
        )
    if isinstance(protocol, Linear | LinearGrid) and protocol.augment and protocol.batch > count:
        raise UserError(
            f"protocol '{protocol.name}' trains on batches of {protocol.batch} images, but dataset "
            f"'{manifest.dataset}' has {count}; use a protocol for small sets, e.g. features"
        )
