"""A wrong launch of several processes is one line that says what to type."""

import pytest

from pretrain.distributed import World
from whitebench.errors import UserError

VARIABLES = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        ({}, 1, "2 process\\(es\\) were started; e.g. world_size=2 to train on all of them, or torchrun"),
        ({"WORLD_SIZE": "abc"}, 2, "not a number: WORLD_SIZE='abc'"),
        ({"WORLD_SIZE": "-2"}, 2, "not a number: WORLD_SIZE='-2'"),
        ({"RANK": ""}, 2, "not a number: RANK=''"),
        ({"MASTER_PORT": "http"}, 2, "not a number: MASTER_PORT='http'"),
        ({"RANK": "2"}, 2, "RANK=2 of WORLD_SIZE=2"),
        ({"LOCAL_RANK": None}, 2, "LOCAL_RANK not set"),
    ],
)
def test_wrong_variables_are_named(
    changes: dict[str, str | None], world_size: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (VARIABLES | changes).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        World.join(world_size, "cpu")


def test_one_process_is_told_how_to_start_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        UserError, match=r"world_size=2, but 1 process\(es\) were started; e.g. torchrun --nproc-per-node 2"
    ):
        World.join(2, "cpu")
