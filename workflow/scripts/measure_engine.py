"""Measure latency, throughput and quality of one variant on one device: one engine start for all its points.

python workflow/scripts/measure_engine.py --job='{"gpu": "cpu", ...}' --store=results/store --output=POINTER
"""

import functools
import os
import time
from pathlib import Path

from quantbench import emulated
from quantbench.console import say
from quantbench.energy import METERED, meter
from quantbench.engine import emulation
from quantbench.engine.settings import engine_environment
from quantbench.engine_failure import classify_failure
from quantbench.errors import UserError
from quantbench.gpus import check_device
from quantbench.jobs import job_options
from quantbench.kernel_verdict import refusal
from quantbench.keys import canonical_json, key
from quantbench.lengths import prompts_of
from quantbench.points import check_versions, expand, missing_points, start_label
from quantbench.progress import Progress
from quantbench.provenance import finish, new_run
from quantbench.scratch import local_checkpoint
from quantbench.start_phases import start_phases
from quantbench.store import write_atomically
from quantbench.supervise import supervised
from quantbench.tasks import Unscorable
from quantbench.time_limit import LIMITS, time_limit


def main(argv=None):
    options = job_options(argv, __doc__.splitlines()[0])
    job, store = options.job, options.store
    points = missing_points(job, store)
    if points:
        label = f"engine {job['gpu']} {job['model']}/{start_label(job['scheme'], job.get('start'), 'emulate' in job)}"
        progress = Progress(label, len(points), options.manifest, store)
        load = own_load(job, store)
        if result := emulated.decided(job, load):
            for point in points:
                store.write_failure(point["identity"], result, load["run_id"])
                progress.step()
        else:
            measure(job, points, store, progress)
    write_atomically(options.output, canonical_json({"measured": [point["key"] for point in points]}))


def own_load(job, store):
    """The record of the `load` point that the job has or, to emulate, that its variant has; None where there is none.

    Raises UserError where an emulation would have to guess whether it is needed.
    """
    if "emulate" not in job:
        return store.read_point(next(point["key"] for point in expand(job) if point["stage"] == "load"))
    if job["load_point"] is None:
        return None
    load = store.read_point(key(job["load_point"]))
    if load is None:
        raise UserError(
            "whether the device has kernels of its own is not in the store; measure the scheme itself first"
        )
    return load


def measure(job, points, store, progress):
    """Start the engine, then measure and keep each point; what the engine refuses is kept with its reason."""
    os.environ.update(engine_environment(job["gpu_entry"]))
    if "emulate" in job:
        emulation.switch_on(job["emulate"])
    run = new_run("measure_engine", job)
    check_device(job["gpu_entry"], run["device_name"])
    check_versions(points, run["versions"])
    progress.say("starting the engine")
    run["engine_starts"] = 1
    store.write_run(run)

    def keep(point, status, rows, reason=None, measured_s=None, energy=None):
        done = {"measured_s": measured_s, "run_id": run["run_id"], "energy": energy}
        store.write_point(point["identity"], status=status, rows=rows, reason=reason, **done)
        run["points_measured"] += 1
        run["measured_s"] += measured_s or 0.0
        progress.step()

    limits = job.get("limits", LIMITS)

    def hung(points, reason):
        """What the limit's thread does: the points are results, and the process ends; a new run does what is left."""
        for point in points:
            keep(point, "timeout", [], reason)
        store.write_run(finish(run))
        say(f"error: {reason}; run the same command again for the points that are left")
        return 1

    library = check_tasks(job, points, store)
    unready = f"the engine was not ready after {limits['start_s']:g} s"
    # Copying weights to the node is no part of a start.
    checkpoint = local_checkpoint(job["checkpoint_path"])
    with time_limit(limits["start_s"], lambda: hung(points, unready)):
        session, failure = start(job, checkpoint)
    if failure:
        for point in points:
            keep(point, failure[0], [], failure[1])
        store.write_run(finish(run))
        return
    run["engine_start_s"], run["kernels"] = session.start_s, session.kernels
    run["start_phases_s"] = start_phases(log_tail(size=None))
    store.write_run(run)
    progress.begin()
    # A scheme that ran as something else entirely is never reported as the scheme; that it loaded is a fact.
    wrong = (emulated.fault if "emulate" in job else refusal)(
        job["expects"], session.kernels, job["engine_args"]["dtype"]
    )
    measurers = Measurers(session, job, store, library)
    late = f"the point was not done after {limits['point_s']:g} s"
    # Asked again before each point: another run may have measured it while the engine started.
    for [point] in store.unmeasured([point] for point in points):
        if wrong and point["stage"] != "load":
            keep(point, "invalid", [], wrong)
            continue
        if failure := measurers.cannot(point):
            keep(point, failure[0], [], failure[1])
            continue
        started = time.perf_counter()
        try:
            with time_limit(limits["point_s"], lambda point=point: hung([point], late)):
                rows = getattr(measurers, point["stage"])(point)
        except Unscorable as error:
            keep(point, "unsupported", [], str(error))
            continue
        except Exception as error:
            # Refused for this point alone: the engine lives and the rest goes on.
            if failure := classify_failure(str(error)):
                keep(point, failure[0], [], failure[1])
                continue
            # An engine in a process of its own died, and its log says why: the point is a result, a new run does the rest.
            if failure := classify_failure(log_tail()):
                keep(point, failure[0], [], failure[1])
            raise
        drawn = session.meter.record if point["stage"] in METERED else None
        keep(point, "ok", rows, measured_s=time.perf_counter() - started, energy=drawn)
    store.write_run(finish(run))


