"""What we ask of Slurm's own commands, beside Snakemake's executor.

snakemake-executor-plugin-slurm (2.8.0) asks one status command for the states of its jobs. It waits without end, and
without a word, for a job that this command does not list: one that ended and left squeue's memory (MinJobAge), and any
job where sacct is asked on a cluster that keeps no accounting. At each look it chooses sacct although squeue is set
whenever MinJobAge is short or could not be read just then. What it says of a failed job is its state.

Before the first job `start` refuses what would end like that, makes squeue stay the choice where it is set, and cancels
what a killed run left in the queue; during the run a Watch says in one line what became of a job, and gives up jobs that
Slurm has forgotten.
"""

import getpass
import math
import re
import subprocess
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from quantbench import lock
from quantbench.errors import UserError

ASK_S = 60
# squeue has to miss a job so many times in a row before we believe that it is gone.
MISSING_POLLS = 3
# Longer than KillWait's default (30 s) and the time a node takes to say that a job has ended.
CANCEL_S = 120

FAILURES = {
    "BOOT_FAIL": "its node did not boot",
    "CANCELLED": "it was cancelled, with scancel or by an administrator",
    "DEADLINE": "it missed its deadline",
    "FAILED": "it failed",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "it needed more memory than it had asked for",
    "PREEMPTED": "a job of higher priority took its place",
    "TIMEOUT": "it reached its time limit",
}
# Slurm tells whole seconds, and a job that is queued again waits for more than these.
SAME_START = timedelta(seconds=2)
# Reasons for which a job waits until somebody releases it: squeue(1), JOB REASON CODES, and slurmctld's own sentences, such as
# "job requeued in held state" and "launch failed requeued held".
HELD = re.compile(r"JobHeld(Admin|User)|JobHoldMaxRequeue|.*[ _]held([ _].*)?")
# And their sizes, since squeue cuts a field to 20 characters.
FIELDS = {
    "JobID": 32,
    "Name": 128,
    "State": 32,
    "Reason": 64,
    "RestartCnt": 8,
    "StartTime": 32,
    "Comment": 1024,
    "WorkDir": 4096,
}


class Silent(Exception):
    """A command of Slurm that failed or did not answer, and what it said."""


@dataclass
class Job:
    """A line of squeue. `name` is the executor's name for a run, `comment` says rule and wildcards.

    started  local time without a zone, ISO 8601; of a job that waits, "N/A" or Slurm's expectation
    """

    id: str
    name: str
    state: str
    reason: str
    restarts: int
    started: str
    comment: str
    folder: str

    def runs_since(self, moment):
        """Whether it runs since this moment (with a zone): a job that was queued again keeps its number and starts anew."""
        if self.state not in ("RUNNING", "SUSPENDED"):
            return False
        return abs(datetime.fromisoformat(self.started).astimezone() - moment) < SAME_START

    @property
    def held(self):
        """Whether it waits for somebody to release it, and not for room."""
        return self.state in ("PENDING", "COMPLETING") and HELD.fullmatch(self.reason) is not None


def ask(*command):
    """What a command of Slurm prints. Raises Silent."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S)
    except FileNotFoundError as error:
        raise Silent(f"{command[0]} is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise Silent(f"{command[0]} has not answered for {ASK_S} s") from error
    if ended.returncode != 0:
        raise Silent(" ".join(ended.stderr.split()) or f"{command[0]} exits with {ended.returncode}")
    return ended.stdout


def jobs(*options):
    """{id: Job}, ended ones too as long as Slurm knows them. Raises Silent.

    options  of squeue: which jobs; without any, this user's
    """
    # The folder comes last, since it alone may contain the separator.
    wanted = ",".join(f"{name}:{size}|" for name, size in FIELDS.items())
    which = options or [f"--user={getpass.getuser()}"]
    return parse_jobs(ask("squeue", "--noheader", "--states=all", f"--Format={wanted}", *which))


def parse_jobs(answer):
    found = {}
    for line in filter(str.strip, answer.splitlines()):
        id, name, state, reason, restarts, started, comment, folder = map(str.strip, line.split("|", len(FIELDS) - 1))
        folder = folder.removesuffix("|").rstrip()
        found[id] = Job(id, name, state, reason, int(restarts or 0), started, comment, folder)
    return found


def parse_config(text):
    """{name: value} of `scontrol show config`."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def complaint(config, status_command):
    """Why the executor would wait for its jobs without end on this cluster, and what to change; None where it will not."""
    if status_command == "sacct" and config.get("AccountingStorageType", "").endswith("/none"):
        return (
            "this cluster keeps no accounting (AccountingStorageType = accounting_storage/none), so sacct knows no jobs and"
            " Snakemake would wait for them without end: set `slurm-status-command: squeue` in slurm/config.yaml"
        )
    return None


