"""Locks of a Snakemake that was killed: recognised as such, so that the same command simply works again.

Snakemake's lock files do not say whose they are, and stay when it is killed. A run that has locked notes beside them
which files are its own, and which process it is. A lock whose process is gone from this machine is removed; one of
another machine, or without a note, is left for the user to judge (`snakemake --unlock`).
"""

import contextlib
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

import psutil

NOTES = Path(".snakemake/quantbench")


def here():
    """What tells the process ids of this machine, since it started, from those of others: hosts may share a name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else None,
        "namespace": os.stat("/proc/self/ns/pid").st_ino if Path("/proc/self/ns/pid").exists() else None,
    }


def this_process():
    """What `alive` needs to find this process again, by whoever asks from this machine."""
    process = psutil.Process()
    return {**here(), "pid": process.pid, "process_started": process.create_time()}


def identity(path):
    """A file that is made anew under the same name is another file. None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_ino, found.st_mtime_ns]


def note(lock_files, folder=Path(), slurm_run=None):
    """Write down that this process holds these lock files of `folder`; returns the note's path, to be removed at the end.

    slurm_run  the name under which this process submits its Slurm jobs, if it does
    """
    record = {
        **this_process(),
        "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "locks": {str(path): identity(path) for path in lock_files},
        "slurm_run": slurm_run,
    }
    path = folder / NOTES / f"{record['host']}-{record['pid']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return path


def notes(folder=Path()):
    """{path: record} of the notes in a folder; one that is being written counts as none."""
    found = {}
    for path in sorted((folder / NOTES).glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            found[path] = json.loads(path.read_text())
    return found


def alive(record):
    """Whether the process of a record (`this_process`) is still there; None where that is not known: another machine's."""
    if any(record.get(name) != value for name, value in here().items()):
        return None
    try:
        process = psutil.Process(record["pid"])
        # The number may belong to another by now.
        return process.create_time() == record["process_started"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def dead(record):
    """Whether the process of a note is certainly gone."""
    return alive(record) is False


def held(record):
    """The lock files of a note that are still those it wrote down."""
    return [path for path, known in record["locks"].items() if known and identity(path) == known]


def release(folder=Path()):
    """Remove the locks and notes of killed processes; returns one line for each lock that was or still is in the way."""
    lines = []
    for path, record in notes(folder).items():
        locks = held(record)
        who = f"process {record['pid']} on {record['host']}, of {record['since']}"
        if dead(record):
            for lock in locks:
                Path(lock).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            if locks:
                lines.append(f"the Snakemake that worked here ({who}) was killed: its lock is removed")
        elif locks and record["pid"] != os.getpid():
            lines.append(
                f"another Snakemake works here ({who}); if it does not run any more, `snakemake --unlock` lets you go on"
            )
    return lines


def live_slurm_runs(folder=Path()):
    """Names under which other Snakemakes of this folder, not known to be dead, submit Slurm jobs."""
    return {record["slurm_run"] for record in notes(folder).values() if record["slurm_run"] and not dead(record)}
