"""Recipes are loaded strictly: what is wrong is named, with the nearest right thing."""

from pathlib import Path

import pytest

from pretrain.recipe import Recipe, load, recipe_names
from whitebench.config import parse_override, set_dotted
from whitebench.errors import UserError
from whitebench.hashing import run_id


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_names_its_source(name: str) -> None:
    recipe = load(name)
    assert isinstance(recipe, Recipe)
    assert recipe.name == name
    if not name.startswith("sample/"):
        assert recipe.paper.source
        assert recipe.paper.reported.keys() == recipe.paper.tolerance.keys()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.temprature=0.1"], "method.temprature: unknown key; did you mean 'temperature'?"),
        (["optimizer.learning_rate=1"], "optimizer.learning_rate: unknown key"),
        (["optimizr.lr=1"], "optimizr: unknown key; did you mean 'optimizer'?"),
        (["data.views.0.sise=3"], "data.views.0.sise: unknown key; did you mean 'size'?"),
        (["schedule.epochs=many"], "schedule.epochs: should be a whole number"),
        (["schedule.epochs=1.5"], "schedule.epochs: should be a whole number"),
        (["precision=fp8"], "precision: input should be 'fp32', 'bf16' or 'fp16'"),
        (["method.name=simclrr"], "unknown method 'simclrr'; did you mean 'simclr'"),
        (["batch=127", "world_size=2"], "batch: 127 is not divisible by world_size=2"),
        (["batch=0"], "batch: input should be greater than 0, not 0"),
        (["data.colour.blur_p=[0.1,0.2,0.3]"], "data.colour.blur_p: 3 values for 2 views"),
        (["data.colour.gray_p=1.5"], "data.colour.gray_p: input should be less than or equal to 1, not 1.5"),
        (["data.views.0.scale=[0.9,0.2]"], "data.views.0.scale: the first value should not exceed the second"),
        (["batch=true"], "simclr: batch: true and false are not numbers, not true"),
        (["data.colour.jitter=[0.4,true,0.4,0.1]"], "data.colour.jitter: true and false are not numbers"),
        (["paper.reported.linear_top1=true"], "paper.reported: true and false are not numbers"),
        (["batch=1.5"], "batch: should be a whole number"),
        (["schedule.epochs=1:30"], "schedule.epochs: should be a whole number"),
        (["schedule.epochs=-3"], "schedule.epochs: input should be greater than or equal to 0, not -3"),
        (["schedule.epochs=0"], "schedule.epochs: at least 1, not 0"),
        (["optimizer.lr=.nan"], "optimizer.lr: not readable as YAML: '.nan' is not a finite number"),
        (["optimizer.lr=-0.1"], "optimizer.lr: input should be greater than 0"),
        (["optimizer.lr=0", "optimizer.lr_1d=0.1"], "optimizer.lr: input should be greater than 0"),
        (["optimizer.lr_batch=0"], "optimizer.lr_batch: input should be greater than 0"),
        (["optimizer.momentum=1.5"], "optimizer.momentum: input should be less than 1"),
        (["data.views.0.ratio=[0,1]"], "data.views.0.ratio.0: input should be greater than or equal to 0.01"),
        (["data.views.0.ratio=[2,1]"], "data.views.0.ratio: the first value should not exceed the second"),
        (["data.colour.jitter=[0,0,0,0.9]"], "data.colour.jitter.3: input should be less than or equal to 0.5"),
        (["data.colour.gray_p=[0.1,1.5]"], "data.colour.gray_p.1: input should be less than or equal to 1"),
        (["data.colour.solarize_threshold=300"], "data.colour.solarize_threshold: input should be less than or equal"),
        (["seed=18446744073709551615"], "seed: input should be less than or equal to 4294967295"),
        (["data.dataset=1.10"], "data.dataset: a text that looks like a number needs quotes"),
        (["evaluation.resize=3"], "evaluation.resize: 3 is smaller than the crop of 32 pixels"),
        (["schedule.warmup_epochs=31"], "schedule.warmup_epochs: 31 of 30 epochs"),
        (["world_size=0"], "world_size: input should be greater than 0"),
        (["machine.workers=0"], "machine.workers: input should be greater than 0"),
        (["monitor.knn_images=0"], "monitor.knn_images: input should be greater than 0"),
        (["data.views.7.size=3"], "data.views.7.size: no such entry in a list of 1"),
        (["seed"], "overrides look like key=value"),
        (["batch.size=3"], "'batch' is a value, not a section"),
    ],
)
def test_a_fault_is_named_with_its_place(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load("sample/simclr", overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_steps_before_the_start_of_a_shortened_training_are_refused() -> None:
    with pytest.raises(UserError, match=r"schedule.steps: -50 from the end of 20 epochs is before their start"):
        load("cifar10/cwrgp-2view", ["schedule.epochs=20"])
    assert load("cifar10/cwrgp-2view", ["schedule.epochs=20", "schedule.steps=[-2,-1]"]).schedule.epochs == 20


@pytest.mark.parametrize(
    ("name", "key"),
    [("pcl", "warmup_epochs"), ("pauc", "warmup_epochs"), ("dino", "frozen_epochs"), ("swav", "queue_epoch")],
)
def test_a_training_too_short_for_a_part_of_its_method_is_refused(name: str, key: str) -> None:
    assert load(f"sample/{name}", ["schedule.epochs=5"]).schedule.epochs == 5
    with pytest.raises(UserError, match=rf"method.{key}: 5 of 5 epochs, so that a part of the method is never trained"):
        load(f"sample/{name}", ["schedule.epochs=5", f"method.{key}=5"])


def test_whole_numbers_are_names_of_datasets_too() -> None:
    assert load("sample/simclr", ["data.dataset=2012"]).data.dataset == "2012"
    assert load("sample/simclr", ["batch=1e3"]).batch == 1000


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'sample/simclr'"):
        load("sample/simclrr")


def test_overrides_are_read_as_yaml() -> None:
    assert parse_override("a.b=[1, 2]") == ("a.b", [1, 2])
    assert parse_override("a=1e-3") == ("a", 1e-3)
    assert load("sample/simclr", ["optimizer.lr=1e-3"]).optimizer.lr == 1e-3


def test_set_dotted_walks_into_lists() -> None:
    tree = {"views": [{"size": 1}, {"size": 2}]}
    set_dotted(tree, "views.1.size", 5)
    assert tree["views"][1]["size"] == 5


def test_identity_leaves_out_what_does_not_change_the_weights() -> None:
    plain = load("sample/intl")
    same = load("sample/intl", ["machine.workers=7", "monitor.knn_every=0", "evaluation.knn=dino-20", "paper.title=x"])
    other = load("sample/intl", ["seed=1"])
    assert plain.identity() == same.identity()
    assert plain.identity() != other.identity()
    assert plain.identity()["method"]["name"] == "intl"


def test_a_recipe_may_extend_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("extends: sample/cwrgp\nmethod: {name: simclr}\nschedule: {epochs: 5}\n")
    Path("other.yaml").write_text("extends: mine.yaml\nbatch: 64\n")
    base, mine, other = load("sample/cwrgp"), load("mine.yaml"), load("other.yaml")
    assert (mine.name, mine.method_name, mine.schedule.epochs) == ("mine", "simclr", 5)
    assert (mine.data, mine.optimizer, mine.schedule.warmup_epochs) == (base.data, base.optimizer, 1)
    assert (other.batch, other.schedule) == (64, mine.schedule)
    Path("folder").mkdir()
    Path("folder/other.yaml").write_text("extends: sample/intl\nbatch: 32\n")
    Path("folder/heir.yaml").write_text("extends: other.yaml\n")
    assert load("folder/heir.yaml").batch == 32  # what lies beside it, not in the working folder
    for extends, message in (("[a, b]", "is the name of one recipe"), ("3", "is the name of one recipe")):
        Path("wrong.yaml").write_text(f"extends: {extends}\n")
        with pytest.raises(UserError, match=message):
            load("wrong.yaml")
    Path("x.yaml").mkdir()
    with pytest.raises(UserError, match=r"x.yaml: a folder, not a YAML file"):
        load("x.yaml")
    Path("mine.yaml").write_text("extends: other.yaml\n")
    with pytest.raises(UserError, match=r"circle: mine.yaml -> other.yaml -> mine.yaml"):
        load("mine.yaml")
    Path("mine.yaml").write_text("extends: sample/cwrg\n")
    with pytest.raises(UserError, match=r"unknown recipe 'sample/cwrg'; did you mean 'sample/cwrgp'"):
        load("mine.yaml")


def test_no_two_recipes_are_one_run() -> None:
    """Its record would bear the name of the one that ran first, and the tables would miss the other."""
    names: dict[str, list[str]] = {}
    for name in recipe_names():
        recipe = load(name)
        names.setdefault(run_id(recipe.label, recipe.identity()), []).append(name)
    assert [same for same in names.values() if len(same) > 1] == []
