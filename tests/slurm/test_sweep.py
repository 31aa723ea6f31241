"""A sweep file becomes cells and a graph of jobs, or one clear line; the graph becomes arrays for SLURM."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm.batch_script import batch_script
from slurm.clusters import Preset, Share, load_preset
from slurm.cost import preview as preview_module
from slurm.cost.preview import cost_preview
from slurm.graph import PLAN, Graph, Job, Resources, graph_from_plan
from slurm.job_state import JobState
from slurm.local import _order
from slurm.planning import build_graph
from slurm.preview import gpu_hours, preview
from slurm.progress import Progress
from slurm.slurm_info import Limits, parse_minutes
from slurm.snapshot import DATA, snapshot_path, take_snapshot
from slurm.stages import LEADERBOARD, STAGES, Task
from slurm.status_table import cell_table
from slurm.submit import plan_submissions
from slurm.sweep import StageSpec, Sweep, cells, load_sweep
from slurm.waves import jobs_to_run
from whitebench.errors import UserError
from whitebench.hashing import content_hash
from whitebench.records import Record

SAMPLE = {"recipes": ["sample/intl", "sample/random"], "seeds": [0, 1]}


@pytest.fixture(autouse=True)
def planned_without_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ids that hang on the stage's inputs, as the real ones do, but need no data set."""

    def plan(task: Task, recipe: Any) -> str:
        setting = recipe.identity() if task.stage == "pretrain" else {}
        inputs = [task.stage, setting, task.parents, task.options, task.seed, task.device]
        return f"{recipe.label}-{content_hash(inputs)[:12]}"

    for name, stage in STAGES.items():
        monkeypatch.setitem(STAGES, name, replace(stage, plan=plan))
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def _load(
        content: dict[str, Any] | str, changes: list[str] | None = None, overrides: list[str] | None = None
    ) -> Sweep:
        path = tmp_path / "mine.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return load_sweep(str(path), changes or [], overrides or [])

    return _load


def graph_of(sweep: Sweep, preset: Preset | None = None) -> Graph:
    return build_graph(sweep, preset or Preset(kind="local"))


def test_the_sample_sweep_is_the_graph_that_the_suite_promises() -> None:
    graph = graph_of(load_sweep("sample", [], []))
    count = {column: sum(job.column == column for job in graph.work) for column in graph.columns()}
    assert count == {"pretrain": 15, "linear": 15, "knn": 15, "convert": 15, "detect": 15}
    for job in graph.work:
        needs = {
            "pretrain": [],
            "linear": ["pretrain"],
            "knn": ["pretrain"],
            "convert": ["pretrain"],
            "detect": ["convert"],
        }
        assert [graph[need].stage for need in job.needs] == needs[job.stage]
        assert all(graph[need].cell == job.cell for need in job.needs)
    assert set(graph.leaderboard.needs) == {job.key for job in graph.work}


def test_every_sweep_file_of_the_suite_is_valid() -> None:
    for path in (Path(__file__).parents[2] / "slurm" / "sweeps").glob("*.yaml"):
        assert load_sweep(str(path), [], []).recipes


def test_cells_are_recipes_by_grid_by_seeds_one_seed_of_everything_first(load: Any) -> None:
    sweep = load({**SAMPLE, "grid": {"batch": [64, 128], "optimizer.lr": [0.1, 0.2]}})
    made = cells(sweep)
    assert len(made) == 2 * 2 * 2 * 2
    assert [cell.seed for cell in made] == [0] * 8 + [1] * 8
    assert made[1].overrides == {"batch": 64, "optimizer.lr": 0.2, "seed": 0}
    assert str(made[1]) == "sample/intl seed=0 batch=64 optimizer.lr=0.2"


def test_bare_overrides_reach_every_cell_and_sweep_overrides_the_sweep(load: Any) -> None:
    sweep = load(SAMPLE, ["seeds=[3]", "stages.detect.seeds=[0,1]"], ["schedule.epochs=7"])
    graph = graph_of(sweep)
    assert {job.task.overrides["schedule.epochs"] for job in graph.work} == {7}
    assert {job.task.overrides["seed"] for job in graph.work} == {3}
    assert graph.columns() == ["pretrain", "convert", "detect:0", "detect:1"]


