"""python benchmarks/statistics.py: false alarms and power of the leaderboards, see false_alarms.py.

The scripts of this folder have it first on their path. So whatever imports `statistics` there, meaning the standard
library's, finds this file; it then puts that module in its own place.
"""

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

if __name__ == "__main__":
    from false_alarms import main

    main()
else:
    elsewhere = [folder for folder in sys.path if Path(folder or ".").resolve() != Path(__file__).resolve().parent]
    spec = PathFinder.find_spec(__name__, elsewhere)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[__name__] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