def stay_with_squeue():
    """Make the executor ask squeue at each look where that is its setting; a Watch settles what squeue has forgotten."""
    import snakemake_executor_plugin_slurm as plugin

    # It asks this at each look, and changes to sacct where the answer is below three intervals or none.
    plugin.get_min_job_age = lambda: math.inf


def left_behind(found, folder, study, running):
    """Jobs of a study that a killed Snakemake submitted from this folder and that have not ended, the oldest first.

    found    {id: Job}
    folder   absolute path
    running  names of runs whose Snakemake may be alive
    """
    submitted = re.compile(rf"rule_\w+_wildcards_{re.escape(study)}_")
    return [
        job
        for job in sorted(found.values(), key=lambda job: (len(job.id), job.id))
        if job.folder == str(folder)
        and submitted.match(job.comment)
        and job.name not in running
        and not ended(job.state)
    ]


def ended(state):
    return state == "COMPLETED" or state in FAILURES


def cancel(ids, say):
    """Cancel jobs and wait until they have ended: their processes would measure beside ours. Raises Silent, UserError."""
    ask("scancel", *ids)
    until = time.monotonic() + CANCEL_S
    while left := [id for id, job in jobs().items() if id in ids and not ended(job.state)]:
        if time.monotonic() > until:
            raise UserError(f"Slurm jobs {', '.join(left)} of a killed run do not end: have their nodes looked at")
        time.sleep(1)
    say(f"cancelled {count(ids)} ({', '.join(ids)}) that a killed run left in the queue; finished points are kept")


def count(ids):
    return f"{len(ids)} Slurm job{'s' * (len(ids) != 1)}"


def start(workflow, study, say):
    """Checks before the first job of a run; returns its Watch, already watching, or None where jobs don't go to Slurm.

    workflow  Snakemake's, from its onstart hook: this Snakemake has the lock
    say       function that shows the user one line
    Raises UserError.
    """
    executor = workflow.scheduler._executor
    run = getattr(executor, "run_uuid", None)
    settings = workflow.executor_settings
    if run is None:
        return None
    try:
        config = parse_config(ask("scontrol", "show", "config"))
        if found := complaint(config, settings.status_command):
            raise UserError(found)
        running = lock.live_slurm_runs() | {run}
        if left := left_behind(jobs(), Path.cwd(), study, running):
            cancel([job.id for job in left], say)
    except Silent as silence:
        raise UserError(f"Slurm does not answer ({silence}): nothing is submitted; try again when it does") from silence
    if settings.status_command == "squeue":
        stay_with_squeue()
    watch = Watch(executor, settings.init_seconds_before_status_checks, say)
    threading.Thread(target=watch.run, name="slurm_watch", daemon=True).start()
    return watch


