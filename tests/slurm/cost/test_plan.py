"""`whitebench plan`: what it says for recipes, sweeps and mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.recipe import load
from slurm.cost.__main__ import main
from slurm.cost.constants import FILE, Constants, constants
from slurm.cost.estimate import estimate
from slurm.cost.hardware import hardware
from slurm.cost.quantity import Quantity, largest, total
from slurm.cost.stages import detect_hours
from slurm.cost.sweep import sweep_cost
from slurm.cost.work import work_of
from slurm.sweep import load_sweep
from whitebench import cli
from whitebench.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are made on login nodes, where no dataset is."""
    monkeypatch.setenv("WHITEBENCH_DATA", str(tmp_path))


def plan(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["whitebench plan", *arguments])
    assert main() == 0
    return str(capsys.readouterr().out)


def test_a_plan_names_all_that_one_asks_for(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    text = plan(monkeypatch, capsys, "sample/intl", "--gpus", "2", "--nodes", "2", "--gpu", "h100", "--images", "5000")
    for words in (
        "images/s",
        "hours",
        "GPU-hours",
        "kWh",
        "memory, GB",
        "CPU cores",
        "bottleneck",
        "2 nodes of 2 x H100",
    ):
        assert words in text
    for part in ("decode", "colour", "network", "step", "disk"):
        assert part in text


def test_a_plan_as_json_holds_value_and_interval(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    text = plan(monkeypatch, capsys, "imagenet1k/simsiam-100ep", "--gpu", "A100-80GB", "--gpus", "8", "--json")
    read = json.loads(text)
    value, low, high = read["hours"]
    assert low < value < high
    assert read["gpu_hours"][0] == pytest.approx(8 * value, rel=1e-4)
    assert read["hardware"] == "8 x A100 80 GB SXM"


def test_plan_is_a_command_of_whitebench(capsys: Any) -> None:
    assert cli.run(["plan", "sample/random", "--gpu", "cpu", "--images", "100"]) == 0
    assert "hours           0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample/intl", "--gpu", "h1000"], "did you mean 'h100'"),
        (["sample/intl", "--gpu", "zz"], "valid: a100"),
        (["sample/intl", "--gpus", "0"], "--gpus: must be a positive number"),
        (["sample/intl", "--nodes", "-1"], "--nodes: must be a positive number"),
        (["sample/intl", "--cores", "0"], "--cores: must be a positive number"),
        (["sample/intl", "--gpus", "7"], "does not divide over 7 GPUs"),
        (["sample/intl", "--disk", "nvm"], "did you mean 'nvme'"),
        (["sample/intl", "--written", "side-50"], "did you mean 'side-500'"),
        (["sample/intl", "--images", "0"], "--images: must be positive"),
        (["sample/int"], "unknown recipe 'sample/int'"),
        (["sample/intl", "data.dataset=my-own"], "give --images"),
        (["imagenet1k/resa-100ep", "batch=4096", "--gpu", "rtx3090"], "images per GPU fit"),
        (["--sweep", "ladder-imagenett"], "did you mean 'ladder-imagenet'"),
        (["--detect", "c4-3x"], "did you mean"),
        (["--detect", "c4-2x", "--gpus", "3"], "does not divide over 3 GPUs"),
    ],
)
def test_mistakes_are_one_line(monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str) -> None:
    monkeypatch.setattr("sys.argv", ["whitebench plan", *arguments])
    with pytest.raises(UserError, match=r".") as raised:
        main()
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_card_too_small_is_refused_and_one_that_may_be_is_noted() -> None:
    recipe = load("imagenet1k/resa-100ep")
    tight = estimate(recipe, hardware("rtx4090"))
    assert any("may not fit" in note for note in tight.notes)
    assert not any("may not fit" in note for note in estimate(recipe, hardware("a100")).notes)
    with pytest.raises(UserError, match="GPUs or more for a batch of 2048"):
        estimate(load("imagenet1k/resa-100ep", {"batch": 2048}), hardware("a100"))


