"""What one training step of a recipe computes and keeps: counted on tensors that have shapes but no content."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretrain.method import Method
    from pretrain.recipe import Recipe


@dataclass(frozen=True)
class Work:
    """Per image (all of its views) unless said otherwise; activations as float32, whatever the recipe's precision."""

    encoder_flops: float
    """Of backbones, forward and backward (three times the forward pass, once for target networks)."""
    kept_bytes: float
    """Activations that backbones keep for the backward pass."""
    target_share: float
    """Products of backbones that are not trained (target networks) over those of the trained forward passes."""
    other_flops: float
    """Of projectors, predictors and the loss."""
    other_bytes: float
    parameters: int
    """Of the whole method, once."""
    trained: int
    operations: int
    """Of a whole step on the host: forward, backward and one per parameter."""
    norms: int
    """Batch norms with gradients that a step runs, per view."""
    complete: bool
    """Whether the loss was counted to its end; one that works on the host cannot be."""

    @property
    def flops(self) -> float:
        return self.encoder_flops + self.other_flops


_counted: dict[str, Work] = {}


def work_of(recipe: "Recipe", local_batch: int) -> Work:
    """Counts one step on `local_batch` images of a process; once for all recipes with the same work."""
    key = work_key(recipe, local_batch)
    if key not in _counted:
        _counted[key] = _count(recipe, local_batch)
    return _counted[key]


def work_key(recipe: "Recipe", local_batch: int) -> str:
    """Equal where the work is: method, network, sizes of views and batch."""
    return repr((recipe.method_name, recipe.method, recipe.network, recipe.view_sizes, local_batch))


def meta_method(recipe: "Recipe") -> "Method[Any]":
    """The recipe's method, of tensors without content."""
    import torch

    from pretrain.method import find_method
    from pretrain.networks import build_encoder

    with torch.device("meta"):
        method = find_method(recipe.method_name)(build_encoder(recipe.network), recipe.method)
    return method.train()


def _count(recipe: "Recipe", local_batch: int) -> Work:
    import torch

    from pretrain.data.batch import Batch

    method = meta_method(recipe)
    with warnings.catch_warnings(), torch.device("meta"), _autocast_of_meta_tensors():
        warnings.simplefilter("ignore")
        views = [torch.empty(local_batch, 3, size, size) for size in recipe.view_sizes]
        labels = torch.zeros(local_batch, dtype=torch.int64)
        counter = _Counter(method)
        complete = counter.run(lambda: method(Batch(views, labels, labels)))
    parameters = [parameter.numel() for parameter in method.parameters()]
    trained = [parameter.numel() for parameter in method.parameters() if parameter.requires_grad]
    return Work(
        encoder_flops=(3 * counter.flops[True, True] + counter.flops[True, False]) / local_batch,
        kept_bytes=counter.kept[True] / local_batch,
        target_share=counter.flops[True, False] / (counter.flops[True, True] or 1.0),
        other_flops=(3 * counter.flops[False, True] + counter.flops[False, False]) / local_batch,
        other_bytes=counter.kept[False] / local_batch,
        parameters=sum(parameters),
        trained=sum(trained),
        operations=3 * counter.operations + len(parameters),
        norms=counter.norms,
        complete=complete,
    )


class _Counter:
    """Counts what runs within and outside the backbones of a method, with and without gradients."""

    def __init__(self, method: "nn.Module") -> None:
        self.method = method
        self.flops = {(backbone, grad): 0.0 for backbone in (True, False) for grad in (True, False)}
        self.kept = {True: 0.0, False: 0.0}
        self.operations = self.norms = 0
        self._within: list[bool] = []
        """Of the backbone that runs: whether it is trained."""
        self._seen: dict[int, Any] = {}

    def run(self, step: Any) -> bool:
        """Runs `step`; whether it came to its end."""
        from torch.autograd.graph import saved_tensors_hooks

        hooks = [
            hook
            for name, module in self.method.named_modules()
            if name.rpartition(".")[2] == "backbone"
            for hook in (module.register_forward_pre_hook(self._enter), module.register_forward_hook(self._leave))
        ]
        own = {parameter.untyped_storage()._cdata for parameter in self.method.parameters()}
        self._seen = dict.fromkeys(own)
        try:
            with _dispatch_mode(self), saved_tensors_hooks(self._keep, lambda tensor: tensor):
                step()
        except Exception:  # a loss that looks at values; the encoders came before
            return False
        finally:
            for hook in hooks:
                hook.remove()
        return True

    def operation(self, flops: float, is_norm: bool) -> None:
        import torch

        within = bool(self._within)
        grad = torch.is_grad_enabled() and all(self._within)
        self.flops[within, grad] += flops
        self.operations += 1
        self.norms += is_norm and grad

    def _enter(self, backbone: "nn.Module", *_: Any) -> None:
        self._within.append(any(parameter.requires_grad for parameter in backbone.parameters()))

    def _leave(self, *_: Any) -> None:
        self._within.pop()

    def _keep(self, tensor: "Tensor") -> "Tensor":
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage  # held, so that its address is not used again
            self.kept[bool(self._within)] += storage.nbytes()
        return tensor


def _dispatch_mode(counter: _Counter) -> Any:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    local_scalar = torch.ops.aten._local_scalar_dense.default

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is local_scalar and args[0].is_meta:  # a loss looks at a value: what it checks is in order
                return True if args[0].dtype is torch.bool else 1
            output = func(*args, **(kwargs or {}))
            packet = func._overloadpacket
            flops = flop_registry[packet](*args, **(kwargs or {}), out_val=output) if packet in flop_registry else 0
            counter.operation(flops, is_norm="batch_norm" in packet.__name__)
            return output

    return Mode()


@contextmanager
def _autocast_of_meta_tensors() -> Iterator[None]:
    """Meanwhile `torch.autocast` of meta tensors, a device that it does not know, does nothing."""
    import torch

    real = torch.autocast

    def autocast(device_type: str, *args: Any, **options: Any) -> Any:
        return nullcontext() if device_type == "meta" else real(device_type, *args, **options)

    with patch.object(torch, "autocast", autocast):
        yield