def test_repeated_fine_tuning_shares_one_conversion(load: Any) -> None:
    graph = graph_of(load({"recipes": ["sample/intl"], "stages": {"detect": {"seeds": [0, 1, 2]}}}))
    tunings = [job for job in graph.work if job.stage == "detect"]
    assert [job.task.seed for job in tunings] == [0, 1, 2]
    assert len({job.task.id for job in tunings}) == 3
    assert len({job.needs for job in tunings}) == 1


def test_a_stage_may_run_twice_with_other_options(load: Any) -> None:
    stages = {
        "detect": {"protocol": "sample", "coco": "sample-det", "seeds": [0, 1]},
        "detect-frozen": {
            "stage": "detect",
            "protocol": "c4-1x-frozen",
            "coco": "sample-det",
            "recipes": ["sample/intl"],
        },
    }
    graph = graph_of(load({**SAMPLE, "seeds": [0], "stages": stages}))
    assert graph.columns() == ["pretrain", "convert", "detect:0", "detect:1", "detect-frozen"]
    frozen = [job for job in graph.work if job.stage_in_sweep == "detect-frozen"]
    [job] = frozen
    assert (job.stage, job.cell) == ("detect", "sample/intl seed=0")
    assert job.key.startswith("detect/")
    assert [graph[need].stage for need in job.needs] == ["convert"]
    header = cell_table(graph, {job.key: JobState("new") for job in graph.work}, width=120)[0]
    assert header.split() == ["pretrain", "convert", "detect", "detect-frozen"]


def test_recipes_taken_out_of_the_sweep_leave_its_stages_too(load: Any) -> None:
    content = {**SAMPLE, "stages": {"detect": {"recipes": ["sample/intl", "sample/random"]}}}
    assert load(content, ["recipes=[sample/intl]"]).stages["detect"].recipes == ("sample/intl",)
    content["stages"]["detect"]["recipes"].append("sample/intll")
    with pytest.raises(UserError, match=r"'sample/intll' is not in the sweep; did you mean 'sample/intl'"):
        load(content, ["recipes=[sample/intl]"])


def test_a_stage_restricted_to_recipes_brings_its_conversion_for_those_only(load: Any) -> None:
    graph = graph_of(load({**SAMPLE, "stages": {"detect": {"recipes": ["sample/intl"]}}}))
    for stage in ("convert", "detect"):
        assert {job.task.recipe for job in graph.work if job.stage == stage} == {"sample/intl"}


def test_ids_hang_on_what_determines_a_stage_and_on_nothing_else(load: Any) -> None:
    def ids(content: dict[str, Any]) -> dict[str, str]:
        return {job.stage: job.task.id for job in graph_of(load(content)).work}

    base = {"recipes": ["sample/intl"], "stages": {"linear": {}, "knn": {}}}
    assert ids(base) == ids({**base, "name": "other", "stages": {"linear": {"hours": 3, "cpus": 2}, "knn": {}}})
    changed = ids({**base, "stages": {"linear": {"protocol": "moco"}, "knn": {}}})
    assert {stage for stage in changed if changed[stage] != ids(base)[stage]} == {"linear"}
    changed = ids({**base, "overrides": {"batch": 32}})
    assert {stage for stage in changed if changed[stage] != ids(base)[stage]} == {"pretrain", "linear", "knn"}


