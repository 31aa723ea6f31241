"""Bundles hold what their cards say; sinks get the metrics and never stop a run; energy is whole or not known."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from results.export import export, main
from tests.support.run_records import Records
from whitebench.errors import UserError
from whitebench.hashing import file_hash
from whitebench.records import Run, read_metrics, read_record

CELL = {"recipe": "sample/intl", "method": "intl", "seed": 0, "dataset": "sample"}


def _pretrained(records: Records, seed: int = 0, stem: str = "imagenet", arch: str = "resnet18") -> Path:
    """A done pretraining with weights; its folder."""
    from pretrain.checkpoint import write_backbone
    from pretrain.networks import build_backbone

    config = {"network": {"backbone": arch, "stem": stem}}
    folder = records.root / "pretrain" / records.pretrain("intl", seed, config=config)
    write_backbone(folder / "backbone.safetensors", build_backbone(arch, stem).state_dict(), {"stem": stem})
    sha = file_hash(folder / "backbone.safetensors")
    command = f"python -m pretrain sample/intl seed={seed}"
    records.pretrain("intl", seed, config=config, artifacts={"backbone": {"sha256": sha}}, command=command)
    return folder


# --- bundles --------------------------------------------------------------------------------------------------------


def test_a_bundle_has_weights_card_numbers_and_command(records: Records, tmp_path: Path) -> None:
    folder = _pretrained(records)
    records.evaluate(folder.name, {"top1": 80.0, "top5": 99.0})
    records.evaluate(folder.name, {"box_AP": 6.5, "mask_AP": 3.0}, "detect")
    other = _pretrained(records, seed=1)
    records.evaluate(other.name, {"top1": 82.0, "top5": 99.0})
    bundle = export(folder.name, [records.root], tmp_path / "out")
    assert (bundle / "backbone.safetensors").read_bytes() == (folder / "backbone.safetensors").read_bytes()
    assert json.loads((bundle / "record.json").read_text())["id"] == folder.name
    assert len(list((bundle / "evaluations").glob("*.json"))) == 2
    card = (bundle / "README.md").read_text()
    assert "python -m pretrain sample/intl seed=0" in card
    assert "| linear | sample | features | 0 | top-1 80.00 |" in card
    assert "box AP 6.50, mask AP 3.00" in card
    assert "linear on sample, top-1: 81.00 ± 1.41 (n = 2, 95 % CI ± 12.71)" in card
    assert "- only 2 pretrainings" in card
    front = yaml.safe_load(card.split("---")[1])
    [index] = front["model-index"]
    assert index["results"][1]["metrics"] == [{"type": "top1", "name": "linear, features", "value": 80.0}]


@pytest.mark.parametrize(
    ("arch", "stem"),
    [*(("resnet18", stem) for stem in ("imagenet", "cifar", "cifar-pad2", "small")), ("resnet18-32", "cifar")],
)
def test_the_cards_code_loads_the_weights(
    records: Records, tmp_path: Path, arch: str, stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from pretrain.checkpoint import read_backbone
    from pretrain.networks import build_backbone

    bundle = export(str(_pretrained(records, stem=stem, arch=arch)), [records.root], tmp_path / "out")
    code = (bundle / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(bundle)
    names: dict[str, Any] = {}
    exec(code, names)
    expected = build_backbone(arch, stem).eval()
    expected.load_state_dict(read_backbone(bundle / "backbone.safetensors").tensors, strict=False)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(names["network"](images), expected(images))


@pytest.mark.parametrize("name", ["vit_tiny_patch8", "timm:resnet18"])
def test_the_cards_code_loads_a_network_of_timm(
    records: Records, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from pretrain.architectures import timm_architecture
    from pretrain.checkpoint import write_backbone
    from pretrain.networks import build_encoder
    from pretrain.recipe_sections import Network

    encoder = build_encoder(Network(backbone=name), [32]).eval()
    config = {"network": {"backbone": name, "stem": "imagenet"}}
    folder = records.root / "pretrain" / records.pretrain("intl", 0, config=config)
    architecture = timm_architecture(name)
    stated = {"arch": architecture, "architecture": architecture, "options": encoder.options}
    write_backbone(folder / "backbone.safetensors", encoder.backbone.state_dict(), stated)
    sha = file_hash(folder / "backbone.safetensors")
    records.pretrain("intl", 0, config=config, artifacts={"backbone": {"sha256": sha}})
    bundle = export(folder.name, [records.root], tmp_path / "out")
    card = (bundle / "README.md").read_text()
    assert "library_name: timm" in card
    monkeypatch.chdir(bundle)
    names: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(names["network"](images), encoder.backbone(images))


def test_what_cannot_be_exported_is_said(records: Records, tmp_path: Path) -> None:
    folder = _pretrained(records)
    for damage, said in (
        (lambda: None, "no pretraining of that name; did you mean"),
        (lambda: (folder / "backbone.safetensors").write_bytes(b"x"), "is not the file that run.json names"),
        (lambda: (folder / "backbone.safetensors").unlink(), "is not there"),
        (lambda: records.pretrain("intl", 0, status="failed", config={"network": {"stem": "imagenet"}}), "is failed"),
    ):
        damage()
        with pytest.raises(UserError, match=said):
            export(folder.name[:-1] if said.startswith("no ") else folder.name, [records.root], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_takes_a_folder(records: Records, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _pretrained(records)
    main([str(folder), "--out", str(tmp_path / "out")])
    assert "MB, ready for upload" in capsys.readouterr().out
    assert "None: this checkpoint has not been evaluated." in (tmp_path / "out" / folder.name / "README.md").read_text()


# --- sinks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def _run(**changes: Any) -> Run:
    return Run("pretrain", "intl-s0", {"epochs": 2}, cell=CELL, **changes)


def test_tensorboard_gets_the_numbers_of_a_run_and_of_its_resumption(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WHITEBENCH_SINKS", "tensorboard")
    run = _run()
    with pytest.raises(KeyboardInterrupt):
        _log_and_stop(run)
    with _run() as run:
        run.rewind(20)
        run.log(step=30, loss=0.5)
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("loss")] == [
        (10, 0.1),
        (20, 0.05),
        (30, 0.5),
    ]
    assert len(read_metrics(run.folder)) == 3


def _log_and_stop(run: Run) -> None:
    with run:
        for step in (10, 20, 30):
            run.log(step=step, loss=1.0 / step, note="text", bad=float("nan"))
        raise KeyboardInterrupt


class _Wandb(SimpleNamespace):
    """Stands for the package, and fails at the third line."""

    def __init__(self) -> None:
        super().__init__(logged=[], given={}, finished=False)

    def init(self, **given: Any) -> "_Wandb":
        self.given = given
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        if step == 3:
            raise ConnectionError("the service is gone")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> _Wandb:
    made = _Wandb()
    monkeypatch.setitem(sys.modules, "wandb", made)  # type: ignore[arg-type]
    made.__spec__ = object()
    monkeypatch.setenv("WHITEBENCH_SINKS", "wandb")
    return made


def test_weights_and_biases_gets_the_run_by_its_id(runs: Path, wandb: _Wandb) -> None:
    with _run() as run:
        run.log(step=1, loss=2.0)
    assert (wandb.given["id"], wandb.given["config"], wandb.given["resume"]) == (run.id, {"epochs": 2}, "allow")
    assert wandb.logged == [(1, {"loss": 2.0})]
    assert wandb.finished


def test_a_sink_that_fails_is_named_once_and_the_run_goes_on(
    runs: Path, wandb: _Wandb, capsys: pytest.CaptureFixture[str]
) -> None:
    with _run() as run:
        for step in (1, 2, 3, 4):
            run.log(step=step, loss=1.0)
    assert [step for step, _ in wandb.logged] == [1, 2]
    assert capsys.readouterr().err == (
        "warning: wandb gets no more metrics of this run: ConnectionError: the service is gone\n"
    )
    record = read_record(run.folder)
    assert record is not None
    assert (record.status, len(read_metrics(run.folder))) == ("done", 4)


@pytest.mark.parametrize(
    ("names", "said"),
    [("tensorbord", "unknown sink 'tensorbord'; did you mean 'tensorboard'"), ("wandb", "pip install wandb")],
)
def test_a_sink_that_cannot_be_opened_is_refused_before_the_work(
    runs: Path, monkeypatch: pytest.MonkeyPatch, names: str, said: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    monkeypatch.setenv("WHITEBENCH_SINKS", names)
    with pytest.raises(UserError, match=said), _run():
        pass
    assert not runs.exists()


# --- energy ---------------------------------------------------------------------------------------------------------


def test_energy_is_summed_over_restarts(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Meter:
        def __init__(self, gpus: int) -> None: ...

        def kwh(self) -> float:
            return 0.25

    monkeypatch.setattr("whitebench.records.EnergyMeter", Meter)
    with pytest.raises(KeyboardInterrupt), _run():
        raise KeyboardInterrupt
    with _run() as run:
        pass
    record = read_record(run.folder)
    assert record is not None
    assert record.cost["energy_kwh"] == 0.5
