"""Checks before training that several methods share."""

from pretrain.distributed import world_size
from whitebench.errors import UserError


def check_images(name: str, batch: int, what: str, least: int = 2) -> None:
    """Raises `UserError` where `batch` images per process are fewer than `least` in all: too few for `what`."""
    if batch * world_size() < least:
        raise UserError(f"{name}: {what} needs at least {least} images, not {batch * world_size()} (batch)")
