"""What has changed in this checkout since a run: the method's file, the augmentation, the evaluation's protocol.

This alone of what tables say depends on the checkout that aggregates. So it has a column of its own, `stale`, which
`aggregate.py --check` reports but does not compare.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import pandas as pd

from results.leaderboards.run_table import flat
from whitebench.code_hash import augmentation_hash, method_hash
from whitebench.errors import UserError
from whitebench.hashing import canonical

SHORT = 12
"""Hex digits of a hash in `runs.csv`."""

WORDS = ("title", "source")
"""Of a protocol: they say where it is from, and change no result."""


def stale(runs: pd.DataFrame, by: list[str], settings: Mapping[str, str]) -> pd.Series:
    """Of each experiment (group of `by`): "", or what has changed since one of its runs, e.g. "method; protocol".

    `settings` holds the settings (JSON) behind `eval_config`. What a record does not say counts as unchanged.
    """
    now = {name: (method_hash(name) or "gone")[:SHORT] for name in runs.method.unique()}
    augmentation = augmentation_hash()[:SHORT]
    protocols = set(zip(*(map(str, runs[key]) for key in ("stage", "protocol", "eval_config"))))
    other = {digest: protocol_changed(stage, name, settings.get(digest, "{}")) for stage, name, digest in protocols}
    changed = pd.DataFrame(
        {
            "method": (runs.method_hash != "") & (runs.method_hash != runs.method.map(now)),
            "augmentation": (runs.augmentation_hash != "") & (runs.augmentation_hash != augmentation),
            "protocol": runs.eval_config.map(other),
        }
    )
    any_run = changed.astype(bool).groupby([runs[key] for key in by]).any()
    found = ["; ".join(name for name, holds in zip(any_run.columns, row) if holds) for row in any_run.to_numpy()]
    return pd.Series(found, index=any_run.index)


def protocol_changed(stage: str, name: str, settings: str) -> bool:
    """Whether the protocol that these settings (JSON, flat) hold is another than this checkout has by that name.

    A protocol that this checkout does not know, such as another suite's, cannot have changed.
    """
    now = _protocol(stage, name)
    if now is None:
        return False
    prefix = "protocol."
    then = {key.removeprefix(prefix): value for key, value in json.loads(settings).items() if key.startswith(prefix)}
    return _without_words(then) != _without_words(now)


def _without_words(protocol: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in protocol.items() if key not in WORDS}


@cache
def _protocol(stage: str, name: str) -> dict[str, str] | None:
    """Flat; imported here because tables need the other rooms for nothing else."""
    from pretrain.evaluate.protocols import find_protocol
    from transfer.protocol import load_protocol

    try:
        found: Any = load_protocol(name).determines if stage == "detect" else canonical(find_protocol(stage, name))
    except UserError:
        return None
    return flat(found)
