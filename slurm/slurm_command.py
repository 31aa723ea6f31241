"""SLURM's commands, run so that the variables of the user's shell change neither the question nor the answer."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from whitebench.errors import UserError

TIMEOUT_S = 90.0
"""A busy controller may take a minute; SLURM's own commands give up after MessageTimeout and a few retries."""
PREFIXES = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SALLOC_", "SQUEUE_", "SINFO_", "SCANCEL_", "SACCT_", "SUBMITIT_")
KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_SACK_KEY", "SLURM_SACK_JWKS"})
"""Where the cluster is and who we are: without them SLURM's commands may find no controller."""
DISTRIBUTED = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "NODE_RANK"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
"""What torchrun and the like tell their processes: values of another job."""


TRANSIENT = re.compile(
    r"timed out|no answer|unable to contact slurm controller|connection (refused|reset|timed)|zero bytes|"
    r"send/recv|communication|slurmctld|resource temporarily unavailable|unexpected message",
    re.IGNORECASE,
)
"""What SLURM's commands say when the controller is busy, restarted or out of reach: asking again may help."""


class SlurmUnavailable(UserError):
    """SLURM did not answer. This is never the same as an empty queue."""


CONFIGURATIONS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")
UNCONFIGURED = re.compile(
    r"configuration source|DNS SRV|unable to (process|status|open) (configuration )?file", re.IGNORECASE
)
"""What SLURM's commands say where the packages are installed, but belong to no cluster."""


def is_installed() -> bool:
    """Whether this machine is a node of a cluster. Its controller may be down: that is another question."""
    if shutil.which("sbatch") is None or shutil.which("squeue") is None:
        return False
    configured = "SLURM_CONF" in os.environ or any(Path(path).exists() for path in CONFIGURATIONS)
    return configured or _finds_cluster()


@lru_cache
def _finds_cluster() -> bool:
    """Whether SLURM's commands find a configuration elsewhere: compiled in, or by the network."""
    try:
        ask("sinfo", "-h", "-o", "%P")
    except SlurmUnavailable as error:
        return not UNCONFIGURED.search(str(error))
    return True


def clean_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without the variables of another job, and without those by which SLURM's options are preset."""
    variables = os.environ if environment is None else environment
    return {
        name: value
        for name, value in variables.items()
        if name in KEPT or not (name.startswith(PREFIXES) or name in DISTRIBUTED)
    }


def ask(*command: str, timeout: float = TIMEOUT_S) -> str:
    """What a command of SLURM prints.

    Raises:
        SlurmUnavailable: it failed, is missing, or did not answer in `timeout` seconds; in its own words.
    """
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, env=clean_environment()
        )
    except subprocess.TimeoutExpired as error:
        raise SlurmUnavailable(f"SLURM does not answer: no answer from {command[0]} in {timeout:g} s") from error
    except OSError as error:
        raise SlurmUnavailable(f"SLURM does not answer: {command[0]}: {error.strerror}") from error
    if answer.returncode:
        raise SlurmUnavailable(f"SLURM does not answer: {first_words(answer.stderr) or f'{command[0]} failed'}")
    return answer.stdout


def first_words(text: str) -> str:
    """Of what a command wrote to stderr, the lines that say what is wrong, as one line."""
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    informative = [line for line in lines if not line.startswith(("Try ", "Usage:"))]
    return "; ".join((informative or lines)[:4])
