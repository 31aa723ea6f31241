"""Finds records in folders of runs and keeps what the tables need of them.

Nothing stops it: a record that is half-written, damaged or of another make is named in `faults` and left out. The same
run found twice (folders copied, clusters merged, records published) counts once.
"""

import errno
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from results.leaderboards.cache import Cache, Entry
from results.leaderboards.run_table import (
    HEADLINES,
    METRICS,
    PRETRAIN,
    STAGES,
    TEST_SET,
    UNBOUNDED,
    Facts,
    at,
    code_digest,
    evaluation_facts,
    flat,
    pretrain_facts,
    real,
    setting,
    whole,
)
from whitebench.errors import UserError
from whitebench.files import read_regular
from whitebench.hashing import plain_hash
from whitebench.records import RECORD, Record, parse_record

STATUSES = ("running", "done", "failed", "interrupted")
DEPTH = 3
"""Levels of folders below a root in which runs are looked for: stage, run; one more for several roots together."""


@dataclass(slots=True)
class RunSummary:
    """A record, reduced to what tables need."""

    path: Path
    stage: str
    id: str
    status: str
    rank: tuple[bool, int, str, str]
    """Which of two records of one run counts: a done one, then the earlier root's, then the later."""
    facts: Facts
    outcome: str
    """Hash of what came out: an evaluation's values, a pretraining's weights; "" where it is not known."""


@dataclass
class Collection:
    summaries: dict[tuple[str, str], RunSummary] = field(default_factory=dict)
    """By stage and id."""
    texts: dict[str, str] = field(default_factory=dict)
    """The JSON behind a hash: settings (flat keys) of `config` and `eval_config`, files of `code`, `pretrain_code`."""
    faults: list[str] = field(default_factory=list)
    duplicates: int = 0
    contradicted: set[tuple[str, str]] = field(default_factory=set)
    """Stage and id of runs of which two ended records give different results."""
    conflicts: list[str] = field(default_factory=list)
    """A line for each run of which two ended records give different results."""

    @property
    def evaluations(self) -> list[RunSummary]:
        """Of the backbones that pretrainings end with."""
        return [
            run for run in self.summaries.values() if run.stage in HEADLINES and run.facts.get("kept_epoch") is None
        ]

    @property
    def kept_evaluations(self) -> list[RunSummary]:
        """Of backbones that were kept during pretrainings; they are in no leaderboard."""
        return [run for run in self.summaries.values() if run.facts.get("kept_epoch") is not None]

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """How many there are of each stage and status."""
        return Counter((summary.stage, summary.status) for summary in self.summaries.values())


def collect(roots: Sequence[Path], cache: Cache | None = None) -> Collection:
    """All records below `roots`: folders of runs, stages, or single runs; earlier roots go before later ones.

    `cache` has what was read of them before, and afterwards what was read now.
    """
    collection, cache = Collection(), cache or Cache(None)
    for order, root in enumerate(roots):
        for path in _record_files(root, DEPTH, collection.faults):
            entry = _entry(path, cache)
            if "fault" in entry:
                collection.faults.append(entry["fault"])
            else:
                _add(collection, entry, path, order)
    collection.texts = {digest: cache.texts[digest] for digest in collection.texts}
    cache.save(collection.texts)
    return collection


def _entry(path: Path, cache: Cache) -> Entry:
    """What tables need of the record at `path`, as plain JSON; or {"fault": what is wrong with it}."""
    try:
        state = path.stat()
    except OSError as error:
        return {"fault": f"{path}: not readable ({error.strerror})"}
    cached = cache.get(path, state)
    if cached is not None:
        return cached
    try:
        entry = _reduced(read_proven(path), cache)
    except UserError as error:
        entry = {"fault": str(error)}
    except RecursionError:
        entry = {"fault": f"{path}: not a readable record (nested too deeply)"}
    cache.put(path, state, entry)
    return entry


def _reduced(record: Record, cache: Cache) -> Entry:
    facts: Facts = {}
    if record.stage == PRETRAIN:
        facts = pretrain_facts(record)
    elif record.stage in HEADLINES:
        facts = evaluation_facts(record)
    digest, code = facts.get("config") or facts.get("eval_config"), code_digest(record)
    if digest and digest not in cache.texts:
        cache.texts[digest] = json.dumps(flat(setting(record.config)))
    if code and code not in cache.texts:
        cache.texts[code] = json.dumps(record.code)
    return {
        "stage": record.stage,
        "id": record.id,
        "status": record.status,
        "ended": str(record.ended or ""),
        "facts": facts,
        "outcome": _outcome(record),
        "digests": [value for value in (digest, code if facts else None) if value],
    }


