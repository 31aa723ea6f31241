"""Embeddings at which losses break give every method a finite loss and finite gradients, or one clear error."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.losses.whitening import at_least_float32
from pretrain.method import Encoder, Method, find_method, method_names
from tests.support.method_cases import CASES, Case, embedded
from tests.support.two_ranks import NOT_TRAINED, batch_case, build_case
from whitebench.config import validated
from whitebench.errors import UserError

PIXELS = 48


def noise(images: int, view: int) -> Tensor:
    return torch.randn(images, PIXELS, generator=torch.Generator().manual_seed(view))


def noisy(images: int, view: int, size: float = 0.5) -> Tensor:
    return noise(images, 0) + size * noise(images, view + 1)


USUAL = "as usual"
INPUTS: dict[str, tuple[int, int | None, Callable[[int, int], Tensor]]] = {
    USUAL: (0, None, noisy),
    "fewer images than channels": (6, 48, noisy),
    "more images than channels": (64, 8, noisy),
    "one channel": (16, 1, noisy),
    "two images": (2, None, noisy),
    "near collapse": (0, None, lambda n, v: 1 + 1e-4 * noisy(n, v)),
    "collapse but for rounding": (0, None, lambda n, v: 1 + 1e-7 * noisy(n, v)),
    "all the same": (0, None, lambda n, v: torch.ones(n, PIXELS)),
    "all zero": (0, None, lambda n, v: torch.zeros(n, PIXELS)),
    "views the same": (0, None, lambda n, v: noise(n, 0)),
    "huge": (0, None, lambda n, v: 1e6 * noisy(n, v)),
    "tiny": (0, None, lambda n, v: 1e-12 * noisy(n, v)),
}
"""Images (0: as many as the case has), channels (None: likewise), and the pixels [n, PIXELS] of a view."""


def build(case: Case, width: int) -> Method[object]:
    """The method on an encoder that hands on pixels: its embeddings are `width` orthonormal combinations of them."""
    torch.manual_seed(0)
    projector: nn.Module = nn.Linear(PIXELS, width, bias=False)
    nn.init.orthogonal_(projector.weight)
    if not case.projector:
        projector, width = nn.Identity(), PIXELS
    encoder = Encoder(nn.Flatten(), projector, PIXELS, width)
    kind = find_method(case.name)
    return kind(encoder, validated(kind.Config, case.options, where="method"))


FIRST = [next(case for case in CASES if case.name == name) for name in dict.fromkeys(case.name for case in CASES)]
"""One case of each method; all of them take minutes."""


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.id)
@pytest.mark.parametrize("kind", [USUAL, "fewer images than channels", "one channel", "near collapse", "all the same"])
def test_hard_inputs_give_a_finite_loss_and_gradients_or_one_clear_error(case: Case, kind: str) -> None:
    assert_finite_or_refused(case, kind, narrow=kind in ("near collapse", "all the same"))


@pytest.mark.long
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_so_do_all_variants_and_inputs(case: Case, kind: str, narrow: bool) -> None:
    assert_finite_or_refused(case, kind, narrow)


def assert_finite_or_refused(case: Case, kind: str, narrow: bool) -> None:
    """`narrow`: under autocast to bfloat16."""
    images, width, pixels = INPUTS[kind]
    images = images or case.images
    views = [pixels(images, view).view(images, 3, 4, 4) for view in range(case.views)]
    batch = Batch(views, torch.arange(images), torch.arange(images) % 4)
    try:
        method = build(case, width or case.width)
        method.check(images, case.views)
        method.check_dataset(images, 4)
        method.prepare_epoch(0, lambda encoder: embedded(encoder, views[0]))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            step = method(batch)
    except UserError as error:
        message = str(error)
    else:
        step.loss.backward()
        assert step.loss.isfinite()
        assert step.loss.dtype == torch.float32
        for name, parameter in method.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name
        return
    assert kind != USUAL
    assert "\n" not in message


@pytest.mark.parametrize("pixels", [lambda x: x, torch.ones_like, torch.zeros_like, lambda x: 1e6 * x])
def test_mae_whose_loss_is_of_pixels_is_finite(pixels: Callable[[Tensor], Tensor]) -> None:
    method, batch = build_case("vit-mae"), batch_case("vit-mae")
    loss = method(Batch([pixels(view) for view in batch.views], batch.index, batch.label)).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_every_method_is_tried() -> None:
    assert {case.name for case in CASES} | NOT_TRAINED | {"mae"} == set(method_names())


def test_the_usual_input_gives_the_embeddings_their_spread() -> None:
    method = build(CASES[0], 48)
    z = at_least_float32(method.encoder(noisy(16, 0).view(16, 3, 4, 4)).z)
    assert float(torch.linalg.matrix_norm(z)) == pytest.approx(float(torch.linalg.matrix_norm(noisy(16, 0))), rel=1e-4)
