"""The evaluation protocols by name, with their settings and where those come from."""

from functools import partial

from pretrain.evaluate.protocol_kinds import (
    KNN,
    SVM,
    FewShot,
    Finetune,
    Linear,
    LinearGrid,
    Protocol,
    Retrieval,
    Robust,
    Semi,
)
from whitebench.errors import UserError, nearest

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

_sample_finetune = partial(
    Finetune,
    source="this suite's own, sized for its sample",
    optimizer="sgd",
    lr=0.05,
    lr_batch=None,
    batch=64,
    epochs=20,
    schedule="cosine-by-step",
    warmup_epochs=1,
    weight_decay=1e-4,
    scale=(0.35, 1.0),
    flip_p=0.0,
    standard_list=False,
)
_vissl_finetune = partial(
    Finetune,
    optimizer="sgd",
    lr=0.1,
    lr_batch=256,
    batch=256,
    epochs=105,
    schedule="step",
    steps=(30, 60, 90, 100),
    nesterov=True,
)
_vit_finetune = partial(
    Finetune,
    optimizer="adamw",
    lr_batch=256,
    batch=1024,
    schedule="cosine-by-step",
    final_lr=1e-6,
    weight_decay=0.05,
    decay_1d=False,
    mixup=0.8,
    cutmix=1.0,
    smoothing=0.1,
    interpolation="bicubic",
)
_DINO = "facebookresearch/dino@7c446df: eval_image_retrieval.py, whose queries are whole images"
_CIRTORCH = (
    "filipradenovic/cnnimageretrieval-pytorch@1e66a41: cirtorch/examples/test.py, with the encoder's own pooling and "
    "without learned whitening"
)
_THREE_SCALES = (1.0, 0.5**0.5, 0.5)
_MAE = "facebookresearch/mae@2f170f2: FINETUNE.md and main_finetune.py"
_BEIT = "microsoft/unilm@006195f: beit/get_started_for_image_classification.md and run_class_finetuning.py"
_VISSL = "facebookresearch/vissl@04788de: benchmark/fulltune/imagenet1k/eval_resnet_8gpu_transfer_in1k_fulltune.yaml"
_PART = "its 100 % settings on a part of the labels, which the source does not report"
_AUGMENTATIONS = ("RandAugment rand-m9-mstd0.5-inc1", "random erasing 0.25")
_mae_base = partial(
    _vit_finetune,
    lr=5e-4,
    epochs=100,
    warmup_epochs=5,
    layer_decay=0.65,
    init_std=2e-5,
    omitted=(*_AUGMENTATIONS, "drop path 0.1"),
)


def _parts(build: "partial[Finetune]", name: str, source: str) -> list[Finetune]:
    """A protocol with all labels, and with 10 % and 1 % of them."""
    fewer = [build(f"{name}-{share}", f"{source}; {_PART}", percent=share) for share in (10, 1)]
    return [build(name, source), *fewer]