FAULTS = {
    "unknown key": ({**SAMPLE, "recipies": []}, "recipies: unknown key; did you mean 'recipes'"),
    "unknown stage": ({**SAMPLE, "stages": {"liner": {}}}, "unknown stage; did you mean 'linear'"),
    "unknown stage key": (
        {**SAMPLE, "stages": {"linear": {"protocl": "x"}}},
        "protocl: unknown key; did you mean 'protocol'",
    ),
    "unknown resource": ({**SAMPLE, "stages": {"pretrain": {"hour": 3}}}, "hour: unknown key; did you mean 'hours'"),
    "unknown recipe": ({"recipes": ["sample/itnl"]}, "unknown recipe 'sample/itnl'; did you mean 'sample/intl'"),
    "no recipes": ({"recipes": []}, "recipes: at least one"),
    "recipes left out": ({"seeds": [0]}, "recipes: is needed"),
    "a recipe twice": ({"recipes": ["sample/intl", "sample/intl"]}, "is listed twice"),
    "no seeds": ({**SAMPLE, "seeds": []}, "seeds: at least one"),
    "a seed twice": ({**SAMPLE, "seeds": [1, 1]}, "seeds: 1 is listed twice"),
    "a negative seed": ({**SAMPLE, "seeds": [-1]}, "not negative"),
    "no list of seeds": ({**SAMPLE, "seeds": "all"}, "seeds"),
    "empty grid": ({**SAMPLE, "grid": {"batch": []}}, "grid.batch: the list is empty"),
    "grid of a value": ({**SAMPLE, "grid": {"batch": 64}}, "grid.batch"),
    "the same value twice": ({**SAMPLE, "grid": {"batch": [64, 64]}}, "grid.batch: 64 is listed twice"),
    "seed as an override": ({**SAMPLE, "overrides": {"seed": 3}}, "for seeds say seeds"),
    "unknown recipe key": ({**SAMPLE, "grid": {"optimizer.learning": [1]}}, "optimizer.learning: unknown key"),
    "wrong type in the grid": ({**SAMPLE, "grid": {"batch": ["big"]}}, "batch: .*not 'big'"),
    "stage for a stranger": ({**SAMPLE, "stages": {"knn": {"recipes": ["sample/simclr"]}}}, "is not in the sweep"),
    "seeds for knn": ({**SAMPLE, "stages": {"knn": {"seeds": [0]}}}, "can be repeated"),
    "needs a stranger": (
        {**SAMPLE, "stages": {"own": {"function": "os:getpid", "needs": ["liner"]}}},
        "did you mean 'linear'",
    ),
    "circle": (
        {**SAMPLE, "stages": {name: {"function": "os:getpid", "needs": [need]} for name, need in ("ab", "bc", "ca")}},
        "need each other in a circle",
    ),
    "needs what is not run": (
        {**SAMPLE, "stages": {"knn": {"recipes": ["sample/intl"]}, "own": {"function": "os:getpid", "needs": ["knn"]}}},
        "own needs knn, which is not run for sample/random",
    ),
    "no such function": ({**SAMPLE, "stages": {"own": {"function": "os:getpidd"}}}, "'os:getpidd' cannot be imported"),
    "no such module": ({**SAMPLE, "stages": {"own": {"function": "nowhere"}}}, "module:name"),
    "a variant of no stage": (
        {**SAMPLE, "stages": {"linear-2": {"stage": "liner"}}},
        "stages.linear-2.stage: unknown stage 'liner'; did you mean 'linear'",
    ),
    "a variant under a built-in stage's name": (
        {**SAMPLE, "stages": {"knn": {"stage": "linear"}}},
        "'knn' is a built-in stage itself; choose another name, e.g. linear-2",
    ),
    "two pretrainings": ({**SAMPLE, "stages": {"again": {"stage": "pretrain"}}}, "a cell has one pretrain"),
    "a function and a stage": ({**SAMPLE, "stages": {"a": {"stage": "knn", "function": "os:getpid"}}}, "not both"),
    "a variant with the same options": (
        {**SAMPLE, "stages": {"knn": {}, "knn-2": {"stage": "knn"}}},
        "stages.knn-2 is the same run as stages.knn .*give it other options",
    ),
    "an option of another stage": ({**SAMPLE, "stages": {"k": {"stage": "knn", "coco": "x"}}}, "coco: unknown key"),
    "no hours": ({**SAMPLE, "stages": {"knn": {"hours": 0}}}, "hours: must be more than 0"),
    "stages no mapping": ({**SAMPLE, "stages": ["linear"]}, "stages: must be a mapping"),
    "not YAML": ("recipes: [", "not readable as YAML"),
    "a list": ("[1, 2]", "must be a mapping"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_sweep_gets_one_clear_line(fault: str, load: Any) -> None:
    content, message = FAULTS[fault]
    with pytest.raises(UserError, match=message) as caught:
        graph_of(load(content))
    assert "\n" not in str(caught.value)


def test_an_unknown_sweep_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown sweep 'sampel'; did you mean 'sample'"):
        load_sweep("sampel", [], [])


def test_two_cells_that_are_one_run_are_refused(load: Any) -> None:
    with pytest.raises(UserError, match="one and the same run"):
        graph_of(load({"recipes": ["sample/intl"], "grid": {"machine.workers": [1, 2]}}))


def test_the_device_follows_the_gpus_that_a_job_gets(load: Any) -> None:
    def devices(preset: Preset, stages: dict[str, Any]) -> set[tuple[str, str]]:
        graph = graph_of(load({"recipes": ["sample/intl"], "stages": stages}), preset)
        return {(job.stage, job.task.device) for job in graph.work}

    assert devices(Preset(), {"linear": {}}) == {("pretrain", "cpu"), ("linear", "cpu")}
    assert devices(Preset(gpus=1), {"linear": {}}) == {("pretrain", "cuda"), ("linear", "cuda")}
    assert devices(Preset(gpus=1), {"linear": {"gpus": 0}}) == {("pretrain", "cuda"), ("linear", "cpu")}
    graph = graph_of(load({"recipes": ["sample/intl"]}), Preset(gpus=1))
    assert graph.work[0].task.overrides["device"] == "cuda"


def test_gpus_and_world_size_must_agree(load: Any) -> None:
    with pytest.raises(UserError, match=r"world_size=1.*say world_size=4"):
        graph_of(load({"recipes": ["sample/intl"], "stages": {"pretrain": {"gpus": 4}}}))
    graph = graph_of(
        load(
            {
                "recipes": ["sample/intl"],
                "overrides": {"world_size": 4},
                "stages": {"pretrain": {"gpus": 2, "nodes": 2}},
            }
        )
    )
    assert graph.work[0].resources == Resources(nodes=2, processes=2, gpus=2)


def test_a_plan_comes_back_from_its_file(load: Any, tmp_path: Path) -> None:
    graph = graph_of(load({**SAMPLE, "stages": {"linear": {}, "detect": {"seeds": [0, 1]}}}))
    graph.save("local", "2026-01-01T00:00:00Z")
    again = graph_from_plan(json.loads((tmp_path / "runs" / "sweeps" / "mine" / PLAN).read_text()))
    assert again.jobs == graph.jobs


def test_what_has_begun_is_finished_before_new_cells_and_long_chains_begin_first(load: Any) -> None:
    stages = {
        "pretrain": {"hours": 1},
        "linear": {"hours": 0.2},
        "detect": {"hours": 0.5, "recipes": ["sample/random"]},
    }
    graph = graph_of(load({**SAMPLE, "seeds": [0], "stages": stages}))
    order = [f"{graph[key].stage} {graph[key].task.recipe}" for key in _order(graph)]
    assert order[-2:] == ["pretrain sample/random", "pretrain sample/intl"]
    assert order.index("linear sample/intl") < order.index("detect sample/random")


def states_of(graph: Graph, **chosen: str) -> dict[str, JobState]:
    """All new, but for the stages named."""
    return {job.key: JobState(chosen.get(job.stage, "new")) for job in graph.work}  # type: ignore[arg-type]


def test_failed_jobs_are_run_again_only_on_request(load: Any) -> None:
    graph = graph_of(load({**SAMPLE, "stages": {"linear": {}, "knn": {}}}))
    states = states_of(graph, pretrain="failed", linear="blocked", knn="blocked")
    assert jobs_to_run(graph, states, retry_failed=False) == set()
    assert jobs_to_run(graph, states, retry_failed=True) == {job.key for job in graph.work}
    states = states_of(graph, pretrain="done", linear="failed", knn="interrupted")
    assert {graph[key].stage for key in jobs_to_run(graph, states, retry_failed=False)} == {"knn"}


def test_arrays_are_one_a_stage_and_chunked_by_what_the_cluster_allows(load: Any) -> None:
    graph = graph_of(
        load({"recipes": ["sample/intl"], "seeds": list(range(10)), "stages": {"linear": {}, "detect": {}}})
    )
    planned = plan_submissions(graph, {job.key for job in graph.work}, states_of(graph), max_array=4)
    assert [(s.jobs[0].stage, len(s.jobs)) for s in planned] == [
        (stage, size) for size in (4, 4, 2) for stage in ("pretrain", "linear", "convert", "detect")
    ] + [(LEADERBOARD, 1)]
    assert planned[1].dependency(["100"]) == "aftercorr:100"
    assert planned[3].dependency(["100", "101", "102"]) == "aftercorr:102"
    assert planned[-1].after_end == tuple(range(12))


ANY_STATE = st.sampled_from(["new", "done", "failed", "interrupted", "queued", "running"])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 5), st.booleans())
def test_every_job_is_submitted_once_and_waits_for_just_what_it_needs(
    data: st.DataObject, limit: int, retry: bool
) -> None:
    graph = made_graph(cells=5)
    states: dict[str, JobState] = {}
    for i, job in enumerate(graph.work):
        if all(states[need].state == "done" for need in job.needs):
            state = data.draw(ANY_STATE)
        else:
            state = data.draw(st.sampled_from(["new", "queued"]))
            failed = any(states[need].state in ("failed", "blocked") for need in job.needs)
            state = "blocked" if failed else state
        states[job.key] = JobState(state, queue_id=str(1000 + i) if state in ("queued", "running") else None)
    todo = jobs_to_run(graph, states, retry)
    planned = plan_submissions(graph, todo, states, limit)
    submitted = [job.key for submission in planned[:-1] for job in submission.jobs]
    assert sorted(submitted) == sorted(todo)
    assert all(len(submission.jobs) <= limit for submission in planned)
    for submission in planned[:-1]:
        assert len({job.resources for job in submission.jobs}) == 1
        for i, job in enumerate(submission.jobs):
            waited = {planned[other].jobs[i].key for other in submission.after}
            queued = {key for key, state in states.items() if state.queue_id in submission.after_queued}
            assert waited | queued == {need for need in job.needs if states[need].state != "done"}


