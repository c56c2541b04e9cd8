"""Measure a variant's missing serving points on one gpu: one server start for every request rate and concurrency.

A point is in the store the moment it is measured, and so is each load that a search sends. When the engine could not load the
variant, every serving point gets that status without a server. When the server dies under a load, that point is lost, not
stored, and this exits with 1.
"""

import asyncio
import os
import time
from pathlib import Path

from quantbench.console import say
from quantbench.energy import NO_METER, meter
from quantbench.engine.server import SERVED_NAME, EngineFailed, ServerDied, start_server
from quantbench.gpus import check_device
from quantbench.jobs import job_options
from quantbench.kernel_verdict import known_failure, refusal
from quantbench.keys import canonical_json, key
from quantbench.lengths import prompts_of
from quantbench.load import client_fault
from quantbench.points import check_versions, expand, missing_points
from quantbench.progress import Progress
from quantbench.provenance import finish, new_run
from quantbench.rate_search import next_rate, probe_identity, probe_row
from quantbench.scratch import local_checkpoint
from quantbench.start_phases import start_phases
from quantbench.store import write_atomically
from quantbench.supervise import supervised
from quantbench.time_limit import LIMITS

WATCH_S = 0.5


def main(argv=None):
    options = job_options(argv, __doc__.splitlines()[0])
    job, store = options.job, options.store
    missing = missing_points(job, store)
    if missing:
        label = f"serving {job['gpu']} {job['model']}/{job['scheme']}"
        progress = Progress(label, len(missing), manifest=options.manifest, store=store)
        load = store.read_point(key(job["load_point"])) if job.get("load_point") else None
        if failure := known_failure(load, job["expects"], job["engine_args"]["dtype"]):
            for point in missing:
                store.write_failure(point["identity"], failure, load["run_id"])
                progress.step()
        else:
            failed = measure(job, missing, store, progress, server_log(options.output))
            if failed:
                say(f"error: {failed}")
                return 1
    write_atomically(options.output, canonical_json({"points": sorted(point["key"] for point in expand(job))}))
    return 0


def measure(job, missing, store, progress, log):
    """Measure the missing points with one server; returns what went wrong, or None. A run record is kept either way."""
    run = new_run("measure_serving", job) | {"engine_starts": 1, "kernels": None, "log": str(log)}
    check_device(job["gpu_entry"], run["device_name"])
    check_versions(missing, run["versions"])
    store.write_run(run)
    asked, limits = {point["key"] for point in missing}, job.get("limits", LIMITS)

    def keep(identity, status, reason=None, rows=(), measured_s=None, energy=None):
        store.write_point(
            identity,
            status=status,
            reason=reason,
            rows=list(rows),
            run_id=run["run_id"],
            measured_s=measured_s,
            energy=energy,
        )
        run["points_measured"] += 1
        # A search's time is that of its loads, each of which is a point, but none of the job's.
        run["measured_s"] += 0 if identity["stage"] == "search" else measured_s or 0
        if key(identity) in asked:
            progress.step()

    checkpoint = local_checkpoint(job["checkpoint_path"])
    try:
        with start_server(checkpoint, job["engine_args"], log, job["gpu_entry"]) as server:
            server.wait_until_ready(limits["start_s"])
            run["engine_start_s"] = server.start_s
            run["start_phases_s"] = start_phases(Path(log).read_text(errors="replace"))
            run["kernels"] = server.kernels()
            progress.say(f"server ready after {server.start_s:.1f} s")
            if reason := refusal(job["expects"], run["kernels"], job["engine_args"]["dtype"]):
                for point in missing:
                    keep(point["identity"], "invalid", reason)
            else:
                # Asked again before each point: another run may have measured it while the server started.
                left = (point for [point] in store.unmeasured([point] for point in missing))
                prompts = prompts_of(job, Path(checkpoint))
                power = meter(job["gpu_entry"], job["engine_args"].get("tensor_parallel_size", 1))
                asyncio.run(measure_points(server, prompts, left, store, keep, power, limits["point_s"]))
    except EngineFailed as failure:
        for point in missing:
            keep(point["identity"], failure.status, failure.reason)
    except ServerDied as death:
        return str(death)
    finally:
        store.write_run(finish(run))
    return None


async def measure_points(server, prompts, points, store, keep, power=NO_METER, limit_s=LIMITS["point_s"]):
    """One load after another against a running server, each kept as it ends. Raises ServerDied, also of one that hangs."""
    from quantbench.engine.client import Client

    async with Client(server.url, SERVED_NAME, server.headers, prompts, power) as client:
        fresh = True

        async def measure_load(identity):
            nonlocal fresh
            began = time.monotonic()
            status, reason, rows = await load_result(server, client.measure(identity["params"], fresh), limit_s)
            fresh = False
            energy = None if status == "timeout" else client.energy
            keep(identity, status, reason, rows, time.monotonic() - began, energy)
            if status == "timeout":
                raise ServerDied(f"{reason}; run the same command again for the points that are left")

        for point in points:
            if point["stage"] == "search":
                await measure_search(point["identity"], measure_load, store, keep)
            else:
                await measure_load(point["identity"])


async def load_result(server, load, limit_s=LIMITS["point_s"]):
    """(status, reason, rows) of one load; one that takes longer than `limit_s` is ended. Raises ServerDied."""
    load = asyncio.ensure_future(load)
    # A dead server may leave its port open in a process below it, and requests would wait for ever.
    until = time.monotonic() + limit_s
    while server.alive() and not load.done():
        await asyncio.wait([load], timeout=WATCH_S)
        if not load.done() and time.monotonic() > until:
            load.cancel()
            return "timeout", f"the load was not done after {limit_s:g} s", []
    # Here, since it imports aiohttp, which only the engine's environment has.
    from quantbench.engine.client import first_error

    error = first_error(load.result()) if load.done() else None
    # A server whose engine died answers with errors before it ends: that is no result.
    if error and not await asyncio.to_thread(server.recovers):
        raise ServerDied(server.obituary())
    if not server.alive():
        load.cancel()
        raise ServerDied(server.obituary())
    error = error or client_fault(load.result())
    return "invalid" if error else "ok", error, load.result()


async def measure_search(identity, measure_load, store, keep):
    """Send load after load until the highest rate within the SLO is known, or the budget is spent.

    Each is a point in the store, and what the store has already is not sent again.
    """
    search, probes, began = identity["params"], [], time.monotonic()
    while (rate := next_rate(search, probes)) is not None:
        probe = probe_identity(identity, rate)
        if not store.has_point(key(probe)):
            await measure_load(probe)
        probes.append(probe_row(len(probes), probe, store.read_point(key(probe)), search["slo"]))
    keep(identity, "ok", rows=probes, measured_s=time.monotonic() - began)


def server_log(output):
    """The server's own log: beside the job's log where Snakemake says which that is, else beside the pointer."""
    return Path(os.environ.get("QUANTBENCH_LOG") or output).with_suffix(".server.log")


if __name__ == "__main__":
    supervised(main)
