"""Fixtures that several tests share: a small dataset made here, and the places of data that may be absent."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.leftovers import end_leftovers, mark_this_run

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"
Disk = Callable[[int], Path]
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")  # a busy machine is not a failure
RUN = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """All processes that the run starts inherit a mark; workers of pytest-xdist are such processes themselves."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # of a shell that runs the tests in the background; processes that tests start would ignore Ctrl-C, too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        config.stash[RUN] = mark_this_run()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that leaves processes behind is not green: they are listed, and killed."""
    run = session.config.stash.get(RUN, None)
    leftovers = end_leftovers(run) if run else {}
    if leftovers:
        listed = "\n".join(f"  {process}  {command}" for process, command in leftovers.items())
        print(f"\nprocesses that this run left behind (killed now):\n{listed}", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the built-in sample: the user's or the checkout's, otherwise one made for these tests."""
    from pretrain.data.sample.write import CLASSIFICATION, DETECTION, is_whole, write_sample

    for root in (Path(os.environ.get("WHITEBENCH_DATA", "data")), REPOSITORY / "data"):
        if is_whole(root / CLASSIFICATION) and is_whole(root / DETECTION):
            return root.absolute()
    root = tmp_path_factory.mktemp("data")
    write_sample(root)
    return root


@pytest.fixture(scope="session")
def tiny_root(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the sample and `tiny`, its digits 0, 1 and 2: 431 training images."""
    from pretrain.data.betons.manifest import read_manifest
    from pretrain.data.betons.write import write_subset

    root = tmp_path_factory.mktemp("tiny-data")
    for name in ("sample", "sample-det"):
        (root / name).symlink_to(sample_root / name)
    write_subset(read_manifest(root / "sample"), root / "tiny", ["0", "1", "2"])
    return root


@pytest.fixture
def places(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sample and `tiny` as data, and an empty runs folder, which is returned."""
    runs = tmp_path / "runs"
    monkeypatch.setenv("WHITEBENCH_DATA", str(tiny_root))
    monkeypatch.setenv("WHITEBENCH_RUNS", str(runs))
    return runs


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs one of the project's commands as a user does: command("slurm/launch_sweep.py", "--help")."""

    def run(*arguments: str, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """disk(megabytes): a file system of that size, kept in memory; with more megabytes it grows."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(megabytes: int) -> Path:
        nonlocal mounted
        how = f"size={megabytes}m" if not mounted else f"remount,size={megabytes}m"
        told = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", place], capture_output=True, text=True)
        if told.returncode:
            pytest.skip(f"needs to mount a file system: {told.stderr.strip() or 'not allowed'}")
        mounted = True
        return place

    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The launcher's command in this process: exit code and what it printed."""
    from slurm import launch_sweep

    def _launch(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["launch_sweep.py", *map(str, arguments)])
        code = launch_sweep.main()
        return code, capsys.readouterr().out

    return _launch
