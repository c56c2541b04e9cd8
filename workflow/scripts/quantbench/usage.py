"""What a study's runs used: device hours per gpu, the share spent measuring, engine starts, what killed runs lost.

Counted from run records (provenance.new_run): in a Slurm job from the start of the allocation, outside of one from the start
of the process; until the record's end. A run without an end goes on, which its process or Slurm says, and counts until now;
or it was killed, and counts until the last sign of life, the record or a point that it wrote, so "at least". Where neither
can be asked, it counts as killed, and the answer says so. A job that found all of its points in the store leaves no record.
Pure, but for what is below "reading the store".
"""

import contextlib
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime

from quantbench import lock, slurm
from quantbench.estimate import Evidence, estimate_jobs, read_evidence, store_lacks
from quantbench.points import CHECKPOINT_JOBS, LOGIN_JOBS, job_of

# Rules write their logs there; it tells whose run it was, since studies share a store.
LOG = re.compile(r"(?:^|/)results/(?P<study>[^/]+)/logs/")
QUANTIZING = "quantizing"
# What became of a run without an end.
GOING, KILLED, UNKNOWN = "going", "killed", "unknown"


@dataclass(frozen=True)
class Used:
    """One gpu's sums. Seconds; `killed` and `lost_s` are of runs that ended without saying so, `unknown` counts those among
    them that may go on, `going` those that do; in_slurm counts runs in an allocation."""

    runs: int
    in_slurm: int
    wall_s: float
    measuring_s: float
    starts: int
    start_s: float
    going: int
    killed: int
    unknown: int
    lost_s: float

    @property
    def share(self):
        """Share of the time that was spent measuring; None where no time was counted."""
        return self.measuring_s / self.wall_s if self.wall_s else None


def usage(runs):
    """{gpu: Used}; runs that quantized are under QUANTIZING.

    runs  records as `read_runs_of` gives them: with `kept_s`, the seconds of their points in the store, `fate` and `seen_at`
    """
    places = defaultdict(list)
    for run in (run for run in runs if run["stage"] not in LOGIN_JOBS):
        places[run["gpu"] or QUANTIZING].append(run)
    return {place: _sum(found) for place, found in sorted(places.items())}


def _sum(runs):
    walls = [wall_s(run) for run in runs]
    fates = Counter(run["fate"] for run in runs)
    killed = [(run, wall) for run, wall in zip(runs, walls, strict=True) if run["fate"] in (KILLED, UNKNOWN)]
    return Used(
        runs=len(runs),
        in_slurm=sum(bool(run.get("allocated_at")) for run in runs),
        wall_s=sum(walls),
        measuring_s=sum(_measuring_s(run) for run in runs),
        starts=sum(run["engine_starts"] for run in runs),
        start_s=sum(run["engine_start_s"] or 0.0 for run in runs),
        going=fates[GOING],
        killed=len(killed),
        unknown=fates[UNKNOWN],
        lost_s=sum(max(wall - _measuring_s(run), 0.0) for run, wall in killed),
    )


def wall_s(run):
    """Seconds that the device was this run's."""
    began = datetime.fromisoformat(run.get("allocated_at") or run["started_at"])
    ended = datetime.fromisoformat(run["ended_at"] or run["seen_at"])
    return max((ended - began).total_seconds(), 0.0)


def _measuring_s(run):
    """Seconds of points that were kept: a run's record is written again at its end, and until then does not count them."""
    return run["measured_s"] if run["ended_at"] else run["kept_s"]


def rerun_s(manifest, took, evidence):
    """{gpu: seconds} to measure the whole study again with an empty store: per job its start, then each point as long as
    it took; by estimate.py where it has not been measured.

    took  {point key: measured_s}
    """
    asked = {point["key"] for point in manifest["points"]} | {
        c["key"] for c in manifest["checkpoints"] if c["quantized"]
    }
    points = defaultdict(set)
    for point in manifest["points"]:
        points[job_of(point)].add(point["key"])
    found = defaultdict(float)
    for (rule, target), estimate in estimate_jobs(manifest, asked, evidence).items():
        if rule == "quantize_model":
            found[QUANTIZING] += estimate.seconds
        elif rule not in LOGIN_JOBS:
            keys = points[rule, target]
            known = keys <= took.keys()
            place = QUANTIZING if rule in CHECKPOINT_JOBS else target[0]
            found[place] += estimate.start_s + sum(took[key] for key in keys) if known else estimate.seconds
    return dict(found)


def usage_text(manifest, used, again):
    """The answer as text: one block per gpu, and how the hours were counted."""
    lines = [f"study {manifest['study']['study']}: {sum(one.runs for one in used.values())} runs"]
    if not used:
        return lines[0] + "; nothing has been measured for it in this store"
    head = f"{'gpu':<12}{'jobs':>6}{'hours':>9}{'measuring':>11}{'starts':>8}{'start h':>9}{'killed':>8}{'lost h':>8}{'rerun h':>9}"
    lines += ["", head]
    for place, one in used.items():
        share = "-" if one.share is None else f"{100 * one.share:.0f} %"
        lines.append(
            f"{place:<12}{one.runs:>6}{hours(one.wall_s):>9}{share:>11}{one.starts:>8}{hours(one.start_s):>9}"
            f"{one.killed:>8}{hours(one.lost_s):>8}{hours(again.get(place, 0.0)):>9}"
        )
    lines += ["", *_costs(manifest, used, again), *_counted(used)]
    return "\n".join(lines)


