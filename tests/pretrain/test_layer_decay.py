"""Layer-wise decay, against timm's own grouping."""

import pytest
import torch
from torch import nn

from pretrain.evaluate.layer_decay import layer_numbers, parameter_groups
from pretrain.networks import build_backbone

timm = pytest.importorskip("timm")
NETWORKS = ["resnet18", "resnet50", "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "convnext_atto"]


def split(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The model without its classifier, and the classifier."""
    head: nn.Module = model.get_classifier()  # type: ignore[operator]
    (name,) = (name for name, module in model.named_modules() if module is head)
    parent = model.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.Identity())
    return model, head


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_those_of_timm(name: str) -> None:
    from timm.optim import param_groups_layer_decay

    model = timm.create_model(name, num_classes=10)
    exempt = sorted(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else []
    oracle = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(model, 0.05, no_weight_decay_list=exempt, layer_decay=0.65)
        for parameter in group["params"]
    }
    backbone, head = split(model)
    groups = parameter_groups(backbone, head, rate=1.0, weight_decay=0.05, layer_decay=0.65, decay_1d=False)
    ours = {id(p): (group["base"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert ours.keys() == oracle.keys()
    for key, values in oracle.items():
        assert ours[key] == pytest.approx(values)
    assert len({scale for scale, _ in oracle.values()}) > 5


def test_a_network_inside_another_is_matched_by_its_own_patterns() -> None:
    wrapped = nn.ModuleDict({"inner": timm.create_model("vit_tiny_patch16_224", num_classes=0)})
    numbers, head = layer_numbers(wrapped)
    assert head == 13
    assert numbers["inner.pos_embed"] == 0
    assert numbers["inner.blocks.0.norm1.weight"] == 1
    assert numbers["inner.norm.weight"] == numbers["inner.blocks.11.norm1.weight"] == 12


def test_without_decay_all_layers_have_one_rate() -> None:
    groups = parameter_groups(
        build_backbone("resnet18"), nn.Linear(512, 3), rate=0.1, weight_decay=1e-4, layer_decay=1.0, decay_1d=True
    )
    assert {group["lr"] for group in groups} == {0.1}
    assert {group["weight_decay"] for group in groups} == {1e-4}
    assert sum(len(group["params"]) for group in groups) == len(list(build_backbone("resnet18").parameters())) + 2


def test_every_parameter_is_in_one_group() -> None:
    backbone, head = build_backbone("resnet18", "cifar"), nn.Linear(512, 3)
    groups = parameter_groups(backbone, head, rate=0.1, weight_decay=0.05, layer_decay=0.5, decay_1d=False)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, [*backbone.parameters(), *head.parameters()]))
    torch.optim.AdamW(groups, 0.1)
