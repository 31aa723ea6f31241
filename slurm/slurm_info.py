"""What a SLURM cluster says of itself: its limits on arrays, on time and on the number of jobs."""

import getpass
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field

from slurm.slurm_command import SlurmUnavailable, ask
from whitebench.errors import UserError

ACCOUNTING_S = 20.0
"""What accounting may take to say what its limits are; they help, but nothing depends on them."""


@dataclass(frozen=True)
class QosLimits:
    minutes: int | None = None
    """That a job may ask for."""
    jobs: int | None = None
    """That a user may have in the queue, waiting or running."""


@dataclass(frozen=True)
class Limits:
    """What the cluster allows. None, or a missing key, means no limit, or an unknown one."""

    array: int = 1001
    """Tasks of an array."""
    partitions: Mapping[str | None, int] = field(default_factory=dict)
    """Partition to the minutes that it allows a job; None stands for the default partition."""
    qos: Mapping[str, QosLimits] = field(default_factory=dict)
    account: QosLimits = QosLimits()
    """Of this user's accounts, as far as all of them have one."""

    def minutes(self, partition: str | None, qos: str | None) -> int | None:
        """The longest time that a job may ask for."""
        allowed = [self.partitions.get(partition), self.account.minutes]
        allowed += [self.qos[qos].minutes] if qos is not None and qos in self.qos else []
        return min((limit for limit in allowed if limit is not None), default=None)

    def jobs(self, qos: str | None) -> int | None:
        """How many jobs this user may have in the queue."""
        allowed = [self.account.jobs, self.qos[qos].jobs if qos is not None and qos in self.qos else None]
        return min((limit for limit in allowed if limit is not None), default=None)


def read_limits() -> Limits:
    """Asks the controller, and accounting where there is any.

    Raises:
        UserError: the controller does not answer.
    """
    return Limits(max_array_size(), time_limits(), *_accounting_limits())


def max_array_size() -> int:
    """Tasks that one array may have; 1 where arrays are switched off."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    if not match:
        raise UserError("SLURM does not report its MaxArraySize (scontrol show config)")
    return max(1, int(match[1]))


def time_limits() -> dict[str | None, int]:
    """Partition to the minutes that it allows a job, where it sets a limit; None stands for the default partition."""
    limits: dict[str | None, int] = {}
    for line in ask("sinfo", "-h", "-o", "%P|%l").splitlines():
        name, _, text = line.strip().partition("|")
        minutes = parse_minutes(text)
        if minutes is not None:
            limits[name.rstrip("*")] = minutes
            if name.endswith("*"):
                limits[None] = minutes
    return limits


def _accounting_limits() -> tuple[dict[str, QosLimits], QosLimits]:
    """Limits of each QOS, and of this user's accounts; none where accounting does not answer."""
    if shutil.which("sacctmgr") is None:
        return {}, QosLimits()
    try:
        fields = "format=name,maxwall,maxsubmitjobsperuser"
        qos = parse_limits(ask("sacctmgr", "-n", "-P", "show", "qos", fields, timeout=ACCOUNTING_S))
        user = f"user={getpass.getuser()}"
        fields = "format=account,maxwall,maxsubmitjobs"
        accounts = parse_limits(ask("sacctmgr", "-n", "-P", "show", "assoc", user, fields, timeout=ACCOUNTING_S))
    except (SlurmUnavailable, OSError, KeyError):
        return {}, QosLimits()
    return qos, _widest(accounts)


def parse_limits(text: str) -> dict[str, QosLimits]:
    """Lines of `name|time|jobs`, as sacctmgr prints them; empty fields mean no limit."""
    limits: dict[str, QosLimits] = {}
    for line in text.splitlines():
        name, *values = line.strip().split("|")
        if len(values) >= 2:
            limits[name] = QosLimits(parse_minutes(values[0]), int(values[1]) if values[1].isdigit() else None)
    return limits


def _widest(limits: Mapping[str, QosLimits]) -> QosLimits:
    """A limit counts only where all accounts have one: we do not know which of them a job will use."""
    if not limits:
        return QosLimits()
    minutes, jobs = ([getattr(entry, name) for entry in limits.values()] for name in ("minutes", "jobs"))
    return QosLimits(None if None in minutes else max(minutes), None if None in jobs else max(jobs))


def parse_minutes(text: str) -> int | None:
    """Whole minutes of a time as SLURM writes it; None for `infinite` and the like."""
    seconds = parse_seconds(text)
    return None if seconds is None else seconds // 60


def parse_seconds(text: str) -> int | None:
    """SLURM's `days-hours:minutes:seconds`, shortened from the left; None for `infinite` and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip(), re.ASCII)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
