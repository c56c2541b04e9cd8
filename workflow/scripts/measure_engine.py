"""Measure latency, throughput, accuracy and perplexity of one variant on one device: one engine start for all its points.

python workflow/scripts/measure_engine.py --job='{"gpu": "cpu", ...}' --store=results/store --output=POINTER
"""

import os
import time
from pathlib import Path

from quantbench.engine.settings import engine_environment
from quantbench.engine_failure import classify_failure
from quantbench.gpus import check_device
from quantbench.jobs import job_options
from quantbench.kernel_verdict import known_failure, refusal
from quantbench.keys import canonical_json
from quantbench.points import check_versions, expand, missing_points
from quantbench.progress import Progress
from quantbench.provenance import finish, new_run
from quantbench.scratch import local_checkpoint
from quantbench.store import write_atomically
from quantbench.supervise import supervised


def main(argv=None):
    options = job_options(argv, __doc__.splitlines()[0])
    job, store = options.job, options.store
    points = missing_points(job, store)
    if points:
        progress = Progress(f"engine {job['gpu']} {job['model']}/{job['scheme']}", len(points), options.manifest, store)
        load = store.read_point(next(point["key"] for point in expand(job) if point["stage"] == "load"))
        if failure := known_failure(load, job["expects"], job["engine_args"]["dtype"]):
            for point in points:
                store.write_failure(point["identity"], failure, load["run_id"])
                progress.step()
        else:
            measure(job, points, store, progress)
    write_atomically(options.output, canonical_json({"measured": [point["key"] for point in points]}))


def measure(job, points, store, progress):
    """Start the engine, then measure and keep each point; what the engine refuses is kept with its reason."""
    os.environ.update(engine_environment(job["gpu_entry"]))
    run = new_run("measure_engine", job)
    check_device(job["gpu_entry"], run["device_name"])
    check_versions(points, run["versions"])
    progress.say("starting the engine")
    run["engine_starts"] = 1
    store.write_run(run)

    def keep(point, status, rows, reason=None, measured_s=None):
        store.write_point(
            point["identity"], status=status, rows=rows, reason=reason, measured_s=measured_s, run_id=run["run_id"]
        )
        run["points_measured"] += 1
        run["measured_s"] += measured_s or 0.0
        progress.step()

    session, failure = start(job)
    if failure:
        for point in points:
            keep(point, failure[0], [], failure[1])
        store.write_run(finish(run))
        return
    run["engine_start_s"], run["kernels"] = session.start_s, session.kernels
    store.write_run(run)
    progress.begin()
    # A scheme that ran as something else entirely is never reported as the scheme; that it loaded is a fact.
    wrong = refusal(job["expects"], session.kernels, job["engine_args"]["dtype"])
    measurers = Measurers(session, job, store)
    # Asked again before each point: another run may have measured it while the engine started.
    for [point] in store.unmeasured([point] for point in points):
        if wrong and point["stage"] != "load":
            keep(point, "invalid", [], wrong)
            continue
        started = time.perf_counter()
        try:
            rows = getattr(measurers, point["stage"])(point["params"])
        except Exception as error:
            # Refused for this point alone: the engine lives and the rest goes on.
            if failure := classify_failure(str(error)):
                keep(point, failure[0], [], failure[1])
                continue
            # An engine in a process of its own died, and its log says why: the point is a result, a new run does the rest.
            if failure := classify_failure(log_tail()):
                keep(point, failure[0], [], failure[1])
            raise
        keep(point, "ok", rows, measured_s=time.perf_counter() - started)
    store.write_run(finish(run))


def start(job):
    """(session, None), or (None, (status, reason)) when the engine refuses for good. Anything else is a crash."""
    from quantbench.engine.session import Session

    checkpoint = local_checkpoint(job["checkpoint_path"])
    try:
        return Session(checkpoint, job["engine_args"]), None
    except Exception as error:
        # An engine core in a process of its own says the cause in the log only.
        failure = classify_failure(str(error)) or classify_failure(log_tail())
        if failure is None:
            raise
        return None, failure


def log_tail(size=20_000):
    """The end of this job's log, where it has one."""
    path = os.environ.get("QUANTBENCH_LOG")
    if not path or not Path(path).exists():
        return ""
    return Path(path).read_text(errors="replace")[-size:]


class Measurers:
    """One method per stage: parameters of a point in, its rows out."""

    def __init__(self, session, job, store):
        self.session, self.job, self.store = session, job, store
        self._scorer = None

    @property
    def scorer(self):
        if self._scorer is None:
            from quantbench.engine.scoring import Scorer

            self._scorer = Scorer(self.session, self.job["engine_args"].get("trust_remote_code", False))
        return self._scorer

    def load(self, params):
        return [self.session.load_record()]

    def latency(self, params):
        return self.session.latency(**params)

    def throughput(self, params):
        return self.session.throughput(**params)

    def accuracy(self, params):
        return self.scorer.accuracy(params, self.store.folder("datasets", params["dataset"]))

    def perplexity(self, params):
        return self.scorer.perplexity(params, self.store.folder("datasets", params["dataset"]))


if __name__ == "__main__":
    supervised(main)
