"""What a record says of the processor."""

from pathlib import Path

import pytest

from whitebench.environment import environment, processor

AMD = """processor	: 0
vendor_id	: AuthenticAMD
cpu family	: 25
model		: 17
model name	: AMD EPYC 9B14

processor	: 1
"""
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd\n"


@pytest.mark.parametrize(
    ("text", "described"),
    [
        (AMD, {"processor": "AMD EPYC 9B14", "processor_family": "AuthenticAMD 25.17"}),
        (ARM, {}),
        ("", {}),
        ("\x00\xff no colon\nmodel name:\n", {}),
    ],
)
def test_the_processor_is_named_as_the_system_names_it(text: str, described: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert processor(path) == described


def test_no_file_is_no_error(tmp_path: Path) -> None:
    assert processor(tmp_path / "missing") == {}


def test_a_record_names_the_kernels_that_torch_chooses() -> None:
    import torch

    assert environment()["vector_extension"] == torch.backends.cpu.get_cpu_capability()