@dataclass
class Watch:
    """Looks at a run's jobs as often as the executor would at first, and tells the user what becomes of them.

    executor    of Snakemake: active_jobs, report_job_success and report_job_error are its interface's
    interval_s  seconds between two looks
    say         function that shows the user one line
    """

    executor: object
    interval_s: float
    say: object
    before: dict = field(default_factory=dict)
    known: dict = field(default_factory=dict)
    missed: dict = field(default_factory=dict)
    gone: set = field(default_factory=set)
    silent: bool = False

    def __post_init__(self):
        # Of the instance: the executor has no other way to hear of a submission, and forgets a job that has failed.
        report = self.executor.report_job_submission

        def report_and_note(info, **options):
            # Whether it would be tried again: the count goes on as soon as the executor has seen a failure.
            self.known[info.external_jobid] = info, info.job.restart_times >= info.job.attempt
            report(info, **options)

        self.executor.report_job_submission = report_and_note

    def run(self):
        while self.executor.wait:
            time.sleep(self.interval_s)
            # The executor looks ever more seldom, down to every three minutes; what waits for a job would wait, too.
            wanted = self.executor.next_seconds_between_status_checks
            self.executor.next_seconds_between_status_checks = min(wanted, self.interval_s)
            try:
                found = jobs(f"--name={self.executor.run_uuid}")
            except Silent as silence:
                if not self.silent:
                    self.say(f"Slurm does not answer ({silence}); its jobs go on, and so does this run when it is back")
                self.silent = True
                continue
            if self.silent:
                self.say("Slurm answers again")
                self.silent = False
            self.look(found)

    def look(self, found):
        """Tell what is new in {id: Job}, and give up the jobs that are missing there."""
        with self.executor.lock:
            # A job that we gave up may have been put back by a look of the executor's.
            self.executor.active_jobs[:] = [j for j in self.executor.active_jobs if j.external_jobid not in self.gone]
            active = list(self.executor.active_jobs)
        for id, job in found.items():
            if id in self.known:
                self._tell(job, self.before.get(id), *self.known[id])
                self.before[id] = job
        for info in active:
            self.missed[info.external_jobid] = (
                0 if info.external_jobid in found else self.missed.get(info.external_jobid, 0) + 1
            )
            if self.missed[info.external_jobid] >= MISSING_POLLS:
                self._give_up(info)

    def _tell(self, job, before, info, again):
        """What is new about a job since it was `before`; None where it was not seen yet."""
        what = name(info)
        requeued = job.restarts > (before.restarts if before else 0)
        if job.held and not (before and before.held and not requeued):
            whose = "an administrator's " if job.reason == "JobHeldAdmin" else ""
            self.say(
                f"{what}: Slurm {f'queued job {job.id} again and holds it' if requeued else f'holds job {job.id}'}"
                f" ({job.reason}): it goes on after {whose}`scontrol release {job.id}`; its points are kept"
            )
        elif requeued:
            self.say(
                f"{what}: Slurm queued job {job.id} again, since its node failed or a job of higher priority took it;"
                " its points are kept, and it goes on when Slurm starts it again"
            )
        if job.state in FAILURES and not (before and before.state == job.state):
            said = own_words(info.aux["slurm_logfile"]) if job.state == "FAILED" else None
            # A script that says what is wrong says what to do, too.
            then = outlook(again) if again or not said else None
            why = said or (FAILURES[job.state] + (f": {log_of(info)} says why" if job.state == "FAILED" else ""))
            self.say(f"{what}: job {job.id} ended, {why}; its points are kept{f', {then}' if then else ''}")

    def _give_up(self, info):
        """Settle a job that Slurm has forgotten by what it left: its last act is to write its output."""
        id = info.external_jobid
        with self.executor.lock:
            if info not in self.executor.active_jobs:
                return
            self.executor.active_jobs.remove(info)
        self.gone.add(id)
        if all(Path(path).exists() for path in info.job.output):
            self.say(f"{name(info)}: Slurm has forgotten job {id}, which had finished")
            self.executor.report_job_success(info)
        else:
            _, again = self.known[id]
            self.say(f"{name(info)}: Slurm has forgotten job {id}; its points are kept, {outlook(again)}")
            self.executor.report_job_error(info, msg=f"Slurm does not know job {id} any more. ")


def name(info):
    """measure_engine h100 tiny fp8"""
    wildcards = [value for key, value in info.job.wildcards_dict.items() if key != "study"]
    return " ".join([info.job.name, *wildcards])


def outlook(again):
    return "it is submitted again" if again else "run the same command again to measure the rest"


def own_words(slurm_log, size=50_000):
    """What a job's script said last to the user, from its Slurm log; None where it said nothing."""
    slurm_log = Path(slurm_log)
    text = slurm_log.read_text(errors="replace")[-size:] if slurm_log.exists() else ""
    found = re.findall(r"^error: (.+)$", text, re.MULTILINE)
    return found[-1] if found else None


def log_of(info):
    """The log of a job's rule; Slurm's, where the rule's script was not reached."""
    written = [path for path in map(Path, info.job.log) if path.exists() and path.stat().st_size]
    return written[0] if written else info.aux["slurm_logfile"]