def made_graph(cells: int) -> Graph:
    """pretrain -> linear, pretrain -> convert -> detect, the last two for every other cell only, without any recipe."""
    jobs: list[Job] = []
    for cell in range(cells):
        needs: dict[str, tuple[str, ...]] = {"pretrain": (), "linear": ("pretrain",)}
        needs |= {"convert": ("pretrain",), "detect": ("convert",)} if cell % 2 else {}
        for stage, wanted in needs.items():
            task = Task(stage, "r", id=str(cell))
            keys = tuple(f"{need}/{cell}" for need in wanted)
            jobs.append(Job(f"{stage}/{cell}", stage, f"cell {cell}", keys, Resources(), task))
    last = Job(
        "leaderboard/x", LEADERBOARD, "", tuple(job.key for job in jobs), Resources(), Task(LEADERBOARD, "", id="x")
    )
    return Graph("x", [*jobs, last])


def test_the_batch_script_asks_for_what_the_stage_and_the_preset_say() -> None:
    job = replace(
        made_graph(1).work[0], resources=Resources(nodes=2, processes=4, threads=3, cpus=6, gpus=4, memory_gb=2.5)
    )
    preset = Preset(
        partition="gpu",
        account="me",
        setup=("module load cuda",),
        stages={"pretrain": Share(partition="big", hours=2)},
        sbatch={"nice": 100},
        environment={"PLACE": "a b"},
    )
    folder, code = Path("/runs/sweeps/mine/launches/1/000-pretrain"), Path("/runs/sweeps/code/0123")
    script = batch_script(
        job,
        preset,
        sweep="mine",
        sweep_folder=folder.parents[2],
        folder=folder,
        code=code,
        limits=Limits(partitions={"big": 90}),
        mark="whitebench:0",
        indices=(0, 1),
        dependency=None,
    )
    for line in (
        "#SBATCH --partition=big",
        "#SBATCH --time=90",
        "#SBATCH --account=me",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --cpus-per-task=6",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --mem=2560M",
        "#SBATCH --array=0-1%2",
        "#SBATCH --nice=100",
        "#SBATCH --requeue",
        "#SBATCH --kill-on-invalid-dep=yes",
        "#SBATCH --signal=USR2@120",
        "  export OMP_NUM_THREADS=3",
        "  export PLACE='a b'",
    ):
        assert line in script.splitlines(), line
    assert "export PYTHONPATH=/runs/sweeps/code/0123" in script
    assert f"submitit.core._submit {folder}\n" in script
    assert f'slurm.requeue {folder} "$@"' in script
    assert script.index("module load cuda") < script.index("srun")
    assert "--kill-on-bad-exit=1" in script


