"""What holds of all methods and their losses; their exact values are in `test_golden` and in the tests of each."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain import methods
from pretrain.method import Method, find_method, method_names
from pretrain.networks import MomentumCopy
from pretrain.recipe import load
from tests.support.method_cases import CASES, LOSSES, REFUSED, SCALED, Case, build, embeddings
from tests.support.tiny_encoder import batch_of
from whitebench.errors import UserError

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
each_loss = pytest.mark.parametrize("name", LOSSES)


def test_the_methods_are_the_files_of_the_folder() -> None:
    assert {"cwrgp", "intl", "random", "simclr", "supervised"} <= set(method_names())
    assert "similarity" not in method_names()


def test_adding_a_method_is_dropping_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "attract.py").write_text(
        "from pretrain.method import Method, Step\n"
        "from pretrain.losses.similarity import cosine_distance\n"
        "from whitebench.config import strict\n\n"
        "@strict\nclass Config:\n    weight: float = 1.0\n\n"
        "class Attract(Method[Config]):\n"
        "    def forward(self, batch):\n"
        "        a, b = (self.encoder(view).z for view in batch.views)\n"
        "        return Step(self.config.weight * cosine_distance(a, b))\n"
    )
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert "attract" in method_names()
    step = build("attract", {"weight": 2.0})(batch_of(8))
    assert step.loss.requires_grad
    with pytest.raises(UserError, match="did you mean 'attract'"):
        find_method("atract")


def test_a_variant_with_another_methods_config_is_a_method_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = "from pretrain.methods.simclr import Config, SimCLR as _Base\n"
    files = {
        "imported_config": f"{start}class Variant(_Base):\n    pass\n",
        "no_config": "from pretrain.method import Method\nclass Plain(Method):\n    pass\n",
        "own_base": f"{start}class Base(_Base):\n    pass\nclass Final(Base):\n    pass\n",
        "unfinished": "from pretrain.method import Metod\n",
        "two_methods": f"{start}class One(_Base):\n    pass\nclass Two(_Base):\n    pass\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    recipes = {name: load("sample/simclr", {"method": {"name": name}}) for name in list(files)[:3]}
    assert {name: recipe.identity()["method"]["name"] for name, recipe in recipes.items()} == {n: n for n in recipes}
    assert recipes["imported_config"].identity()["method"]["temperature"] == 0.5
    assert load("sample/simclr").method_name == "simclr"
    assert find_method("own_base").__name__ == "Final"
    for name, message in (
        ("unfinished", r"methods/unfinished.py cannot be imported: ImportError.*unfinished.py, line 1"),
        ("two_methods", r"two_methods.py defines several methods: One, Two"),
        ("simclrr", "did you mean 'simclr'"),  # in spite of the files that cannot be read
    ):
        with pytest.raises(UserError, match=message):
            find_method(name)


@every
def test_a_step_gives_every_trainable_parameter_a_finite_gradient(case: Case) -> None:
    method = case.build()
    method.check(case.images, case.views)
    step = method(case.batch())
    step.loss.backward()
    assert step.loss.ndim == 0
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
    assert all(not value.requires_grad and value.ndim == 0 and value.isfinite() for value in step.scalars.values())


@every
def test_only_supervised_looks_at_labels(case: Case) -> None:
    def loss(shift: int) -> float:
        method, batch = case.build(), case.batch()
        torch.manual_seed(7)
        return method(replace(batch, label=batch.label // (1 + shift))).loss.item()

    assert (loss(0) == loss(1)) is not find_method(case.name).uses_labels


@every
def test_draws_repeat_with_torchs_seed(case: Case) -> None:
    seen = []
    for _ in range(2):
        method = case.build()
        torch.manual_seed(1)
        seen.append(method(case.batch()).loss.item())
    assert seen[0] == seen[1]


@every
def test_the_state_holds_all_that_later_steps_need(case: Case, tmp_path: Path) -> None:
    """A method that was saved and loaded goes on with the same bits, also in what it leaves."""

    def step(method: Method[Any], number: int) -> float:
        torch.manual_seed(number)
        method.step, method.epoch, method.progress, method.shared_seed = number, number, number / 4, number
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
        loss: Tensor = method(case.batch()).loss
        loss.backward()
        method.before_update()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    first = case.build()
    step(first, 0)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    expected = [step(first, 1), step(first, 2)]
    resumed = case.build()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [step(resumed, 1), step(resumed, 2)] == expected
    torch.testing.assert_close(resumed.state_dict(), first.state_dict(), rtol=0, atol=0)


@every
def test_bf16_autocast_changes_the_loss_by_rounding_only(case: Case) -> None:
    batch = case.batch(torch.float32)
    seen = []
    for enabled in (False, True):
        method = case.build(torch.float32)
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            step = method(batch)
        assert step.loss.dtype == torch.float32
        step.loss.backward()
        seen.append(step.loss.item())
    assert seen[1] == pytest.approx(seen[0], rel=0.03)


@each_loss
def test_a_loss_is_computed_outside_autocast(name: str) -> None:
    loss, views = LOSSES[name], [view.float() for view in embeddings(16, 96)]
    plain = loss(views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, from_bf16 = loss(views), loss([view.bfloat16() for view in views])
    assert inside.dtype == from_bf16.dtype == torch.float32
    assert float(inside) == float(plain)
    assert float(from_bf16) == pytest.approx(float(plain), rel=0.02, abs=0.02)


@each_loss
def test_a_loss_does_not_depend_on_the_order_of_the_images(name: str) -> None:
    views = embeddings(16, 96, views=3)
    order = torch.randperm(16)
    shuffled = LOSSES[name]([view[order] for view in views])
    assert float(shuffled) == pytest.approx(float(LOSSES[name](views)), rel=1e-10)


@each_loss
def test_a_loss_depends_on_the_scale_of_the_embeddings_only_where_that_is_said(name: str) -> None:
    views = embeddings(16, 96)
    scaled = LOSSES[name]([view * scale for view, scale in zip(views, (1e-3, 1e4))])
    same = float(scaled) == pytest.approx(float(LOSSES[name](views)), rel=1e-9)
    assert same is (name not in SCALED)


EXPORTED = {"resa": "momentum", "dino": "teacher", "simdino": "teacher"}
"""Methods whose sources evaluate the target network; those of the others evaluate the online one."""


@every
def test_a_method_exports_the_encoder_that_its_source_evaluates(case: Case) -> None:
    method = case.build()
    names = list(method.encoders())
    has_target = any(isinstance(module, MomentumCopy) for module in method.modules())
    assert len(names) == 1 + has_target
    assert names[0] == (EXPORTED.get(case.name, "online") if has_target else "online")
    assert method.exported is method.encoders()[names[0]]
    if has_target:
        options = {**case.options, "export": names[1]}
        other = build(case.name, options, projector=case.projector, embedding_dim=case.width)
        assert list(other.encoders()) == names[::-1]


@pytest.mark.parametrize(("name", "options", "images", "views", "message"), REFUSED)
def test_settings_that_cannot_work_are_refused_before_training(
    name: str, options: dict[str, Any], images: int, views: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(name, options, projector=name != "supervised").check(images, views)