def test_memory_is_near_the_published_one() -> None:
    """ReSA's README: 25.2 GB for a ResNet-50 with 256 images on one GPU."""
    memory = estimate(load("imagenet1k/resa-100ep"), hardware("a100")).memory_gb
    assert memory.low < 25.2 < memory.high
    assert abs(memory.value / 25.2 - 1) < 0.15


def test_work_counts_target_networks_once_and_trained_ones_three_times() -> None:
    simclr, byol = (work_of(load(f"sample/{name}"), 16) for name in ("simclr", "byol"))
    assert simclr.target_share == 0
    assert byol.target_share == pytest.approx(1)
    assert byol.encoder_flops / simclr.encoder_flops == pytest.approx(4 / 3, rel=0.01)
    assert byol.kept_bytes == pytest.approx(simclr.kept_bytes, rel=0.01)


def test_work_of_a_resnet50_is_the_known_one() -> None:
    """4.1 billion multiply-adds forward."""
    work = work_of(load("imagenet1k/supervised-100ep"), 4)
    assert work.encoder_flops == pytest.approx(3 * 2 * 4.09e9, rel=0.01)
    assert work.parameters == 25_557_032


@pytest.mark.parametrize("method", ["intl", "cwrgp", "vibcreg", "corinfomax", "swav", "mec", "lejepa", "tregs"])
def test_every_loss_leaves_the_encoders_counted(method: str) -> None:
    """Also one that looks at values, which these tensors do not have."""
    work = work_of(load(f"sample/{method}"), 64)
    views = len(load(f"sample/{method}").view_sizes)
    supervised = work_of(load("sample/supervised"), 64)  # one view, no projector
    assert work.encoder_flops >= views * supervised.encoder_flops
    assert work.kept_bytes > 0


def test_fewer_cores_make_the_loader_the_bottleneck_and_the_plan_says_how_many_suffice() -> None:
    recipe = load("imagenet1k/simsiam-100ep")
    starved = estimate(recipe, hardware("h100", gpus=8, cores=8))
    enough = int(starved.cores_per_gpu.high)
    fed = estimate(recipe, hardware("h100", gpus=8, cores=8 * enough))
    assert starved.bottleneck in ("decode", "colour")
    assert fed.bottleneck in ("step", "network")
    assert fed.hours.value < starved.hours.value


def test_a_disk_holds_back_what_does_not_fit_into_memory() -> None:
    recipe = load("imagenet1k/simsiam-100ep")
    slow = estimate(recipe, hardware("h100", gpus=8, disk="hdd", memory_gb=64))
    assert slow.bottleneck == "disk"
    assert estimate(recipe, hardware("h100", gpus=8, disk="hdd", memory_gb=512)).bottleneck != "disk"


def test_a_slow_network_between_nodes_is_the_bottleneck() -> None:
    recipe = load("imagenet1k/barlow-twins-1000ep", {"batch": 1024, "world_size": 16})
    slow = estimate(recipe, hardware("h100", gpus=8, nodes=2, network_gbit=1))
    assert slow.bottleneck == "network"
    assert estimate(recipe, hardware("h100", gpus=8, nodes=2, network_gbit=400)).hours.value < slow.hours.value / 3


def test_detection_scales_with_iterations_and_gpus() -> None:
    one, two = (detect_hours(hardware("v100", gpus=8), {"protocol": name}) for name in ("c4-1x", "c4-2x"))
    assert two.value / one.value == pytest.approx(2, rel=0.01)
    assert detect_hours(hardware("v100", gpus=4), {"protocol": "c4-1x"}).value == pytest.approx(2 * one.value)
    assert one.value == pytest.approx(90_000 * 0.584 / 3600, rel=0.01)


