"""One file per method; adding a method is adding a file, here or in a folder that $WHITEBENCH_METHODS names."""

import os

__path__ = [*__path__, *filter(None, os.environ.get("WHITEBENCH_METHODS", "").split(os.pathsep))]
