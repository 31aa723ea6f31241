"""Reading the YAML files in which recipes, protocols, sweeps and presets are written."""

import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

from whitebench.errors import UserError


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, parsed once while the file stays as it is: a sweep reads it once a cell.

    Raises:
        FileNotFoundError: there is no such file. UserError: it is no YAML, in one line.
    """
    state = path.stat()
    return pickle.loads(_parsed(path, state.st_mtime_ns, state.st_size))


@lru_cache
def _parsed(path: Path, modified: int, size: int) -> bytes:
    """The content, pickled: of that, a fresh copy is made many times faster than of the content itself."""
    import yaml

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is 10 x faster
        return pickle.dumps(yaml.load(path.read_text(), Loader=loader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
