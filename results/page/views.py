"""What augmentation makes of images: a contact sheet for each distinct data section of the pretrainings' configs."""

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from results.page.pictures import Picture, PictureBudget
from results.page.run_details import Detail
from whitebench.errors import UserError

if TYPE_CHECKING:
    from pretrain.recipe_sections import Data

IMAGES = 4
"""On a contact sheet."""

MOST_VIEWS, LONGEST_SIDE = 24, 512
"""Of an image, and pixels of a view, on a contact sheet."""


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
        if problem := _why_not(recipe.data):
            return problem
        with tempfile.TemporaryDirectory() as folder:
            sheet = Path(folder, "views.jpg")
            write_contact_sheet(recipe, sheet, images=IMAGES)
            return sheet.read_bytes()
    except UserError as error:
        return str(error)
    except Exception as error:  # a damaged dataset can raise anything, and is no reason to have no page
        return f"views cannot be drawn ({type(error).__name__}: {error})"


def _why_not(data: "Data") -> str:
    """Why views of a record's `data` section are not drawn; "" where they are. Anybody may have written the record."""
    if not re.fullmatch(r"\w[\w.-]*", data.dataset):
        return f"views of '{data.dataset[:80]}' are not drawn: not the name of a dataset in the data folder"
    sides = [group.size for group in data.views for _ in range(min(group.count, MOST_VIEWS + 1))]
    if len(sides) > MOST_VIEWS or max(sides, default=0) > LONGEST_SIDE:
        return f"views of '{data.dataset}' are not drawn: more than {MOST_VIEWS}, or of more than {LONGEST_SIDE} pixels"
    return ""
