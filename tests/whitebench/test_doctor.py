"""The doctor says what works, what does not and how to fix it, whatever is broken."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from whitebench.doctor import __main__ as command
from whitebench.doctor import host, packages
from whitebench.doctor.finding import LIMITED, MISSING, OK, Finding

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "whitebench" / "doctor").glob("*.py")), ids=lambda path: path.name)
def test_it_needs_only_the_standard_library_and_an_old_python(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    imported = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    foreign = {name for name in imported if not name.startswith("whitebench.doctor.")}
    assert {name.partition(".")[0] for name in foreign} <= sys.stdlib_module_names


def test_a_python_without_any_package_gets_a_whole_report_and_exit_code_1(tmp_path: Path) -> None:
    """The interpreter that the virtual environment was made with, and none of its packages."""
    done = subprocess.run(
        [sys._base_executable, "-S", "-E", "-m", "whitebench.doctor", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "WHITEBENCH_DATA": str(tmp_path), "WHITEBENCH_RUNS": str(tmp_path)},
    )
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert findings["packages"]["state"] == MISSING
    assert "make env" in findings["packages"]["remedy"]
    assert findings["python"]["state"] == OK


def test_in_this_environment_torch_ffcv_detectron2_and_submitit_really_run() -> None:
    found = dict(packages.probe_in_child(list(packages.PROBES)))
    assert list(found) == list(packages.PROBES)
    assert found["torch"][0].state == OK
    assert "nms runs" in found["torch"][0].what
    assert found["ffcv"][0].state == OK
    assert found["detectron2"][0].state in (OK, LIMITED)
    assert found["submitit"][0].state == OK


def test_a_package_that_crashes_the_interpreter_is_named_and_the_others_are_still_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def child(names: list[str]) -> list[tuple[str, list[Finding]]]:
        return (
            [(name, [Finding(name, OK, "")]) for name in names[: names.index("ffcv")]]
            if "ffcv" in names
            else rest(names)
        )

    def rest(names: list[str]) -> list[tuple[str, list[Finding]]]:
        return [(name, [Finding(name, OK, "")]) for name in names]

    monkeypatch.setattr(packages, "probe_in_child", child)
    states = {finding.name: finding for finding in packages.probe_all()}
    assert states["ffcv"].state == MISSING
    assert "crashes" in states["ffcv"].what
    assert [states[name].state for name in ("torch", "detectron2", "submitit")] == [OK] * 3


def test_a_package_that_raises_is_one_line_with_the_way_to_fix_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> list[Finding]:
        raise OSError("libfoo.so.1:\n cannot open shared object file")

    monkeypatch.setitem(packages.PROBES, "ffcv", broken)
    packages.answer(["ffcv"])
    [name, [finding]] = json.loads(capsys.readouterr().out)
    assert (name, finding["state"]) == ("ffcv", MISSING)
    assert "libfoo.so.1: cannot open" in finding["what"]
    assert finding["remedy"]


def test_packages_that_differ_from_their_pins_are_named(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text("# head\npytest==0.0.1\nnot-a-package-at-all==1.0\n")
    absent = packages.check_packages(pins)
    assert absent.state == MISSING
    assert "not-a-package-at-all" in absent.what
    pins.write_text("pytest==0.0.1\n")
    other = packages.check_packages(pins)
    assert other.state == LIMITED
    assert "pinned: 0.0.1" in other.what


def test_datasets_are_listed_with_their_counts_and_damaged_ones_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHITEBENCH_DATA", str(tmp_path))
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "manifest.json").write_text('{"splits": {"train": {"count": 7}, "val": {"count": 3}}}')
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text('{"splits": [')
    (tmp_path / "scenes" / "annotations").mkdir(parents=True)
    (tmp_path / "scenes" / "annotations" / "instances_val2017.json").write_text("{}")
    (tmp_path / "scenes" / "val2017").mkdir()
    found = {finding.name: finding for finding in host.check_data()}
    assert found["data: sample"].state == LIMITED
    assert found["data: whole"].what == "classification: train 7, val 3 images"
    assert found["data: damaged"].state == LIMITED
    assert found["data: scenes"].what == "detection: val2017 0 images"


def test_a_full_disk_is_limited_and_a_folder_one_cannot_write_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "not" / "yet" / "there"))
    monkeypatch.setattr(host.shutil, "disk_usage", lambda path: host.shutil._ntuple_diskusage(10, 9, 1))
    assert {finding.state for finding in host.check_disks()} == {LIMITED}
    monkeypatch.setattr(host.os, "access", lambda path, mode: False)
    assert {finding.state for finding in host.check_disks()} == {MISSING}


def test_no_slurm_and_a_silent_controller_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.shutil, "which", lambda tool: None)
    assert "no sbatch" in host.check_slurm().what
    monkeypatch.setattr(host.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(host, "output_of", lambda *command: "")
    assert "no controller answers" in host.check_slurm().what
    monkeypatch.setattr(host, "output_of", lambda *command: "gpu* up 4\ncpu up 2")
    assert host.check_slurm() == Finding("slurm", OK, "gpu* up 4, cpu up 2 (partition, state, nodes)")


def test_only_what_is_missing_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "examine", lambda: [Finding("a", OK, "x"), Finding("b", LIMITED, "y", "do this")])
    assert command.main([]) == 0
    assert "-> do this" in capsys.readouterr().out
    monkeypatch.setattr(command, "examine", lambda: [Finding("a", MISSING, "x", "do that")])
    assert command.main([]) == 1
    assert "missing: a" in capsys.readouterr().out
