"""The reference of all recipe keys, with their ranges; `python -m tests.support.recipe_reference` writes it."""

from pathlib import Path

from pretrain import recipe_sections as sections
from pretrain.method import find_method, method_names
from pretrain.recipe import Recipe
from whitebench.reference import markdown_table

PATH = Path(__file__).parents[2] / "docs" / "recipe-reference.md"
INTRODUCTION = """\
# Recipe reference

Every key of a recipe, with the values it takes; `python -m pretrain RECIPE key=value` overrides it by its dotted name.
A value out of its range, NaN, an infinity and an unknown key are refused before anything runs. Generated from the types
in `pretrain/recipe_sections.py` and `pretrain/methods/` by `python -m tests.support.recipe_reference`.
"""
SECTIONS = {
    "": Recipe,
    "data": sections.Data,
    "data.views.0": sections.Views,
    "data.colour": sections.Colour,
    "network": sections.Network,
    "optimizer": sections.Optimizer,
    "schedule": sections.Schedule,
    "evaluation": sections.Evaluation,
    "monitor": sections.Monitor,
    "machine": sections.Machine,
    "paper": sections.Paper,
}


def render() -> str:
    parts = [INTRODUCTION]
    for name, section in SECTIONS.items():
        title = f"`{name}`" if name else "Top level"
        parts.append(f"## {title}\n\n{markdown_table(section, f'{name}.' if name else '')}\n")
    for name in method_names():
        table = markdown_table(find_method(name).Config, "method.")
        parts.append(f"## `method.name={name}`\n\n{table if table.count(chr(10)) > 1 else 'No settings.'}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PATH.write_text(render())
