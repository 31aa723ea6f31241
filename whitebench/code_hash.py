"""The source files that a stage's numbers depend on, and their hashes: a later change of one makes its rows stale.

They are the stage's entry module and what it imports of this project, directly or not, also within functions.
A file is hashed as its syntax tree without docstrings, comments and the texts of raised errors: those change no number.
Reads source text only; imports none of it.
"""

import ast
import hashlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from whitebench.hashing import plain_hash

ROOT = Path(__file__).parents[1]
PACKAGES = ("pretrain", "transfer")
"""What results come from. `whitebench` (records, locks, messages) and `slurm` (scheduling) compute none of them."""

METHODS = "pretrain/methods"
"""Methods are imported by name when a recipe asks for them, so the import graph has no edge to them."""

OWN_METHODS = "$WHITEBENCH_METHODS"
"""Stands for the folder of a method that is not part of the suite."""

DISPLAY_ONLY = (
    *("pretrain/progress.py", "transfer/progress.py", "transfer/estimate.py", "transfer/pictures.py"),
    *("pretrain/data/loaders/preflight.py",),
)
"""Files that print, draw or check before the start, and from which no number comes."""


class Stage(NamedTuple):
    entry: str
    without: tuple[str, ...] = ()
    """Files that `entry` imports for its other stages; they count only where another file imports them."""


EVALUATE = "pretrain/evaluate"
OWN_FILES = {
    "linear": ("linear", "grid"),
    "knn": ("knn",),
    "semi": ("semi",),
    "finetune": ("finetune",),
    "fewshot": ("fewshot",),
    "voc07": ("voc07",),
    "retrieval": ("retrieval",),
    "robust": ("robust", "linear", "grid"),
}
"""Stage of evaluation -> files of EVALUATE that the dispatching files import for it."""
DISPATCHING = (f"{EVALUATE}/stage.py", f"{EVALUATE}/evaluation_data.py")


def _evaluation(stage: str) -> Stage:
    others = {name for files in OWN_FILES.values() for name in files} - set(OWN_FILES[stage])
    return Stage(DISPATCHING[0], tuple(f"{EVALUATE}/{name}.py" for name in sorted(others)))


STAGES = {
    "pretrain": Stage("pretrain/train.py"),
    **{stage: _evaluation(stage) for stage in OWN_FILES},
    "convert": Stage("transfer/stages.py", ("transfer/detect.py",)),
    "detect": Stage("transfer/stages.py"),
}


def code_files(stage: str, method: str | None = None) -> dict[str, str]:
    """The files behind a stage's result, relative to the project, each with 12 hex digits of its hash.

    {} for a stage that is not of this suite.

    Args:
        method: for `pretrain`, the method's name; its file and what that imports count, too.
    """
    if stage not in STAGES:
        return {}
    entry, without = STAGES[stage]
    method_file = f"{METHODS}/{method}.py"
    inside = method is not None and method.isidentifier() and (ROOT / method_file).is_file()
    external_file = None if inside or method is None else _own_method(method)
    outside = [] if external_file is None else list(_imports(external_file))
    entries = [entry, *([method_file] if inside else []), *outside]
    names = _imported(entries, lambda name, importer: importer in (entry, *DISPATCHING) and name in without)
    files = {name: _tree_hash(ROOT / name) for name in sorted(names)}
    if external_file is not None:
        files[f"{OWN_METHODS}/{external_file.name}"] = _tree_hash(external_file)
    return files


def files_behind(entry: str) -> dict[str, str]:
    """The file `entry` of the project and all that it imports, directly or not, each with 12 hex digits of its hash."""
    return {name: _tree_hash(ROOT / name) for name in sorted(_imported([entry], lambda name, importer: False))}


def _own_method(method: str) -> Path | None:
    """The file of a method that lies in a folder of $WHITEBENCH_METHODS; None where there is none."""
    folders = filter(None, os.environ.get("WHITEBENCH_METHODS", "").split(os.pathsep))
    files = (Path(folder) / f"{method}.py" for folder in folders) if method.isidentifier() else ()
    return next((file for file in files if file.is_file()), None)


