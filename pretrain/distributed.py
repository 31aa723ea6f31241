"""Several processes that train as one: who they are, and collectives with gradients."""

import os
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.split_batch_norm import SplitBatchNorm
from whitebench.errors import UserError

T = TypeVar("T")
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for each process, as does submitit's `TorchDistributedEnvironment().export()`."""


def rank() -> int:
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    return dist.get_world_size() if _joined() else 1


def barrier() -> None:
    """Waits until all processes have arrived."""
    if _joined():
        dist.barrier()


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of x over all processes, without gradient; x itself where there is one."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of x over all processes, without gradient; x itself where there is one."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


class World:
    """The processes that train together, and this one's rank. A context: leaving it leaves the group.

    with World.join(recipe.world_size, recipe.device) as world:
        network.to(world.device)
    """

    def __init__(self, rank: int, world_size: int, device: torch.device) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device

    @classmethod
    def join(
        cls, world_size: int = 1, device: Literal["auto", "cpu", "cuda"] = "auto", timeout_s: float = 1800
    ) -> Self:
        """Joins the other processes that the launcher has started, by nccl on CUDA, otherwise by gloo.

        Args:
            world_size: the expected number of processes.
            timeout_s: how long a collective waits for the others before the run fails.
        Raises:
            UserError: more or fewer were started, the launcher's variables are not all set or not numbers, there is no
                CUDA device although device="cuda".
        """
        variables = _environment()
        started = variables.get("WORLD_SIZE", 1)
        if started != world_size:
            advice = f"torchrun --nproc-per-node {world_size} -m pretrain ..."
            if started > 1:
                advice = f"world_size={started} to train on all of them, or {advice}"
            raise UserError(f"world_size={world_size}, but {started} process(es) were started; e.g. {advice}")
        world = cls(variables.get("RANK", 0), world_size, _device(device, variables.get("LOCAL_RANK", 0)))
        if world_size > 1:
            world._meet(timedelta(seconds=timeout_s))
        return world

    def _meet(self, timeout: timedelta) -> None:
        on_cuda = self.device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_cuda else "gloo",
            rank=self.rank,
            world_size=self.world_size,
            timeout=timeout,
            device_id=self.device if on_cuda else None,
        )

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints messages."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank; anything that can be pickled."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        received: T = box[0]
        return received

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error on this rank alone the others still wait in a collective, and nccl would wait for them.
        if _joined() and (error is None or dist.get_backend() == "gloo"):
            dist.destroy_process_group()


def gather_with_gradient(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of ranks: [n, ...] -> [world_size * n, ...], the same n everywhere.

    Gradients of a gathered row are summed over the processes. Where each of them computes the same loss of all rows,
    averaging parameter gradients, as DistributedDataParallel does, then gives exactly the gradient of that loss.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


def sum_with_gradient(x: Tensor) -> Tensor:
    """The sum of x over all processes, with the gradient that is summed, too; see `gather_with_gradient`."""
    if world_size() == 1:
        return x
    total: Tensor = _AllReduce.apply(x)
    return total


def own_rows(x: Tensor) -> Tensor:
    """Of rows that were gathered over all processes, [world_size * n, ...], this process's: [n, ...]."""
    return x.chunk(world_size())[rank()]


def convert_sync_bn(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with batch norms that take their statistics over all processes; as it is where there is only one.

    Names and tensors stay. On CUDA these are torch's own, which do not run on a CPU; there it is `AllReduceBatchNorm`.
    Norms of parts of a batch stay as they are: their statistics are meant to differ.
    """
    if world_size() == 1:
        return module
    return _convert(module, _sync_batch_norm if device.type == "cuda" else AllReduceBatchNorm.of)


class AllReduceBatchNorm(_BatchNorm):
    """Batch norm of [B, C, ...] over all processes, by plain all-reduce with gradient: for gloo on CPUs.

    In training equal, up to rounding, to batch norm in one process with the joint batch: output, gradients (which
    DistributedDataParallel averages) and running statistics. In evaluation, or alone, it is plain batch norm. Those of
    timm hold the activation that follows them (`BatchNormAct2d`), and so does this.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> Self:
        """Takes over the parameters, buffers and settings of `norm`; the tensors themselves, no copies."""
        converted = cls(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        converted.affine, converted.training = norm.affine, norm.training
        converted.track_running_stats = norm.track_running_stats
        converted._parameters, converted._buffers = norm._parameters, norm._buffers
        converted._modules = norm._modules
        return converted

    def forward(self, input: Tensor) -> Tensor:
        y = self._normalised(input)
        for module in self.children():  # timm's: dropout, then the activation
            y = module(y)
        return y

    def _normalised(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        with torch.autocast(device_type=input.device.type, enabled=False):
            x = input if input.dtype == torch.float64 else input.float()
            dims = [d for d in range(x.ndim) if d != 1]
            shape = [1, -1] + [1] * (x.ndim - 2)
            count = int(sum_over_ranks(torch.tensor(x.numel() // x.shape[1])))  # parts of a last batch may differ
            mean = _AllReduce.apply(x.sum(dims)) / count
            deviation = x - mean.view(shape)
            variance = _AllReduce.apply(deviation.square().sum(dims)) / count
            self._track(mean.detach(), variance.detach() * count / max(1, count - 1))
            scale = (variance + self.eps).rsqrt()
            y = deviation * (scale if self.weight is None else scale * self.weight).view(shape)
            return (y if self.bias is None else y + self.bias.view(shape)).to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm takes [B, C, ...], not {list(input.shape)}")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


class _AllReduce(torch.autograd.Function):
    """The sum over all processes. Its gradient is the sum, too: each process's loss depends on every summand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _convert(module: nn.Module, synchronised: Callable[[Any], nn.Module]) -> nn.Module:
    if isinstance(module, AllReduceBatchNorm | SplitBatchNorm):
        return module
    if isinstance(module, _BatchNorm):
        return synchronised(module)
    for name, child in module.named_children():
        setattr(module, name, _convert(child, synchronised))
    return module


def _sync_batch_norm(norm: nn.Module) -> nn.Module:
    if hasattr(norm, "act"):  # torch's conversion would lose the activation
        from timm.layers import convert_sync_batchnorm

        converted: nn.Module = convert_sync_batchnorm(norm)
        return converted
    return nn.SyncBatchNorm.convert_sync_batchnorm(norm)


def _environment() -> dict[str, int]:
    """RANK, WORLD_SIZE and LOCAL_RANK as the launcher set them; empty where it set none."""
    if os.environ.get("WORLD_SIZE", "1") == "1" and "RANK" not in os.environ:
        return {}
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    if missing:
        raise UserError(f"several processes: {', '.join(missing)} not set; start them by torchrun or by the launcher")
    numbers = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    wrong = [f"{name}={value!r}" for name, value in numbers.items() if not (value.isascii() and value.isdigit())]
    if wrong:
        raise UserError(f"not a number: {', '.join(wrong)}; start the processes by torchrun or by the launcher")
    values = {name: int(value) for name, value in numbers.items() if name != "MASTER_PORT"}
    if not values["RANK"] < values["WORLD_SIZE"]:
        raise UserError(f"RANK={values['RANK']} of WORLD_SIZE={values['WORLD_SIZE']}: ranks count from 0")
    return values


def _device(name: str, local_rank: int) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("device=cuda, but torch sees no CUDA device here; use device=cpu or device=auto")
    if name == "cpu" or not available:
        return torch.device("cpu")
    # A launcher may show each process all devices of its machine, or only its own.
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