@pytest.mark.parametrize(
    ("preset", "gpus", "expected"),
    [
        (Preset(memory_gb=8, memory_per_gpu_gb=60), 0, 8),
        (Preset(memory_gb=8, memory_per_gpu_gb=60), 4, 240),
        (Preset(memory_per_gpu_gb=60), 0, None),
        (Preset(memory_per_gpu_gb=60, stages={"knn": Share(memory_gb=16)}), 4, 16),
        (Preset(memory_gb=8, stages={"knn": Share(memory_per_gpu_gb=20)}), 4, 80),
    ],
)
def test_memory_is_a_node_s_or_a_gpu_s(preset: Preset, gpus: int, expected: float | None) -> None:
    stages = {"pretrain": StageSpec(), "knn": StageSpec(gpus=gpus)}
    graph = build_graph(Sweep("mine", recipes=("sample/intl",), stages=stages), preset)
    (job,) = [job for job in graph.work if job.stage == "knn"]
    assert job.resources.memory_gb == expected


@pytest.mark.parametrize(
    ("text", "minutes"), [("30:00", 30), ("1:00:00", 60), ("2-12:30:00", 3630), ("infinite", None), ("n/a", None)]
)
def test_time_limits_are_read_as_slurm_writes_them(text: str, minutes: int | None) -> None:
    assert parse_minutes(text) == minutes


