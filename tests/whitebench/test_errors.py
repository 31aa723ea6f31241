"""Errors of users and of the system are one line and exit code 2; defects keep their traceback."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whitebench.errors import UserError, describe, run_command


def ends(main: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        run_command(main)  # type: ignore[arg-type]
    return int(str(end.value.code)), capsys.readouterr().err


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize("number", [n for n in errno.errorcode if n not in (errno.EPIPE, errno.ESHUTDOWN)])
def test_every_error_of_the_system_is_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(number, os.strerror(number), "/data/x")
    code, text = ends(raising(error), capsys)
    assert code == 2
    assert text.count("\n") == 1
    assert "/data/x" in text


@given(st.text())
def test_no_text_in_an_error_breaks_the_line(text: str) -> None:
    for error in (OSError(errno.EACCES, "denied", text), OSError(errno.EINVAL, text), MemoryError(text)):
        message = describe(error)
        assert message is not None
        assert "\n" not in message
        message.encode()


def test_names_that_are_not_utf8_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9")
    code, text = ends(lambda: (tmp_path / name).read_text() and None, capsys)
    assert code == 2
    assert "caf" in text
    assert "not found" in text


def test_memory_errors_of_torch_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    code, text = ends(lambda: torch.empty(10**18) and None, capsys)
    assert code == 2
    assert text.startswith("error: out of memory: ")
    code, text = ends(raising(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")), capsys)
    assert (code, text.count("\n")) == (2, 1)


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    import torch.distributed as dist

    first = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    code, text = ends(lambda: dist.TCPStore("127.0.0.1", first.port, 1, is_master=True) and None, capsys)
    assert code == 2
    assert "MASTER_PORT" in text
    assert text.count("\n") == 1


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_the_traceback_of_a_system_error_is_shown_on_request(tmp_path: Path) -> None:
    program = f"from whitebench.errors import run_command; run_command(lambda: open({str(tmp_path / 'no')!r}))"
    command = [sys.executable, "-c", program]
    brief = subprocess.run(command, capture_output=True, text=True)
    long = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "WHITEBENCH_TRACEBACK": "1"})
    assert brief.stderr == f"error: {tmp_path / 'no'}: file not found\n"
    assert "Traceback" in long.stderr
    assert long.stderr.endswith(brief.stderr)
    assert brief.returncode == long.returncode == 2


def test_a_user_error_is_its_text() -> None:
    assert describe(UserError("a: b")) == "a: b"


def test_a_user_error_is_one_line_whatever_names_it_quotes() -> None:
    assert str(UserError("stages.\n\r: unknown stage")) == r"stages.\n\r: unknown stage"


@pytest.mark.parametrize("command", [["-m", "pretrain"], ["slurm/launch_sweep.py"], ["-m", "pretrain.data", "show"]])
def test_a_name_that_no_file_system_takes_is_one_short_line(command: list[str]) -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, *command, "x" * 5000], cwd=root, capture_output=True, text=True, timeout=300)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
