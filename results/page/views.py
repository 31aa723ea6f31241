"""What augmentation makes of images: a contact sheet for each distinct data section of the pretrainings' configs."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from results.page.pictures import Picture, PictureBudget
from results.page.run_details import Detail
from whitebench.errors import UserError

IMAGES = 4
"""On a contact sheet."""


@dataclass(frozen=True)
class Sheet:
    recipes: str
    picture: Picture


def sheets(details: Sequence[Detail], budget: PictureBudget) -> tuple[list[Sheet], list[str]]:
    """The sheets, and a line for each that could not be made."""
    recipes: dict[str, dict[str, None]] = {}
    for detail in details:
        data = json.dumps(detail.record.config.get("data"), sort_keys=True)
        recipes.setdefault(data, {})[detail.recipe] = None
    pictures, problems = [], dict[str, None]()
    for data, names in recipes.items():
        result = _sheet(data)
        if isinstance(result, str):
            problems[result] = None
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "views.jpg")
                path.write_bytes(result)
                pictures.append(Sheet(", ".join(names), budget.add(path, Path(folder))))
    return pictures, list(problems)


@cache
def _sheet(data: str) -> bytes | str:
    """JPEG bytes, or why there are none: the dataset is not on this machine, or the config is not of this suite."""
    from pretrain.data.show import write_contact_sheet
    from pretrain.recipe import recipe_of

    try:
        recipe = recipe_of(
            {"name": "views", "method": {"name": "random"}, "data": json.loads(data)}, where="its config"
        )
        with tempfile.TemporaryDirectory() as folder:
            sheet = Path(folder, "views.jpg")
            write_contact_sheet(recipe, sheet, images=IMAGES)
            return sheet.read_bytes()
    except UserError as error:
        return str(error)