def test_one_s_own_preset_goes_before_the_suite_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WHITEBENCH_CLUSTERS", str(tmp_path))
    (tmp_path / "local.yaml").write_text("kind: local\nslots: 3\nstages: {knn: {cpus: 2}}\n")
    preset = load_preset("local")
    assert preset.slots == 3
    assert preset.share("knn").cpus == 2
    assert preset.share("linear").cpus is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("kind: local\nslot: 3", "slot: unknown key; did you mean 'slots'"),
        ("kind: locl", "kind: "),
        ("kind: local\nstages: {knn: {partitoin: x}}", "partitoin: unknown key; did you mean 'partition'"),
        ("[1]", "a preset is a mapping"),
        ("kind: [", "not readable as YAML"),
    ],
)
def test_a_faulty_preset_gets_one_clear_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        load_preset(str(tmp_path / "mine.yaml"))


def test_an_unknown_cluster_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown cluster 'locl'; did you mean 'local'"):
        load_preset("locl")


def test_gpus_per_process_are_as_many_as_each_recipe_has_processes(load: Any) -> None:
    sweep = load(
        {
            "recipes": ["sample/intl"],
            "grid": {"world_size": [1, 4]},
            "stages": {"pretrain": {"gpus": "a100:per-process"}},
        }
    )
    jobs = [job for job in graph_of(sweep).work if job.stage == "pretrain"]
    assert [(job.resources.gpus, job.resources.gpu_type) for job in jobs] == [(1, "a100"), (4, "a100")]
    with pytest.raises(UserError, match="per-process is for pretrain"):
        graph_of(load({"recipes": ["sample/intl"], "stages": {"knn": {"gpus": "per-process"}}}))


def test_the_ladder_asks_for_the_gpus_of_its_recipes_and_five_fine_tunings() -> None:
    graph = graph_of(load_sweep("ladder-imagenet", [], []))
    gpus = {job.task.recipe: job.resources.gpus for job in graph.work if job.stage == "pretrain"}
    assert sorted(gpus.values()) == [1, 4, 8, 8, 8]
    assert sum(job.stage == "detect" for job in graph.work) == 5 * 3 * 5
    assert {job.task.options["protocol"] for job in graph.work if job.stage == "linear"} == {"simsiam"}