def check_tasks(job, points, store):
    """lm-eval's index of tasks, or None where none is asked for. A task that cannot be read is refused before an engine
    starts."""
    named = [point["params"] for point in points if point["params"].get("task")]
    if not named:
        return None
    from quantbench.engine.scoring import build_tasks
    from quantbench.engine.tasks import Library

    library = Library()
    for params in named:
        build_tasks(params, store, library, job.get("task_files", {}))
    return library


def start(job, checkpoint):
    """(session, None), or (None, (status, reason)) when the engine refuses for good. Anything else is a crash."""
    from quantbench.engine.session import Session

    try:
        power = meter(job["gpu_entry"], job["engine_args"].get("tensor_parallel_size", 1))
        return Session(checkpoint, job["engine_args"], power), None
    except Exception as error:
        # An engine core in a process of its own says the cause in the log only.
        failure = classify_failure(str(error)) or classify_failure(log_tail())
        if failure is None:
            raise
        return None, failure


def log_tail(size=20_000):
    """The end of this job's log, where it has one; all of it for size None."""
    path = os.environ.get("QUANTBENCH_LOG")
    if not path or not Path(path).exists():
        return ""
    text = Path(path).read_text(errors="replace")
    return text if size is None else text[-size:]


class Measurers:
    """One method per stage: a point in, its rows out."""

    def __init__(self, session, job, store, library=None):
        self.session, self.job, self.store, self.library = session, job, store, library
        self._scorer = None

    @property
    def scorer(self):
        if self._scorer is None:
            from quantbench.engine.scoring import Scorer

            trust = self.job["engine_args"].get("trust_remote_code", False)
            self._scorer = Scorer(self.session, trust, self.library, self.job.get("task_files", {}))
        return self._scorer

    def cannot(self, point):
        """(status, reason) of a point that another point rules out, or None."""
        if point["stage"] != "fidelity":
            return None
        reference = self.store.read_point(point["params"]["reference"])
        if reference is None:
            raise UserError("the baseline's distributions are not in the store; measure the baseline first")
        if reference["status"] != "ok":
            return reference["status"], f"the baseline has no distributions to compare with: {reference['reason']}"
        return None

    def load(self, point):
        return [self.session.load_record()]

    def latency(self, point):
        return self.session.latency(**point["params"])

    @functools.cached_property
    def prompts(self):
        return prompts_of(self.job, self.session.checkpoint)

    def throughput(self, point):
        return self.session.throughput(prompts=self.prompts, **point["params"])

    def accuracy(self, point):
        return self.scorer.accuracy(point["params"], self.store)

    def perplexity(self, point):
        return self.scorer.perplexity(point["params"], self.store)

    def reference(self, point):
        from quantbench.engine.fidelity import measure_reference

        texts = self.scorer.texts(point["params"], self.store)
        with self.store.new_folder("references", point["identity"], {}) as folder:
            return measure_reference(self.session, texts, point["params"], folder)

    def fidelity(self, point):
        from quantbench.engine.fidelity import measure_fidelity

        folder = self.store.folder("references", point["params"]["reference"])
        return measure_fidelity(self.session, point["params"], folder)


if __name__ == "__main__":
    supervised(main)
