"""A real Slurm for the tests (tests/slurm/cluster.py), and what it says of its jobs.

Skipped, with the packages to install as the reason, where they are not.
"""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from slurm.cluster import missing_packages

CLUSTER = Path(__file__).parent / "slurm" / "cluster.py"
EXECUTABLE = Path(sys.executable).parent


@dataclass(frozen=True)
class Job:
    """An entry of Slurm's own records. `gres` is what was asked for per node, "" where nothing; times are local."""

    id: int
    name: str
    comment: str
    state: str
    partition: str
    nodes: str
    gres: str
    started: datetime | None
    ended: datetime | None
    fields: dict

    def overlaps(self, other):
        """Whether both ran at some time."""
        return self.started < other.ended and other.started < self.ended


class Cluster:
    """A running Slurm below `folder`; its clients' wrappers come first in the PATH of `environment()`."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def environment(self):
        """Of a shell on the login node: no trace of another Slurm, and this project's interpreters."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return own | {"PATH": f"{self.folder / 'bin'}:{EXECUTABLE}:{os.environ['PATH']}"}

    def run(self, *command):
        """Output of one of Slurm's commands; a failing one is an error."""
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def jobs(self):
        """{id: Job} of every job that the controller still knows, by `scontrol show job`."""
        lines = self.run("scontrol", "show", "job", "--oneliner").splitlines()
        found = [read_job(line) for line in lines if line.startswith("JobId=")]
        return {job.id: job for job in found}

    def queue(self):
        """{id: state} of the jobs that are not ended."""
        return {job.id: job.state for job in self.jobs().values() if job.state in ("PENDING", "RUNNING", "COMPLETING")}

    def daemon(self, command, name, *options):
        """`start` or `stop` one of the daemons: slurmctld, munged, h100n1, ..."""
        control(command, self.folder, name, *options)

    def wait(self, condition, within_s, what):
        """Until condition(jobs) of `jobs` holds; returns them."""
        until = time.monotonic() + within_s
        while not condition(jobs := self.jobs()):
            assert time.monotonic() < until, f"{what}: not within {within_s} s; {jobs}"
            time.sleep(0.5)
        return jobs


def read_job(line):
    """Job of a line of `scontrol show job --oneliner`: Key=value, where a value may hold blanks."""
    fields = dict(re.findall(r"(\S+?)=(.*?)(?= [A-Z][A-Za-z/:]*=|\s*$)", line))
    return Job(
        id=int(fields["JobId"]),
        name=fields["JobName"],
        comment=fields.get("Comment", ""),
        state=fields["JobState"],
        partition=fields["Partition"],
        nodes=fields["NodeList"].replace("(null)", ""),
        gres=fields.get("TresPerNode", "").removeprefix("gres:"),
        started=moment(fields["StartTime"]),
        ended=moment(fields["EndTime"]),
        fields=fields,
    )


def moment(text):
    return None if text in ("Unknown", "None") else datetime.fromisoformat(text)


def control(command, folder, *more):
    done = subprocess.run(
        [sys.executable, CLUSTER, command, folder, *more], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def running_cluster(folder, *options):
    """A cluster from here to the end of the block. Skips where packages are missing."""
    if missing := missing_packages("--accounting" in options):
        pytest.skip(f"needs a real Slurm: apt-get install {' '.join(missing)}")
    try:
        control("up", folder, *options)
        yield Cluster(folder)
    finally:
        control("down", folder)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Without accounting, as many sites are."""
    with running_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def slurm_with_accounting(tmp_path_factory):
    """With slurmdbd and its database."""
    with running_cluster(tmp_path_factory.mktemp("slurm") / "cluster", "--accounting") as cluster:
        yield cluster