def test_a_detection_alone_is_planned(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    text = plan(monkeypatch, capsys, "--detect", "c4-2x", "--gpu", "v100", "--json")
    read = json.loads(text)
    assert read["hours"][0] == pytest.approx(180_000 * 0.584 / 3600, rel=0.01)
    assert read["gpu_hours"][0] == pytest.approx(8 * read["hours"][0], rel=1e-4)
    assert "GPU-hours" in plan(monkeypatch, capsys, "--detect", "fpn-1x", "--gpu", "a100", "--gpus", "4")


@pytest.mark.parametrize("name", ["H100", "NVIDIA H100 80GB HBM3", "nvidia-h100", "A100-SXM4-80GB", "GeForce RTX 4090"])
def test_cards_are_known_by_the_names_that_drivers_and_clusters_give_them(name: str) -> None:
    assert constants().card(name).name in ("h100", "a100", "rtx4090")


def test_the_cost_of_a_table_is_the_sum_of_its_jobs() -> None:
    recipes = "[imagenet1k/cwrgp-100ep-2view,imagenet1k/intl-100ep-2view,imagenet1k/resa-100ep]"
    cost = sweep_cost(load_sweep("ladder-imagenet", [f"recipes={recipes}"], []), hardware("h100"))
    rows = {(row.recipe, row.stage): row for row in cost.rows}
    assert {stage for _, stage in rows} == {"pretrain", "linear", "knn", "detect"}
    assert rows["imagenet1k/resa-100ep", "detect"].jobs == 15  # three pretrainings, five fine-tunings each
    assert rows["imagenet1k/cwrgp-100ep-2view", "pretrain"].gpus == 4
    assert cost.gpu_hours.value == pytest.approx(sum(row.gpu_hours.value for row in cost.rows))
    assert not cost.errors


def test_a_sweep_is_found_by_its_path_within_the_package(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    options = ["--gpu", "cpu", "--images", "1000", "sweep.seeds=[0]"]
    text = plan(monkeypatch, capsys, "--sweep", "sweeps/sample.yaml", *options)
    assert "hours of jobs on a CPU" in text


def test_users_stages_and_settings_beyond_the_limit_are_named() -> None:
    sweep = load_sweep("sample", ["grid={network.projector: [[16],[32],[64]]}"], [])
    cost = sweep_cost(sweep, hardware("cpu", cores=2), images=1000, most_networks=2)
    assert any("different networks" in error for error in cost.errors)


def test_every_constant_has_an_interval_and_a_source() -> None:
    known = constants().quantities()
    assert len(known) > 30
    for name, (quantity, source) in known.items():
        assert quantity.low <= quantity.value <= quantity.high, name
        assert source.split(":")[0].split(" ")[0], name
    for card in constants().cards.values():
        assert card.source, card.name
        assert card.bandwidth > 0
    assert (ROOT / "benchmarks" / "constants.yaml").resolve() == FILE.resolve()


def test_a_damaged_constant_is_an_error_with_its_name() -> None:
    raw = {"cards": {}, "x": {"value": 2, "low": 3, "high": 4, "source": "a test"}}
    with pytest.raises(UserError, match="x: low <= value <= high"):
        Constants(raw)("x")
    with pytest.raises(UserError, match="'y' is not there"):
        Constants(raw)("y")


def test_quantities_carry_their_intervals() -> None:
    a, b = Quantity(2, 1, 4), Quantity(3, 3, 3)
    assert a * b == Quantity(pytest.approx(6), pytest.approx(3), pytest.approx(12))
    assert (b / a).low == pytest.approx(0.75)
    assert a + b == Quantity(5, 4, 7)
    assert b - a == Quantity(1, 0, 2)
    assert largest(a, b) == Quantity(3, 3, 4)
    assert total([a, a]) == Quantity(4, 2, 8)
    both = a * a
    assert 4 > both.low > 1
    assert str(Quantity.exact(1234.5)) == "1,234"