def hours(seconds):
    """3600 -> "1.00"; less than half a minute in the digits that it needs."""
    return f"{seconds / 3600:.2f}" if seconds >= 36 or not seconds else f"{seconds / 3600:.4f}"


def _costs(manifest, used, again):
    lines = []
    for place, one in used.items():
        price = manifest["gpus"].get(place, {}).get("price_usd_per_hour")
        if price:
            now, then = (price * seconds / 3600 for seconds in (one.wall_s, again.get(place, 0.0)))
            lines.append(f"{place}: {now:.2f} USD used, a rerun {then:.2f} USD, at {price} USD per hour")
    return lines


def count(runs):
    return f"{runs} run{'s' * (runs != 1)}"


def _counted(used):
    runs, in_slurm = (sum(getattr(one, name) for one in used.values()) for name in ("runs", "in_slurm"))
    lines = [
        f"hours: {in_slurm} of {runs} runs from the start of their Slurm allocation, the others from their process's"
    ]
    going, killed, unknown = (sum(getattr(one, name) for one in used.values()) for name in (GOING, KILLED, UNKNOWN))
    if going:
        lines.append(f"going: {count(going)} in progress, counted until now with the points kept so far")
    if killed:
        lines.append(
            "killed: runs without an end, counted until the last thing they wrote; lost: their time without kept points"
        )
    if unknown:
        lines.append(
            f"killed, perhaps: {count(unknown)} of machines that cannot be asked from here; what goes on there is not lost"
        )
    return [*lines, "rerun: everything measured once more, as long as each point took"]


# --- reading the store ----------------------------------------------------------------------------------------------


def read_usage(manifest, store):
    """usage_text of a study, from its store."""
    keys = {point["key"] for point in manifest["points"]}
    records = {key: record for key in keys if (record := store.read_point(key))}
    took = {key: record["measured_s"] or 0.0 for key, record in records.items()}
    lacking = store_lacks(manifest, store)
    evidence = read_evidence(manifest, store, lacking) if lacking else Evidence(runs=list(store.read_runs().values()))
    evidence.points += [r for r in records.values() if r["status"] == "ok" and r["measured_s"] is not None]
    runs = read_runs_of(manifest["study"]["study"], store, records)
    return usage_text(manifest, usage(runs), rerun_s(manifest, took, evidence))


def read_runs_of(study, store, records):
    """The study's run records, each with `kept_s`, `fate` (None of a run that ended) and `seen_at` (see `usage`).

    records  {key: point record} of the study's points in the store
    """
    kept, seen = defaultdict(float), {}
    for key, record in records.items():
        kept[record["run_id"]] += record["measured_s"] or 0.0
        if record["run_id"]:
            written = store.point_path(key).stat().st_mtime
            seen[record["run_id"]] = max(seen.get(record["run_id"], 0.0), written)
    ours = {run_id: run for run_id, run in store.read_runs().items() if study_of(run) == study}
    fates = ask_fates({run_id: run for run_id, run in ours.items() if not run["ended_at"]})
    now, found = datetime.now(UTC), []
    for run_id, run in ours.items():
        # One that ended while we asked has its end by now.
        run = store.read_run(run_id) if run_id in fates else run
        last = max(seen.get(run_id, 0.0), (store.root / "runs" / f"{run_id}.json").stat().st_mtime)
        fate = None if run["ended_at"] else fates[run_id]
        seen_at = now if fate == GOING else datetime.fromtimestamp(last, UTC)
        found.append(run | {"kept_s": kept[run_id], "fate": fate, "seen_at": seen_at.isoformat()})
    return found


def study_of(run):
    """Name of the study for which a run was made; None of one by hand."""
    found = LOG.search(run.get("log") or "")
    return found and found["study"]


def ask_fates(runs):
    """{run_id: GOING, KILLED or UNKNOWN} of {run_id: record} without an end: by its process on this machine, else by Slurm."""
    jobs = None
    if any(run.get("slurm_job") for run in runs.values()):
        # Of all users, since they may share the store.
        with contextlib.suppress(slurm.Silent):
            jobs = slurm.jobs("--all")
    return {run_id: fate_of(run, jobs) for run_id, run in runs.items()}


def fate_of(run, jobs):
    """What became of a run without an end.

    jobs   {id: slurm.Job} of all that Slurm knows; None where it cannot be asked
    """
    goes_on = lock.alive(run.get("process") or {})
    if goes_on is None and jobs is not None and run.get("slurm_job") and run.get("allocated_at"):
        job = jobs.get(run["slurm_job"])
        goes_on = job is not None and job.runs_since(datetime.fromisoformat(run["allocated_at"]))
    return {True: GOING, False: KILLED, None: UNKNOWN}[goes_on]
