"""The published tables of both whitening papers, in their own layout, from the rows that `published.csv` has.

Nothing is added: a cell without a row stays empty, and no value is marked as best, because the papers state
no number of runs. The layouts are those of the repositories' READMEs, where the values were read.
"""

from collections.abc import Iterable, Sequence

from results.leaderboards.published import Published
from results.leaderboards.table_cells import Cell, Column, Grid

CWRGP, INTL = "CW-RGP (NeurIPS 2022)", "INTL (ICLR 2024)"
Setting = dict[str, str]
Values = dict[str, tuple[str, str]]
SETS = ("CIFAR-10", "CIFAR-100", "STL-10", "Tiny-ImageNet")
TASKS = {
    ("VOC07+12", "box"): "VOC 07+12 detection",
    ("COCO2017", "box"): "COCO detection",
    ("COCO2017", "mask"): "COCO instance segmentation",
}


def paper_tables(published: Published) -> list[Grid]:
    """The tables of CW-RGP, then those of INTL."""
    cwrgp, intl = ([row for row in published.rows if row[0]["paper"] == paper] for paper in (CWRGP, INTL))
    return [
        _small(
            "cwrgp_small",
            f"{CWRGP}: classification on small and medium sets, top-1 in per cent",
            cwrgp,
            [(name, kind, "top1") for name in SETS for kind in ("linear", "5-NN")],
        ),
        _by_epochs("cwrgp_imagenet", f"{CWRGP}: ImageNet linear classification", cwrgp),
        _detection("cwrgp_detection", f"{CWRGP}: transfer to detection, 200 epochs on ImageNet", cwrgp),
        _by_epochs(
            "intl_imagenet", f"{INTL}: ImageNet linear classification, multi-crop and EMA", _of_method(intl, "EMA")
        ),
        _by_epochs(
            "intl_imagenet_plain",
            f"{INTL}: ImageNet linear classification, without multi-crop or EMA",
            _of_method(intl, "EMA", without=True),
        ),
        _small(
            "intl_small",
            f"{INTL}: classification on small and medium sets, per cent",
            intl,
            [
                (name, kind, metric)
                for name in ("CIFAR-10", "CIFAR-100", "ImageNet-100")
                for kind, metric in (("linear", "top1"), ("5-NN", "top1"), ("linear", "top5"))
            ],
        ),
        _detection("intl_detection", f"{INTL}: transfer to detection, 200 epochs on ImageNet", intl),
    ]


Rows = Sequence[tuple[Setting, Values]]


def _of_method(rows: Rows, part: str, without: bool = False) -> Rows:
    return [(setting, values) for setting, values in rows if (part in setting["method"]) is not without]


def _small(name: str, title: str, rows: Rows, columns: list[tuple[str, str, str]]) -> Grid:
    """One row per method, one column per (dataset, kind of evaluation, metric)."""
    titles = {"linear": "top-1", "5-NN": "5-NN"}
    cells: dict[str, dict[tuple[str, str, str], Cell]] = {}
    used = [(setting, values) for setting, values in rows if setting["dataset"] in {column[0] for column in columns}]
    for setting, values in used:
        kind = "5-NN" if setting["protocol"].startswith("5-NN") else "linear"
        for metric, value in values.items():
            cells.setdefault(setting["method"], {})[setting["dataset"], kind, metric] = Cell(*value)
    heads = [Column("top-5" if metric == "top5" else titles[kind], data) for data, kind, metric in columns]
    body = [[Cell(method), *(values.get(column, Cell()) for column in columns)] for method, values in cells.items()]
    return Grid(name, title, [Column("method", numeric=False), *heads], body, _sources(used))


def _by_epochs(name: str, title: str, rows: Rows) -> Grid:
    """As the READMEs have it: epochs, batch size, top-1."""
    used = [row for row in rows if row[0]["dataset"] == "ImageNet-1k"]
    columns = [Column("method", numeric=False), Column("epochs"), Column("batch size"), Column("top-1")]
    body = [
        [Cell(setting["method"]), Cell(setting["epochs"]), Cell(setting["batch_size"]), Cell(*values["top1"])]
        for setting, values in used
    ]
    return Grid(name, title, columns, body, _sources(used))


def _detection(name: str, title: str, rows: Rows) -> Grid:
    """A task a row; AP50, AP, AP75, each with the deviation that the README gives."""
    by_task: dict[tuple[str, str], Values] = {}
    used = [row for row in rows if row[0]["protocol"].startswith("MoCo detection")]
    for setting, values in used:
        for metric, value in values.items():
            by_task.setdefault((setting["dataset"], metric.partition("_")[0]), {})[metric] = value
    columns = [Column("task", numeric=False), *map(Column, ("AP50", "AP", "AP75"))]
    body = [
        [Cell(title), *(Cell(*by_task[key].get(f"{key[1]}_{ap}", ("", ""))) for ap in ("AP50", "AP", "AP75"))]
        for key, title in TASKS.items()
        if key in by_task
    ]
    return Grid(
        name, title, columns, body, [*_sources(used), "± as the README gives it; the number of runs is not stated."]
    )


def _sources(rows: Iterable[tuple[Setting, Values]]) -> list[str]:
    """Each source with the methods that it gives, where there are several."""
    methods: dict[str, dict[str, None]] = {}
    for setting, _ in rows:
        methods.setdefault(setting["source"], {})[setting["method"]] = None
    if len(methods) == 1:
        return [f"Source: {source}" for source in methods]
    return [f"{', '.join(names)}: {source}" for source, names in methods.items()]