PROTOCOLS: dict[str, list[Protocol]] = {
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
        LinearGrid(
            "sample-grid",
            "this suite's own for its sample: as `sample`, over rates, weight decays and the last one or two blocks",
            augment=False,
            optimizer="adam",
            lrs=(1e-3, 3e-3, 1e-2, 3e-2),
            weight_decays=(0.0, 5e-6, 5e-4),
            last_blocks=(1, 2),
            lr_batch=None,
            batch=128,
            epochs=200,
            schedule="cosine",
        ),
        LinearGrid(
            "dinov2-grid",
            "facebookresearch/dinov2@05c66df: dinov2/eval/linear.py, 8 GPUs x 128 images (which selects on validation)",
            augment=True,
            optimizer="sgd",
            lrs=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
            last_blocks=(1, 4),
            lr_batch=256,
            batch=1024,
            epochs=10,
            schedule="cosine-by-step",
            init_std=0.01,
            interpolation="bicubic",
            omitted=("inputs with the mean of patch tokens beside the class token", "training on the held-out images"),
        ),
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
    "finetune": [
        _sample_finetune("sample"),
        _sample_finetune("sample-10", percent=10),
        _sample_finetune("sample-1", percent=1),
        _sample_finetune(
            "sample-mixed",
            optimizer="adamw",
            lr=1e-3,
            weight_decay=0.05,
            decay_1d=False,
            layer_decay=0.75,
            mixup=0.8,
            cutmix=1.0,
            smoothing=0.1,
            ema=0.99,
        ),
        *_parts(_vissl_finetune, "vissl", _VISSL),
        *_parts(_mae_base, "mae-base", f"{_MAE}, ViT-Base"),
        _vit_finetune(
            "mae-large",
            f"{_MAE}, ViT-Large",
            lr=1e-3,
            epochs=50,
            warmup_epochs=5,
            layer_decay=0.75,
            init_std=2e-5,
            omitted=(*_AUGMENTATIONS, "drop path 0.2"),
        ),
        _vit_finetune(
            "beit-base",
            f"{_BEIT}, BEiT-base without intermediate fine-tuning",
            lr=4e-3,
            lr_batch=None,
            epochs=100,
            warmup_epochs=20,
            layer_decay=0.65,
            omitted=(*_AUGMENTATIONS, "drop path 0.1"),
        ),
        _vit_finetune(
            "beit-large",
            f"{_BEIT}, BEiT-large without intermediate fine-tuning",
            lr=1e-3,
            lr_batch=None,
            epochs=50,
            warmup_epochs=5,
            layer_decay=0.75,
            omitted=(*_AUGMENTATIONS, "drop path 0.2"),
        ),
    ],
    "fewshot": [
        FewShot(
            "centroid",
            "SimpleShot, arXiv 1911.04623, CL2N; centred by the mean of the shots, as there are no base classes",
            "centroid",
        ),
        FewShot(
            "logistic",
            "facebookresearch/msn@5474d5f: logistic_eval.py, its default penalty, by scikit-learn's solver",
            "logistic",
        ),
    ],
    "voc07": [
        SVM(
            "svm",
            "facebookresearch/vissl@1569537: benchmark/linear_image_classification/voc07, "
            "eval_resnet_8gpu_transfer_voc07_svm.yaml, on the backbone's pooled output",
            costs=(0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
        ),
        SVM("svm-quick", "as svm, with the middle of its costs only", costs=(0.1, 1.0, 10.0)),
    ],
    "retrieval": [
        Retrieval(
            "square",
            "filipradenovic/revisitop@3bb68d3: python/evaluate.py (ground truth, boxes of queries, mAP); that whole "
            "images are squeezed to squares is this suite's own",
        ),
        *(
            Retrieval(f"dino-224{name}", f"{_DINO}{argument}", longest=224, boxes=False, scales=scales)
            for name, argument, scales in (("", "", (1.0,)), ("-multiscale", " --multiscale true", _THREE_SCALES))
        ),
        *(
            Retrieval(f"longest-1024{name}", f"{_CIRTORCH}{argument}", longest=1024, scales=scales, unit_scales=True)
            for name, argument, scales in (
                ("", "", (1.0,)),
                ("-multiscale", " --multiscale '[1, 1/2**(1/2), 1/2]'", _THREE_SCALES),
            )
        ),
    ],
    "robust": [
        Robust(
            "shifted",
            "arXiv 1903.12261 (ImageNet-C, mCE), 1907.07174 (ImageNet-A), 2006.16241 (ImageNet-R): among the set's "
            "classes; that a linear probe classifies is this suite's own",
        ),
    ],
}


def find_protocol(stage: str, name: str) -> Protocol:
    """The protocol of that name for a stage ("linear", "knn", ...); `UserError` names the nearest if none is."""
    protocols = {protocol.name: protocol for protocol in PROTOCOLS[stage]}
    if name not in protocols:
        raise UserError(f"unknown {stage} protocol '{name}'{nearest(name, protocols)}")
    return protocols[name]


def describe(stage: str) -> str:
    """The stage's protocols, a line each, for --help."""
    return "\n".join(f"  {protocol.name:23} {protocol.source}" for protocol in PROTOCOLS[stage])
