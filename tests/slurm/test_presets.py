"""Presets and what a sweep asks of SLURM: every value has its range, and nothing that would break a launch passes."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm.batch_script import index_ranges, sbatch_options
from slurm.clusters import enter_environment, load_preset
from slurm.graph import Job, Resources
from slurm.job_queue import parse_job_records, parse_queue
from slurm.resource_requests import RESERVED, merged_options, parse_gpus
from slurm.slurm_info import Limits, QosLimits, parse_limits, parse_seconds
from slurm.stages import Task
from slurm.sweep import load_sweep
from whitebench.errors import UserError

SWEEP: dict[str, Any] = {"recipes": ["sample/intl"]}


def write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


FAULTS = {
    "nan": ("hours: .nan", r"hours|finite|NaN"),
    "infinite": ("memory_gb: .inf", r"memory_gb|finite"),
    "negative hours": ("hours: -1", "hours: must be more than 0"),
    "sexagesimal hours": ("hours: 1:30", "hours"),
    "a boolean": ("hours: true", "hours: .*true"),
    "no cores": ("cpus: 0", "cpus: must be from 1"),
    "a negative warning": ("signal_delay_s: -5", "signal_delay_s: must be"),
    "no tasks at a time": ("throttle: 0", "throttle: must be"),
    "a limit of one job": ("max_jobs: 1", "max_jobs: must be from 2"),
    "a list for GPUs": ("gpus: [1]", "gpus"),
    "GPUs the wrong way round": ("gpus: '4:a100'", "type:number as in a100:4"),
    "negative GPUs": ("gpus: -1", "type:number as in a100:4"),
    "a stage's fault": ("stages: {knn: {hours: 0}}", r"stages\.knn\.hours: must be more than 0"),
    "a stage's option": ("stages: {knn: {sbatch: {array: 0-3}}}", r"stages\.knn\.sbatch\.array: not to be set here"),
    "an unset variable": ("environment: {WHITEBENCH_RUNS: $SCRATCHH/runs}", r"the variable \$SCRATCHH is not set"),
    "an unset variable in braces": ("environment: {A: '${NO_SUCH_THING}/x'}", "is not set"),
    "an unknown user's home": ("environment: {A: ~no-such-user/x}", "no such user"),
    "a variable's name": ("environment: {'A B': x}", "not the name of a variable"),
    "a variable without a value": ("environment: {A: }", "must be a text"),
    "a key twice": ("partition: a\npartition: b", "listed twice"),
    "GPUs as gres": ("sbatch: {gres: 'gpu:a100:1'}", "set gpus, e.g. gpus: a100:1"),
    "GPUs among others as gres": ("sbatch: {gres: 'lscratch:10,gpu:1'}", "set gpus"),
    "a list as an option": ("sbatch: {exclude: [a, b]}", "must be a single value"),
    "a second line": ('sbatch: {mail-user: "a\\nrm -rf x"}', "must be a single value"),
    "a short option": ("sbatch: {p: gpu}", "long option"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_preset_is_one_clear_line(fault: str, tmp_path: Path) -> None:
    settings_text, message = FAULTS[fault]
    name = write(tmp_path / "mine.yaml", f"kind: slurm\n{settings_text}\n")
    with pytest.raises(UserError, match=message) as caught:
        load_preset(name, dry_run=True)
    assert "\n" not in str(caught.value)
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize("option", sorted(RESERVED))
@pytest.mark.parametrize("form", ["{}", "--{}", "upper_"])
def test_options_that_the_launcher_sets_are_refused_in_presets_and_sweeps(
    option: str, form: str, tmp_path: Path
) -> None:
    name = option.replace("-", "_") if form == "upper_" else form.format(option)
    with pytest.raises(UserError, match="not to be set here"):
        load_preset(write(tmp_path / "mine.yaml", {"kind": "slurm", "sbatch": {name: "x"}}), dry_run=True)
    with pytest.raises(UserError, match="not to be set here"):
        load_sweep(write(tmp_path / "s.yaml", {**SWEEP, "stages": {"pretrain": {"sbatch": {name: "x"}}}}), [], [])


@pytest.mark.parametrize("abbreviation", ["dep", "depend", "arr", "job-na", "sig", "outp", "ntask"])
def test_abbreviations_that_sbatch_would_take_are_refused_too(abbreviation: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not to be set here"):
        load_preset(write(tmp_path / "mine.yaml", {"sbatch": {abbreviation: "x"}}), dry_run=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [99999999999999999999]}, "too large for a seed"),
        ({"seeds": [True]}, "whole numbers"),
        ({"seeds": [1.5]}, "whole numbers"),
        ({"stages": {"linear": {"seeds": ["1"]}}}, r"stages\.linear\.seeds: seeds are whole numbers"),
        ({"stages": {"pretrain": {"hours": True}}}, "must be a number, not true"),
        ({"stages": {"pretrain": {"memory_gb": float("inf")}}}, r"memory_gb|finite"),
        ({"stages": {"pretrain": {"nodes": 0}}}, "nodes: must be from 1"),
        ({"stages": {"pretrain": {"gpus": "a100"}}}, "type:number as in a100:4"),
        ({"stages": {"../x": {"function": "os:getpid"}}}, "cannot be a folder's name"),
        ({"stages": {"sweeps": {"function": "os:getpid"}}}, "cannot be a folder's name"),
        ({"name": "../../elsewhere"}, "cannot be a folder's name"),
        ({"name": "code"}, "cannot be a folder's name"),
        ({"name": "a b"}, "cannot be a folder's name"),
        ({"name": ""}, "cannot be a folder's name"),
    ],
)
def test_a_sweep_s_values_have_their_ranges(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_sweep(write(tmp_path / "mine.yaml", {**SWEEP, **change}), [], [])
    assert "\n" not in str(caught.value)


def test_home_and_variables_of_a_preset_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.setenv("WHITEBENCH_RUNS", "before")
    variables = {"WHITEBENCH_RUNS": "~/runs", "PYTHONPATH": "$SCRATCH/a:~/b"}
    name = write(tmp_path / "mine.yaml", {"kind": "local", "environment": variables})
    expected = {"WHITEBENCH_RUNS": "/home/me/runs", "PYTHONPATH": "/scratch/a:/home/me/b"}
    assert load_preset(name).environment == expected
    monkeypatch.setenv("WHITEBENCH_DATA", "~/data")  # quoted in the shell
    with pytest.raises(UserError, match="WHITEBENCH_DATA=~/data: not a folder"):
        enter_environment(name)


def options_of(resources: Resources, tmp_path: Path, preset: dict[str, Any], limits: Limits) -> dict[str, Any]:
    job = Job("pretrain/x", "pretrain", "cell", (), resources, Task("pretrain", "r", id="x"))
    loaded = load_preset(write(tmp_path / "mine.yaml", {"kind": "slurm", **preset}), dry_run=True)
    return sbatch_options(job, loaded, sweep="s", limits=limits, mark="whitebench:1", dependency=None)


def test_options_of_a_stage_add_to_the_preset_s_and_null_takes_one_out(tmp_path: Path) -> None:
    preset = {
        "sbatch": {"comment": "preemption=yes", "nice": 100, "exclusive": True, "mail_type": "END"},
        "stages": {"pretrain": {"sbatch": {"nice": 5, "reservation": "mine"}}},
    }
    sweep_options = {"exclusive": None, "gres": "lscratch:10"}
    resources = Resources(gpus=4, gpu_type="a100", memory_gb=0.0001, sbatch=sweep_options)
    options = options_of(resources, tmp_path, preset, Limits())
    assert options["comment"] == "preemption=yes;whitebench:1"
    assert options["gpus-per-node"] == "a100:4"
    assert options["mem"] == "1M"  # 0 would be all of the node's
    assert (options["nice"], options["reservation"], options["mail-type"]) == (5, "mine", "END")
    assert options["gres"] == "lscratch:10"
    assert "exclusive" not in options
    assert "wckey" not in options


def test_a_job_asks_for_no_more_time_than_partition_qos_and_account_allow(tmp_path: Path) -> None:
    limits = Limits(
        partitions={None: 600, "long": 6000}, qos={"short": QosLimits(30, 5)}, account=QosLimits(minutes=3000)
    )

    def minutes(**preset: Any) -> int:
        return int(options_of(Resources(hours=80), tmp_path, preset, limits)["time"])

    assert minutes() == 600
    assert minutes(partition="long") == 3000
    assert minutes(partition="long", qos="short") == 30
    assert limits.jobs("short") == 5
    assert limits.jobs(None) is None


@pytest.mark.parametrize(
    ("value", "expected"), [(None, (0, "")), (2, (2, "")), ("2", (2, "")), ("a100:4", (4, "a100"))]
)
def test_gpus_are_a_number_or_have_a_type(value: Any, expected: tuple[int, str]) -> None:
    assert parse_gpus(value, "gpus") == expected


@given(st.sets(st.integers(0, 200), min_size=1))
def test_ranges_of_indices_are_all_of_them(indices: set[int]) -> None:
    expanded: list[int] = []
    for part in index_ranges(sorted(indices)).split(","):
        first, _, last = part.partition("-")
        expanded += range(int(first), int(last or first) + 1)
    assert expanded == sorted(indices)


WORDS = st.text(st.characters(blacklist_characters="\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=30)
STATES = st.sampled_from(["PENDING", "RUNNING", "COMPLETING"])
MARKED = "whitebench:" + "0123456789abcdef" * 2


EXAMPLES = pytest.mark.parametrize(
    "examples", [200, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(7200)])]
)


@EXAMPLES
def test_our_job_is_read_among_jobs_with_any_comments(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(st.lists(st.tuples(st.integers(1, 10**9), STATES, st.text(max_size=60))), STATES)
    def check(others: list[tuple[int, str, str]], state: str) -> None:
        lines = [f"{job}|{s}|None|(null)|0:00|n1|{comment}" for job, s, comment in others]
        ours = f"77_3|{state}|Priority|afterok:5(unfulfilled)|1-02:03:04|n[1-2]|a|b;{MARKED}"
        for at in (0, len(lines)):
            answer = "\n".join([*lines[:at], ours, *lines[at:]])
            jobs = [job for job, comment in parse_queue(answer.splitlines()) if MARKED in comment.split("\n")[0]]
            assert [(job.id, job.state, job.node, job.seconds) for job in jobs] == [("77_3", state, "n[1-2]", 93784.0)]

    check()


@pytest.mark.parametrize("parse", [parse_job_records, parse_limits, lambda text: list(parse_queue(text.splitlines()))])
@EXAMPLES
def test_answers_that_make_no_sense_raise_nothing(examples: int, parse: Any) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(
        st.text() | st.lists(st.sampled_from(["JobId=", "7", "|", "=", " ", "JobState=", "FAILED", "\n"])).map("".join)
    )
    def check(text: str) -> None:
        parse(text)

    check()


@given(st.text(max_size=20))
def test_times_are_read_or_are_none(text: str) -> None:
    assert (parse_seconds(text) or 0) >= 0


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PRESET_KEYS = [
    "kind",
    "stages",
    "setup",
    "environment",
    "sbatch",
    "gpus",
    "cpus",
    "hours",
    "memory_gb",
    "scratch",
    "qos",
]
SWEEP_KEYS = ["name", "recipes", "seeds", "grid", "overrides", "stages", "cluster"]


def check_loading(examples: int, keys: list[str], load: Any) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(st.dictionaries(st.sampled_from(keys), VALUES | st.just("slurm") | st.just(["sample/intl"])))
    def check(content: dict[str, Any]) -> None:
        message = ""
        try:
            load(content)
        except UserError as error:
            message = str(error)
        assert "\n" not in message

    check()


@EXAMPLES
def test_any_preset_loads_or_is_one_line(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    check_loading(examples, PRESET_KEYS, lambda content: load_preset(write(path, content), dry_run=True))


@EXAMPLES
def test_any_sweep_loads_or_is_one_line(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    check_loading(examples, SWEEP_KEYS, lambda content: load_sweep(write(path, content), [], []))


def test_options_of_later_levels_replace_those_before() -> None:
    assert merged_options({"mail_type": "END"}, {"--mail-type": "FAIL", "nice": None}) == {"mail-type": "FAIL"}
