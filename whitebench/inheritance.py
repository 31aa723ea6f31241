"""YAML files that may extend each other (recipes, detection protocols), read into one mapping each."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whitebench.errors import UserError, nearest, printable
from whitebench.yaml import read_yaml

EXTENDS = "extends"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Library:
    """The files of one kind that the suite ships, by their names; users name files of their own by path."""

    kind: str
    """For messages: "recipe", "protocol"."""
    folder: Path
    replaced: tuple[str, ...] = ()
    """Sections that replace those of the extended file as a whole; others are merged key by key."""
    nested: bool = False
    """Whether mappings within sections are merged key by key, too, at every depth."""

    def names(self) -> list[str]:
        """Of all files, without suffix, e.g. "cifar10/intl"."""
        return sorted(path.relative_to(self.folder).with_suffix("").as_posix() for path in self.folder.rglob("*.yaml"))

    def read(self, name: str) -> dict[str, Any]:
        """The content of a file of this library, or of the path of any YAML file, with what it extends.

        The key "name" is never inherited.

        Raises:
            UserError: unknown file (the nearest are named), not a mapping of sections, `extends` that is not the name
                of one other file, or that leads back to the file itself.
        """
        return self._merged(name, relative_to=Path(), heirs={})

    def _merged(self, name: str, relative_to: Path, heirs: dict[Path, str]) -> dict[str, Any]:
        """`heirs` are the files that extend this one, by path, with the names that they were called by."""
        path = self._path(name, relative_to)
        if path in heirs:
            circle = " -> ".join([*heirs.values(), name])
            raise UserError(f"{name}: {EXTENDS}: {self.kind}s extend each other in a circle: {circle}")
        content = self._content(name, path)
        base = content.pop(EXTENDS, None)
        if base is None:
            return content
        if not isinstance(base, str):
            raise UserError(f"{name}: {EXTENDS}: is the name of one {self.kind}, not {base!r}")
        merged = self._merged(base, path.parent, {**heirs, path: name})
        merged.pop("name", None)
        for key, value in content.items():
            inherited: Any = merged.get(key)
            both = isinstance(inherited, dict) and isinstance(value, dict) and key not in self.replaced
            merged[key] = self._section(inherited, value) if both else value
        return merged

    def _section(self, inherited: dict[Any, Any], value: dict[Any, Any]) -> dict[Any, Any]:
        merged = {**inherited, **value}
        for key in inherited.keys() & value.keys() if self.nested else ():
            if isinstance(inherited[key], dict) and isinstance(value[key], dict):
                merged[key] = self._section(inherited[key], value[key])
        return merged

    def _path(self, name: str, relative_to: Path) -> Path:
        """A path is relative to the file that extends it or, if nothing exists there, to the working folder."""
        if not name.endswith(SUFFIXES):
            return self.folder / f"{name}.yaml"
        candidates = (relative_to / name, Path(name))
        return next((path for path in candidates if os.path.exists(path)), candidates[-1]).absolute()

    def _content(self, name: str, path: Path) -> dict[str, Any]:
        try:
            content = read_yaml(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"unknown {self.kind} '{printable(name)}'{nearest(name, self.names())}") from error
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL
            raise UserError(f"{self.kind} '{printable(name)}' cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise UserError(f"{path}: a {self.kind} is a mapping of sections")
        return content