def read_proven(path: Path) -> Record:
    """The record at `path`, with fields of the right types, values that are possible, and the id of its config.

    Raises:
        UserError: naming what is wrong with it.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        regular = error.errno != errno.ENXIO
        raise UserError(f"{path}: {f'not readable ({error.strerror})' if regular else error.strerror}") from error
    record = parse_record(content, path)
    for name in ("config", "cell", "hashes", "data", "metrics", "cost", "environment"):
        if not isinstance(getattr(record, name), dict):
            raise UserError(f"{path}: not a whole record ({name} is not a mapping)")
    if not all(isinstance(value, str) for value in (record.id, record.stage)) or record.status not in STATUSES:
        raise UserError(f"{path}: not a whole record (id, stage or status)")
    for name in ("parents", "earlier"):
        if not isinstance(getattr(record, name), list):
            raise UserError(f"{path}: not a whole record ({name} is not a list)")
    if record.status == "failed" and not record.config:  # as `slurm.worker.leave_failure` writes it
        raise UserError(f"{path}: failed before it began: {record.error}")
    if ESCAPED_SURROGATE in content.lower() and not _encodable(record):
        raise UserError(f"{path}: holds text that is not valid Unicode")
    _check_values(record, path)
    try:
        digest = plain_hash(record.config)[:12]
    except RecursionError as error:
        raise UserError(f"{path}: not a readable record (nested too deeply)") from error
    if not record.id.endswith(f"-{digest}"):
        raise UserError(f"{path}: its id is not that of its config: changed after it was written")
    if os.sep in record.id or not record.id.isprintable() or record.id.startswith("."):
        raise UserError(f"{path}: its id is not a file's name")  # bundles and published records are named by it
    record.command = record.command if isinstance(record.command, str) else ""
    return record


ESCAPED_SURROGATE = b"\\ud"
"""How JSON writes half of a character; two halves in a row are a character, one alone cannot be written to a file."""


def _encodable(record: Record) -> bool:
    try:
        json.dumps(asdict(record), ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _check_values(record: Record, path: Path) -> None:
    """Raises a UserError for percentages outside 0 to 100, for negative costs, and for a test set of no image."""
    for metric in METRICS.get(record.stage, ()):
        value = real(record.metrics.get(metric))
        highest = math.inf if metric in UNBOUNDED else 100
        if value is not None and not 0 <= value <= highest:
            bounds = "below 0" if metric in UNBOUNDED else "not between 0 and 100 per cent"
            raise UserError(f"{path}: {metric} is {value:g}, {bounds}")
    images = whole(at(record.data, *TEST_SET))
    if images is not None and images < 1:
        raise UserError(f"{path}: its test set has {images} images")
    for name, cost in record.cost.items():
        value = real(cost)
        if value is not None and value < 0:
            raise UserError(f"{path}: cost {name} is {value:g}, below 0")


def _add(collection: Collection, entry: Entry, path: Path, order: int) -> None:
    collection.texts.update(dict.fromkeys(entry["digests"], ""))  # filled in at the end, once each
    stage, run, status = entry["stage"], entry["id"], entry["status"]
    rank = (status == "done", -order, entry["ended"], str(path))
    summary = RunSummary(path, stage, run, status, rank, entry["facts"], entry["outcome"])
    before = collection.summaries.get((stage, run))
    collection.duplicates += before is not None
    if before is None or before.rank < rank:
        collection.summaries[stage, run] = summary
    if before is not None and before.outcome and summary.outcome and before.outcome != summary.outcome:
        counts = collection.summaries[stage, run].path
        collection.contradicted.add((stage, run))
        collection.conflicts.append(f"{stage}/{run}: {path} and {before.path} differ; {counts} counts")


def _outcome(record: Record) -> str:
    if record.status != "done":
        return ""
    if record.stage in HEADLINES:
        return plain_hash({metric: record.metrics.get(metric) for metric in METRICS[record.stage]})
    backbone = record.artifacts.get("backbone") if isinstance(record.artifacts, dict) else None
    return str(backbone.get("sha256") or "") if isinstance(backbone, dict) else ""


def _record_files(folder: Path, depth: int, faults: list[str]) -> Iterator[Path]:
    """`run.json` of run folders, and `<stage>/<id>.json` as `--publish` writes them, in the order of their names."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        faults.append(f"{folder}: not readable ({error.strerror})")
        return
    if any(entry.name == RECORD for entry in entries):
        yield folder / RECORD
        return
    if folder.parent.name in STAGES:
        faults.append(f"{folder}: no {RECORD} (half-written?)")
        return
    of_stage = folder.name in STAGES
    if of_stage:
        yield from (Path(entry.path) for entry in entries if entry.name.endswith(".json") and not entry.is_dir())
    for entry in entries if depth else ():
        if not entry.name.startswith(".") and entry.is_dir():
            path = Path(entry.path, RECORD)
            if of_stage and os.path.lexists(path):  # most are such folders, which need not be listed
                yield path
            else:
                yield from _record_files(Path(entry.path), depth - 1, faults)