def test_a_dry_run_estimates_what_is_to_be_run(load: Any) -> None:
    sweep = load({"recipes": ["sample/intl"], "seeds": [0, 1], "stages": {"pretrain": {"gpus": "a100:1"}}})
    graph = graph_of(sweep)
    everything = "\n".join(cost_preview(graph, sweep, set(graph.jobs)))
    assert "estimated on A100 80 GB SXM" in everything
    assert "in all 2 jobs" in everything
    assert "in all 1 jobs" in "\n".join(cost_preview(graph, sweep, {graph.work[0].key}))
    assert cost_preview(graph, sweep, set()) == ["estimated: nothing to run"]


def test_a_dry_run_of_very_many_cells_estimates_nothing(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview_module, "MOST_CELLS", 1)
    sweep = load({"recipes": ["sample/intl"], "seeds": [0, 1]})
    graph = graph_of(sweep)
    assert "`whitebench plan --sweep` does" in cost_preview(graph, sweep, set(graph.jobs))[0]


def test_a_dry_run_tells_jobs_resources_and_calls_of_sbatch(load: Any) -> None:
    graph = graph_of(load({**SAMPLE, "stages": {"linear": {"hours": 2}, "detect": {"recipes": ["sample/intl"]}}}))
    states = states_of(graph, pretrain="done")
    text = preview(graph, states, jobs_to_run(graph, states, False), Preset(kind="slurm"))
    assert "4 cells, 12 jobs, 8 to run" in text
    assert "pretrain -> " in text
    assert "1 core, 2 h at most" in text
    assert "5 calls of sbatch" in text
    assert "no GPUs, at most 104 core-hours" in text
    assert "#SBATCH --array=0-1%2" in text


def test_gpu_hours_go_by_what_such_runs_have_cost_where_there_are_any(load: Any) -> None:
    graph = graph_of(load({**SAMPLE, "stages": {"pretrain": {"gpus": 1, "hours": 3}}}))
    states = states_of(graph)
    assert gpu_hours(graph, states, set(states)) == "at most 12 GPU-hours"
    first = graph.work[0]
    done = Record(first.task.id, "pretrain", config={}, cost={"gpu_s": 1800.0})
    todo = set(states) - {first.key}
    states[first.key] = JobState("done", done)
    assert (
        gpu_hours(graph, states, todo) == "at most 9 GPU-hours, about 6.5 going by runs that are done (of 1 of 3 jobs)"
    )


def test_a_snapshot_holds_all_that_the_code_reads_in_its_own_folders(tmp_path: Path) -> None:
    code = take_snapshot(tmp_path / "code")
    packages = [root for root in (Path(__file__).parents[2]).iterdir() if (code / root.name).is_dir()]
    files = {
        path for root in packages for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    missing = {str(path.relative_to(Path(__file__).parents[2])) for path in files} - {
        str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()
    }
    generated = ("results/tables/", "results/records/", "results/report.html")
    assert not [name for name in missing if not name.startswith(generated) and name.count("/") > 1]


def test_a_snapshot_is_the_code_as_it_was_and_named_by_it(tmp_path: Path) -> None:
    checkout, into = tmp_path / "checkout", tmp_path / "code"
    expected = ["pretrain/a.py", *DATA, "slurm/clusters/b.yaml"]
    for path in [*expected, "results/runs.csv", "pretrain/c.pyc"]:
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text(path)
    first = take_snapshot(into, checkout)
    assert first == snapshot_path(into, checkout)
    assert take_snapshot(into, checkout) == first
    (checkout / "results" / "runs.csv").write_text("a table that a run has written")
    assert take_snapshot(into, checkout) == first
    (checkout / "pretrain" / "a.py").write_text("changed")
    assert take_snapshot(into, checkout) != first
    assert (first / "pretrain" / "a.py").read_text() == "pretrain/a.py"
    copied = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert copied == sorted([*expected, "snapshot.json"])
    assert json.loads((first / "snapshot.json").read_text())["code"] == first.name
    assert sorted(path.name for path in into.iterdir()) == sorted([first.name, take_snapshot(into, checkout).name])


def test_a_long_step_says_how_far_it_is_and_a_short_one_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Progress("planned", 3, "cells", every_s=0.0).over("abc")) == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines() == ["planned 1 of 3 cells", "planned 2 of 3 cells"]
    assert list(Progress("planned", 3, "cells", every_s=3600.0).over("abc")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