def code_hash(files: dict[str, str]) -> str:
    """One hash (hex) of what `code_files` returns; "" for no files."""
    return plain_hash(files) if files else ""


def _imported(entries: list[str], skips: Callable[[str, str], bool]) -> set[str]:
    """`entries` and all files of the project that they import, directly or not, where not skips(file, importer)."""
    pending, names = list(entries), set[str]()
    while pending:
        importer = pending.pop()
        if importer not in names:
            names.add(importer)
            imports = _imports(ROOT / importer)
            pending += (name for name in imports if name not in DISPLAY_ONLY and not skips(name, importer))
    return names


def _imports(path: Path) -> tuple[str, ...]:
    """The files of PACKAGES that a file imports; those of its `if TYPE_CHECKING` blocks never run, and do not count."""
    return _parsed(path)[0]


def _tree_hash(path: Path) -> str:
    """12 hex digits of the hash of a file's syntax tree."""
    return _parsed(path)[1]


def _parsed(path: Path) -> tuple[tuple[str, ...], str]:
    """A file's imports and hash; a cached answer counts only while its time and size stay."""
    state = path.stat()
    return _parse(path, state.st_mtime_ns, state.st_size, ROOT)


@cache
def _parse(path: Path, modified: int, size: int, root: Path) -> tuple[tuple[str, ...], str]:
    tree = ast.parse(path.read_bytes())
    inside = path.is_relative_to(root)
    package = path.relative_to(root).parts[:-1] if inside else tuple(METHODS.split("/"))  # as which it is imported
    modules = {module for node in _running_imports(tree) for module in _modules(node, package)}
    files = {file for module in modules if module.partition(".")[0] in PACKAGES for file in _files_of(module, root)}
    return tuple(sorted(files)), hashlib.sha256(_text(tree).encode()).hexdigest()[:12]


def _running_imports(tree: ast.AST) -> Iterator[ast.stmt]:
    """All import statements below `tree`, without those in blocks that only type checkers read."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and _names_type_checking(node.test):
            pending += node.orelse
        elif not isinstance(node, ast.expr):  # an expression holds no statement
            pending += ast.iter_child_nodes(node)


def _names_type_checking(test: ast.expr) -> bool:
    """Of `TYPE_CHECKING` and `typing.TYPE_CHECKING`."""
    return getattr(test, "id", None) == "TYPE_CHECKING" or getattr(test, "attr", None) == "TYPE_CHECKING"


def _modules(node: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    """The modules that an import statement in `package` may name."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else ()
        module = ".".join([*base, *([node.module] if node.module else [])])
        yield module
        yield from (f"{module}.{alias.name}" for alias in node.names)  # a name may be a module of its own


def _files_of(module: str, root: Path) -> Iterator[str]:
    """A module's file, and the `__init__.py` of each package around it, which run first."""
    parts = module.split(".")
    candidates = [f"{'/'.join(parts)}.py", *(f"{'/'.join(parts[:n])}/__init__.py" for n in range(1, len(parts) + 1))]
    return (name for name in candidates if (root / name).is_file())


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
NO_MEANING = ("ctx", "kind", "type_comment")
"""Fields of a syntax tree that change nothing that runs."""


def _text(value: object) -> str:
    """A syntax tree as text that is the same in every version of Python: empty fields are left out."""
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if not isinstance(value, ast.AST):
        return repr(value)
    if isinstance(value, ast.Raise):
        value = ast.Raise(exc=_without_arguments(value.exc), cause=None)
    parts = []
    for name in value._fields:
        field = getattr(value, name, None)
        if name == "body" and isinstance(value, DOCUMENTED):
            field = [node for node in value.body if not _is_text(node)]
        if name not in NO_MEANING and field is not None and field != []:
            parts.append(f"{name}={_text(field)}")
    return f"{type(value).__name__}({','.join(parts)})"


def _is_text(node: ast.stmt) -> bool:
    """Whether a statement is a docstring, of a module, class, function or field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _without_arguments(error: ast.expr | None) -> ast.expr | None:
    return error.func if isinstance(error, ast.Call) else error
