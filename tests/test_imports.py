"""The structure of the code by its imports: packages form layers, and no files import each other in a circle."""

import grimp
import networkx
import pytest

LAYERS = ("slurm", "results", "transfer", "pretrain", "whitebench")
"""Top to bottom: a package imports only those below it."""


@pytest.fixture(scope="module")
def imports() -> "networkx.DiGraph[str]":
    """An edge for each import of one of our modules by another, also those within functions and for type checking."""
    graph = grimp.build_graph(*LAYERS, cache_dir=None)
    edges = [(module, target) for module in graph.modules for target in graph.find_modules_directly_imported_by(module)]
    return networkx.DiGraph(edges)


def test_packages_import_only_those_below_them(imports: "networkx.DiGraph[str]") -> None:
    level = {package: number for number, package in enumerate(LAYERS)}
    upward = [
        f"{module} -> {target}"
        for module, target in imports.edges
        if level[target.partition(".")[0]] < level[module.partition(".")[0]]
    ]
    assert not upward


def test_no_files_import_each_other_in_a_circle(imports: "networkx.DiGraph[str]") -> None:
    circles = [sorted(group) for group in networkx.strongly_connected_components(imports) if len(group) > 1]
    assert not circles


def test_the_graph_is_whole(imports: "networkx.DiGraph[str]") -> None:
    """The tests above would pass on an empty graph."""
    assert imports.has_edge("pretrain.train", "pretrain.recipe")
    assert imports.has_edge("results.leaderboards.stale", "transfer.protocol")  # within a function
    assert imports.number_of_nodes() > 100
