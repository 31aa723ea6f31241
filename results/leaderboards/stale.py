"""What has changed in this checkout since a run: the source files that its numbers depend on, and its protocol.

This alone of what tables say depends on the checkout that aggregates. So it has a column of its own, `stale`.
`aggregate.py --check` fails where it is not empty. Changes that are known to change no number make nothing stale: see
`equal_code`.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import pandas as pd

from results.leaderboards.equal_code import newest_equals
from results.leaderboards.run_table import PRETRAIN, at, flat, text
from whitebench.code_hash import OWN_METHODS, code_files
from whitebench.errors import UserError
from whitebench.hashing import canonical
from whitebench.records import Record

UNKNOWN = "code unknown"
"""Of a run whose record names no source files: it was made before records did."""

NAMED = 3
"""Changed files are named up to this many, then counted."""

WORDS = ("title", "source")
"""Of a protocol: they say where it is from, and change no result."""


def stale(runs: pd.DataFrame, by: list[str], texts: Mapping[str, str]) -> pd.Series:
    """Of each experiment (group of `by`): "", or what has changed since one of its runs, e.g. "pretrain/optim.py".

    `texts` holds the JSON behind the hashes in `eval_config`, `code` and `pretrain_code`. An evaluation of a checkpoint
    that this suite did not train depends on no pretraining code.
    """
    changed: dict[tuple[str, ...], dict[str, None]] = {}
    others = ("stage", "protocol", "eval_config", "code", "pretrain_code", "method", "pretrain_status")
    columns = list(dict.fromkeys([*by, *others]))
    for record in runs[columns].drop_duplicates().to_dict("records"):
        row = {str(name): str(value) for name, value in record.items()}
        causes = changed.setdefault(tuple(row[name] for name in by), {})
        causes |= dict.fromkeys(_changed_code(row["stage"], "", row["code"], texts))
        if row["pretrain_status"] not in ("foreign", "missing"):
            causes |= dict.fromkeys(_changed_code(PRETRAIN, row["method"], row["pretrain_code"], texts))
        if protocol_changed(row["stage"], row["protocol"], texts.get(row["eval_config"], "{}")):
            causes["protocol"] = None
    cells = {key: _listed(list(causes)) for key, causes in changed.items()}
    index = pd.MultiIndex.from_tuples(cells, names=by)
    return pd.Series(list(cells.values()), index=index, dtype=object)


def stale_recipes(records: Iterable[Record]) -> dict[str, str]:
    """By recipe, what has changed since one of its records, as the cells of `stale`; recipes without are left out."""
    changed: dict[str, dict[str, None]] = {}
    for record in records:
        causes = changed.setdefault(text(record.cell.get("recipe")) or record.id, {})
        code = json.dumps(record.code) if isinstance(record.code, dict) and record.code else ""
        method = text(at(record.config, "method", "name")) or "" if record.stage == PRETRAIN else ""
        causes |= dict.fromkeys(_changed_code(record.stage, method, code, {code: code}))
        protocol = text(at(record.config, "protocol", "name")) or ""
        if record.stage != PRETRAIN and protocol_changed(record.stage, protocol, json.dumps(flat(record.config))):
            causes["protocol"] = None
    return {recipe: _listed(list(causes)) for recipe, causes in changed.items() if causes}


def changed_since(cell: str) -> str:
    """A cell of the column `stale` as a sentence."""
    return cell if cell == UNKNOWN else f"{cell} changed since"


def _changed_code(stage: str, method: str, digest: str, texts: Mapping[str, str]) -> list[str]:
    """The files that differ between the code of a run and that of this checkout."""
    if not digest:
        return [UNKNOWN]
    return list(_differences(texts.get(digest, "{}"), tuple(_code_now(stage, method).items())))


@cache
def _code_now(stage: str, method: str) -> dict[str, str]:
    return code_files(stage, method or None)


@cache
def _differences(then: str, now: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    before, after = newest_equals(json.loads(then)), dict(now)
    changed = (name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name))
    # a method outside of the suite cannot be compared where its folder is not known
    return tuple(name for name in changed if name in after or not name.startswith(OWN_METHODS))


def _listed(causes: list[str]) -> str:
    more = f"; and {len(causes) - NAMED} more files" if len(causes) > NAMED else ""
    return "; ".join(causes[:NAMED]) + more


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
    """Flat; imported here because tables need the other packages for nothing else."""
    from pretrain.evaluate.protocols import PROTOCOLS, find_protocol
    from transfer.protocol import load_protocol, protocol_names

    if stage != "detect" and stage not in PROTOCOLS:
        return None
    if stage == "detect" and name not in protocol_names():  # that of a record may be the path of any file
        return None
    try:
        protocol: Any = load_protocol(name).determines if stage == "detect" else canonical(find_protocol(stage, name))
    except UserError:
        return None
    return flat(protocol)
