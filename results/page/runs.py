"""The report's runs: of each its command, differences to its recipe, environment, log, pictures, evaluations."""

from collections.abc import Sequence
from html import escape
from typing import Any

from results.leaderboards.console import TITLES
from results.leaderboards.leaderboard import Tables
from results.leaderboards.run_table import METRICS, PRETRAIN
from results.page.run_details import Detail, difference, views
from whitebench.errors import UserError

MACHINE = (
    "git",
    "dirty",
    "python",
    "torch",
    "torchvision",
    "numpy",
    "ffcv",
    "detectron2",
    "sal-detectron2",
    "host",
    "device",
)


def runs(tables: Tables, details: Sequence[Detail], with_views: bool) -> str:
    pretrainings = [detail for detail in details if detail.record.stage == PRETRAIN]
    children: dict[str, list[Detail]] = {}
    for detail in details:
        if detail.record.stage != PRETRAIN:
            children.setdefault(str(detail.record.config.get("parent")), []).append(detail)
    known = {detail.record.id for detail in pretrainings}
    orphans = [detail for parent, found in children.items() if parent not in known for detail in found]
    parts = [_run(detail, children.get(detail.record.id, []), with_views) for detail in pretrainings]
    parts += [_run(detail, [], False) for detail in orphans]
    left = tables.runs.parent.nunique() - len(known)
    more = (
        f'<p class="hint">{left} more pretrainings are in the tables; --most shows more.</p>'
        if left > len(orphans)
        else ""
    )
    return (
        f'<p class="hint"><span data-count="#runs details[data-f]"></span></p>{"".join(parts)}{more}' if parts else ""
    )


def _run(detail: Detail, evaluations: Sequence[Detail], with_views: bool) -> str:
    record = detail.record
    title = f"{record.cell.get('recipe')}, seed {record.config.get('seed')}"
    facts = " · ".join(filter(None, (record.id, record.status, _minutes(record.cost), *map(headline, evaluations))))
    blocks = [
        _command(detail.command),
        _difference(detail),
        _definitions("Result", _plain(record.metrics)),
        _definitions("Environment", {key: record.environment[key] for key in MACHINE if key in record.environment}),
        _log(detail),
        _pictures(detail),
        _views(detail) if with_views else "",
        *(_evaluation(evaluation) for evaluation in evaluations),
    ]
    words = f"{title} {record.id} {record.status} {record.stage}"
    return (
        f'<details id="{escape(record.id)}" data-f="{escape(words)}"><summary>{escape(title)} '
        f"<small>{escape(facts)}</small></summary><div class=inner>{''.join(blocks)}</div></details>\n"
    )


def headline(detail: Detail) -> str:
    """E.g. 'linear top-1 77.92'."""
    record = detail.record
    found = [f"{TITLES[name]} {record.metrics[name]:.2f}" for name in TITLES if _number(record.metrics.get(name))]
    return f"{record.stage} {', '.join(found)}" if found else ""


def _evaluation(detail: Detail) -> str:
    record = detail.record
    blocks = [
        _command(detail.command),
        _definitions("Result", _plain({name: record.metrics.get(name) for name in METRICS.get(record.stage, ())})),
        _log(detail),
        _pictures(detail),
    ]
    facts = " · ".join(filter(None, (record.id, record.status, _minutes(record.cost))))
    return (
        f"<details><summary>{escape(headline(detail) or record.stage)} <small>{escape(facts)}</small></summary>"
        f"<div class=inner>{''.join(blocks)}</div></details>"
    )


def _command(command: str) -> str:
    return (
        f'<pre class="command"><code>{escape(command)}</code><button data-copy="{escape(command)}">copy</button></pre>'
    )


def _difference(detail: Detail) -> str:
    found = difference(detail.record)
    if isinstance(found, str):
        return f"<h3>Difference to its recipe</h3><p>{escape(found)}</p>"
    if not found:
        return "<h3>Difference to its recipe</h3><p>none: exactly the recipe</p>"
    rows = "".join(
        f"<tr><td><code>{escape(key)}</code></td><td>{escape(theirs)}</td><td>{escape(ours)}</td></tr>"
        for key, theirs, ours in found
    )
    head = "<thead><tr><th>setting</th><th>recipe</th><th>run</th></tr></thead>"
    return f'<h3>Difference to its recipe</h3><div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def _definitions(title: str, values: dict[str, Any]) -> str:
    text = "\n".join(f"{key:24} {value}" for key, value in values.items())
    return f"<h3>{title}</h3><pre>{escape(text)}</pre>" if text else ""


def _log(detail: Detail) -> str:
    if detail.log:
        return f"<h3>End of the log</h3><pre>{escape(detail.log)}</pre>"
    where = "its folder is not here: the record is a published one" if detail.folder is None else "none was kept"
    return f"<h3>Log</h3><p class=hint>{where}</p>"


def _pictures(detail: Detail) -> str:
    shown = "".join(
        f'<figure><img loading="lazy" alt="{escape(name)}" src="{uri}"><figcaption>{escape(name)}</figcaption></figure>'
        if uri
        else f"<p class=hint>{escape(name)}: too large for this page</p>"
        for name, uri in detail.pictures
    )
    return f'<h3>Pictures</h3><div class="pictures">{shown}</div>' if shown else ""


def _views(detail: Detail) -> str:
    try:
        uri = views(detail.record)
    except UserError as error:
        return f"<h3>Views</h3><p class=hint>{escape(str(error))}</p>"
    picture = f'<figure><img loading="lazy" alt="views" src="{uri}"></figure>'
    return f'<h3>Views: images, and what was made of them</h3><div class="pictures">{picture}</div>'


def _plain(values: dict[str, Any]) -> dict[str, str]:
    return {key: f"{value:.6g}" if _number(value) else str(value) for key, value in values.items() if value is not None}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _minutes(cost: dict[str, Any]) -> str:
    wall = cost.get("wall_s")
    return f"{wall / 60:.1f} min" if isinstance(wall, int | float) else ""
