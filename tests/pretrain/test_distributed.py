"""Two processes that train together do what one process does with the joint batch. Real gloo, in float64.

The processes are started once; each runs all scenarios and leaves its results, which are compared with one process's.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.distributed import (
    AllReduceBatchNorm,
    World,
    barrier,
    convert_sync_bn,
    gather_with_gradient,
    mean_over_ranks,
    world_size,
)
from pretrain.method import Method, find_method, method_names
from pretrain.whitening_layer import Whitening
from tests.support.tiny_encoder import batch_of, images, part_of, tiny_encoder
from tests.support.two_ranks import (
    BATCH,
    COUPLED,
    NOT_TRAINED,
    OWN_IMAGES,
    PER_PROCESS,
    TRANSFORMERS,
    batch_case,
    build,
    build_case,
    train,
)
from whitebench.errors import UserError

RANKS = 2
CPU = torch.device("cpu")


# --- what each rank does ----------------------------------------------------------------------------------------------


def run_rank(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with World.join(RANKS, "cpu", timeout_s=120) as world:
        results = {name: ranked_training(name, rank) for name in COUPLED | TRANSFORMERS}
        results |= {name: ranked_own_images(name, rank) for name in PER_PROCESS}
        results |= {"gather": ranked_gather(rank), "world": ranked_world(world)}
        results |= {f"layer-{transform}": ranked_layer(transform, rank) for transform in ("zca", "iternorm")}
        results |= {f"norm-{name}": ranked_norm(name, rank) for name in NORMS}
    assert world_size() == 1
    torch.save(results, folder / f"{rank}.pt")


def ranked_training(name: str, rank: int) -> dict[str, Any]:
    method = convert_sync_bn(build_case(name), CPU)
    assert isinstance(method, Method)
    return train(DistributedDataParallel(method), method, part_of(batch_case(name), rank, RANKS))


def ranked_own_images(name: str, rank: int) -> dict[str, Any]:
    case = PER_PROCESS[name]
    method = convert_sync_bn(build(case.name, case.options, case.width), CPU)
    torch.manual_seed(100 + rank)
    assert isinstance(method, Method)
    return train(DistributedDataParallel(method), method, part_of(batch_of(BATCH), rank, RANKS), steps=1)


def ranked_gather(rank: int) -> dict[str, Tensor]:
    x = (torch.arange(6.0).view(3, 2) + 10 * rank).requires_grad_()
    gathered = gather_with_gradient(x)
    (gathered * torch.arange(12.0).view(6, 2) * (rank + 1)).sum().backward()
    assert x.grad is not None
    return {"gathered": gathered.detach(), "gradient": x.grad}


def ranked_world(world: World) -> dict[str, Any]:
    barrier()
    norm = AllReduceBatchNorm.of(nn.BatchNorm2d(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normalised = norm(images(4, world.rank).bfloat16())
    return {
        "rank": world.rank,
        "norm_dtype": normalised.dtype,
        "is_main": world.is_main,
        "broadcast": world.broadcast({"from": world.rank}),
        "mean": float(mean_over_ranks(torch.tensor(float(world.rank)))),
    }


def norm_input(shape: tuple[int, ...]) -> Tensor:
    return 3 + 2 * torch.randn(8, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def run_norm(norm: nn.Module, x: Tensor, weight: Tensor) -> dict[str, Any]:
    """Two forward passes in training (statistics accumulate), gradients of the last, then one in evaluation."""
    x = x.clone().requires_grad_()
    norm(x * 2)
    y = norm(x)
    (y * weight).sum().backward()
    parameters = {name: parameter.grad for name, parameter in norm.named_parameters()}
    tracked = bool(norm.state_dict().keys() - parameters.keys())
    evaluated = norm.eval()(x).detach() if tracked else torch.zeros(0)
    return {"y": y.detach(), "x": x.grad, "eval": evaluated, "parameters": parameters, **norm.state_dict()}


def ranked_norm(name: str, rank: int) -> dict[str, Any]:
    norm, shape = NORMS[name]
    x = norm_input(shape)
    rows = [len(x) // 3, len(x) - len(x) // 3] if name.endswith("-uneven") else [len(x) // RANKS] * RANKS
    converted = convert_sync_bn(nn.Sequential(norm().double()), CPU)
    assert isinstance(converted.get_submodule("0"), AllReduceBatchNorm)
    return run_norm(converted, x.split(rows)[rank], x.cos().split(rows)[rank])


def ranked_layer(transform: Any, rank: int) -> dict[str, Any]:
    x = norm_input((6,))
    layer = Whitening(6, transform, groups=2, across_ranks=True).double()
    return run_norm(layer, x.chunk(RANKS)[rank], x.cos().chunk(RANKS)[rank])


def affine_norm_1d() -> nn.Module:
    norm = nn.BatchNorm1d(3)
    nn.init.uniform_(norm.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return norm


def plain_norm_1d() -> nn.Module:
    return nn.BatchNorm1d(3, affine=False, momentum=None)


def affine_norm_2d() -> nn.Module:
    return nn.BatchNorm2d(3, momentum=0.3)


def untracked_norm_2d() -> nn.Module:
    return nn.BatchNorm2d(3, track_running_stats=False)


def norm_with_activation() -> nn.Module:
    from timm.layers import BatchNormAct2d

    norm: nn.Module = BatchNormAct2d(3, act_layer=nn.SiLU)
    return norm


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (affine_norm_1d, (3,)),
    "1d-plain-cumulative": (plain_norm_1d, (3,)),
    "1d-uneven": (affine_norm_1d, (3,)),
    "2d": (affine_norm_2d, (3, 4, 5)),
    "2d-uneven": (affine_norm_2d, (3, 4, 5)),
    "2d-untracked": (untracked_norm_2d, (3, 4, 5)),
    "2d-activation": (norm_with_activation, (3, 4, 5)),
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(run_rank, (folder, port), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


# --- against one process ----------------------------------------------------------------------------------------------


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-7, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", [*COUPLED, *TRANSFORMERS])
def test_two_ranks_train_as_one_process_with_the_joint_batch(ranks: list[dict[str, Any]], name: str) -> None:
    method = build_case(name)
    expected = train(method, method, batch_case(name))
    for result in ranks:
        assert_same(result[name]["gradients"], expected["gradients"])
        assert_same(result[name]["state"], expected["state"])
    losses = torch.tensor([result[name]["losses"] for result in ranks])
    if name not in OWN_IMAGES:
        torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses.mean(dim=0), torch.tensor(expected["losses"]))


@pytest.mark.parametrize("name", PER_PROCESS)
def test_a_loss_of_a_process_s_own_images_is_averaged_over_processes(ranks: list[dict[str, Any]], name: str) -> None:
    case = PER_PROCESS[name]
    method, batch = build(case.name, case.options, case.width), batch_of(BATCH)
    views = [view.chunk(RANKS) for view in case.embed(method.encoder, batch.views)]
    losses = []
    for rank in range(RANKS):
        torch.manual_seed(100 + rank)
        losses.append(case.loss([view[rank] for view in views]))
    torch.stack(losses).mean().backward()
    expected = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    for rank, result in enumerate(ranks):
        assert result[name]["losses"] == pytest.approx([losses[rank].item()], rel=1e-10)
        assert_same(result[name]["gradients"], expected)


def test_every_method_is_trained_on_two_ranks() -> None:
    """A new file in `pretrain/methods` needs an entry in `tests/support/two_ranks.py`."""
    tested = {name for name, _ in (COUPLED | TRANSFORMERS).values()} | {case.name for case in PER_PROCESS.values()}
    assert tested | NOT_TRAINED == set(method_names())


@pytest.mark.parametrize("name", [*COUPLED, *TRANSFORMERS, *PER_PROCESS])
def test_exactly_what_trains_as_one_process_may_change_their_number(name: str) -> None:
    """`machine.processes` continues its run on another number of processes, and refuses to for all others."""
    method = build(*PER_PROCESS[name][:2]) if name in PER_PROCESS else build_case(name)
    assert type(method).joint_batch(method.config) == (name not in PER_PROCESS)


@pytest.mark.parametrize("name", ["moco", "pcl", "pauc", "ressl"])
def test_parts_with_batch_norms_of_their_own_are_of_a_process_s_batch(name: str) -> None:
    kind = find_method(name)
    assert [kind.joint_batch(kind.Config(bn_splits=splits)) for splits in (1, 2)] == [True, False]


def test_gathering_keeps_the_order_of_ranks_and_sums_gradients(ranks: list[dict[str, Any]]) -> None:
    joint = torch.cat([torch.arange(6.0).view(3, 2), torch.arange(6.0).view(3, 2) + 10])
    for rank, result in enumerate(ranks):
        assert result["gather"]["gathered"].equal(joint)
        assert result["gather"]["gradient"].equal(3 * torch.arange(12.0).view(6, 2)[3 * rank : 3 * rank + 3])


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_over_two_ranks_equals_one_process(ranks: list[dict[str, Any]], name: str) -> None:
    norm, shape = NORMS[name]
    x = norm_input(shape)
    expected = run_norm(nn.Sequential(norm().double()), x, x.cos())
    results = [result[f"norm-{name}"] for result in ranks]
    for part in ("y", "x", "eval"):
        torch.testing.assert_close(torch.cat([result[part] for result in results]), expected[part])
    for key, gradient in expected["parameters"].items():
        torch.testing.assert_close(results[0]["parameters"][key] + results[1]["parameters"][key], gradient)
    for key in expected.keys() - {"y", "x", "eval", "parameters"}:
        for result in results:
            torch.testing.assert_close(result[key], expected[key])


@pytest.mark.parametrize("transform", ["zca", "iternorm"])
def test_whitening_over_two_ranks_equals_one_process(ranks: list[dict[str, Any]], transform: Any) -> None:
    x = norm_input((6,))
    expected = run_norm(Whitening(6, transform, groups=2).double(), x, x.cos())
    results = [result[f"layer-{transform}"] for result in ranks]
    for part in ("y", "x", "eval"):
        torch.testing.assert_close(torch.cat([result[part] for result in results]), expected[part])
    for key, gradient in expected["parameters"].items():
        torch.testing.assert_close(results[0]["parameters"][key] + results[1]["parameters"][key], gradient)
    for key in ("running_mean", "running_matrix"):
        torch.testing.assert_close(results[0][key], expected[key])


def test_ranks_know_their_place_and_agree(ranks: list[dict[str, Any]]) -> None:
    worlds = [result["world"] for result in ranks]
    assert [world["rank"] for world in worlds] == [0, 1]
    assert [world["is_main"] for world in worlds] == [True, False]
    assert [world["broadcast"] for world in worlds] == [{"from": 0}] * 2
    assert [world["mean"] for world in worlds] == [0.5, 0.5]


def test_batch_norm_over_two_ranks_keeps_the_dtype_of_its_input(ranks: list[dict[str, Any]]) -> None:
    assert [result["world"]["norm_dtype"] for result in ranks] == [torch.bfloat16] * 2


# --- one process ------------------------------------------------------------------------------------------------------


def test_alone_nothing_is_gathered_converted_or_waited_for() -> None:
    encoder, x = tiny_encoder(), torch.ones(2, 3, requires_grad=True)
    with World.join(1, "cpu") as world:
        assert gather_with_gradient(x) is x
        assert mean_over_ranks(x) is x
        assert world.broadcast("value") == "value"
        assert world.is_main
        barrier()
        assert convert_sync_bn(encoder, world.device) is encoder
    assert not any(isinstance(module, AllReduceBatchNorm) for module in encoder.modules())


def test_conversion_keeps_names_tensors_and_mode() -> None:
    norm = nn.BatchNorm2d(3, eps=1e-3, momentum=0.2).eval()
    own = AllReduceBatchNorm.of(norm)
    assert own.weight is norm.weight
    assert own.running_mean is norm.running_mean
    assert set(own.state_dict()) == set(norm.state_dict())
    assert (own.eps, own.momentum, own.affine, own.track_running_stats, own.training) == (1e-3, 0.2, True, True, False)
    x = images(2, 0).float()
    assert own(x).equal(norm(x))


def test_a_launch_that_does_not_fit_the_recipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"world_size=4, but 1 process"):
        World.join(4, "cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"):
        World.join(2, "cpu")
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match=r"world_size=1, but 2 process"):
        World.join(1, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_asking_for_cuda_where_there_is_none_is_refused() -> None:
    assert World.join(1, "auto").device == CPU
    with pytest.raises(UserError, match="sees no CUDA device"):
        World.join(1, "cuda")
