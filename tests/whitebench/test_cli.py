"""The `whitebench` command: all commands, from any folder."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from whitebench import cli
from whitebench.errors import UserError

SCRIPT = Path(sys.executable).with_name("whitebench")


def whitebench(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([SCRIPT, *arguments], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_there(name: str) -> None:
    assert callable(importlib.import_module(cli.COMMANDS[name].module).main)


def test_a_file_of_the_user_that_is_named_like_a_package_of_ours_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "results.py").write_text("1")
    (tmp_path / "slurm.py").write_text("raise SystemError")
    done = whitebench("pretrain", "--list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "imagenet1k/intl-100ep" in done.stdout
    assert whitebench("sweep", "--help", cwd=tmp_path).returncode == 0


def test_help_names_every_command_and_imports_nothing_heavy(tmp_path: Path) -> None:
    done = whitebench("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(name in done.stdout for name in cli.COMMANDS)
    program = "import sys; from whitebench import cli; cli.run(['--help']); print({'torch', 'pandas'} & {*sys.modules})"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    assert shown.endswith("set()\n")


def test_without_a_command_the_usage_is_shown_and_the_exit_code_is_2(tmp_path: Path) -> None:
    done = whitebench(cwd=tmp_path)
    assert (done.returncode, done.stdout.startswith("usage: whitebench COMMAND")) == (2, True)


def test_an_unknown_command_is_answered_with_the_nearest(tmp_path: Path) -> None:
    done = whitebench("pretrian", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: unknown command 'pretrian'; did you mean 'pretrain'?\n")
    with pytest.raises(UserError, match="aggregate"):
        cli.run(["agregate"])
