"""Time the matrix products of a study's shapes, in every format and by every contender, on one device: rule measure_gemm.

Reads its points from --job, measures those that the store lacks, writes each the moment it is measured, and writes the
list of all its points' keys to --output last.
"""

import os
import random
import traceback

from quantbench.engine.settings import engine_environment
from quantbench.errors import UserError
from quantbench.gpus import check_device
from quantbench.jobs import job_options
from quantbench.keys import canonical_json
from quantbench.points import check_versions, expand, missing_points
from quantbench.progress import Progress
from quantbench.provenance import finish, new_run
from quantbench.store import write_atomically
from quantbench.supervise import supervised

SHUFFLE_SEED = 0


def main(argv=None):
    options = job_options(argv, __doc__.splitlines()[0])
    job, store = options.job, options.store
    points = missing_points(job, store)
    if points:
        measure(job, store, points, Progress(f"kernels {job['gpu']}", len(points), options.manifest, store))
    write_atomically(options.output, canonical_json({"points": sorted(point["key"] for point in expand(job))}))


def measure(job, store, points, progress):
    """Measure points layer by layer: making and repacking a layer's weights costs more than timing it.

    A layer that crashes costs its own points: the others are measured first, then the process fails.
    """
    run = new_run("measure_gemm", job)
    check_device(job["gpu_entry"], run["device_name"])
    check_versions(points, run["versions"])
    os.environ.update(engine_environment(job["gpu_entry"]))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from quantbench.gemm.harness import Harness

    store.write_run(run)
    crashes = []
    with Harness("cuda" if job["gpu_entry"]["environment"] == "engine-cuda" else "cpu") as harness:
        for layer in store.unmeasured(shuffled_layers(points)):
            try:
                for point, status, reason, rows, measured_s in outcomes(harness, layer, store):
                    store.write_point(
                        point["identity"],
                        status=status, reason=reason, rows=rows, run_id=run["run_id"], measured_s=measured_s,
                    )  # fmt: skip
                    run["points_measured"] += 1
                    run["measured_s"] += measured_s
                    progress.step()
            except (OSError, UserError):
                raise
            except Exception as error:
                # After an illegal access every further call fails, whatever it is.
                if "CUDA error" in str(error):
                    raise
                traceback.print_exc()
                # Its text: the error itself would hold on to the layer's memory.
                crashes.append(f"{type(error).__name__}: {error}")
    store.write_run(finish(run))
    if crashes:
        raise RuntimeError(f"{len(crashes)} layers crashed, see above; the first: {crashes[0]}")


def outcomes(harness, layer, store):
    """(point, status, reason, rows, seconds) of each of a layer's points, which differ in their m alone."""
    by_m = {point["params"]["m"]: point for point in layer}
    # Asked when its turn comes: another process may have measured it since this one began.
    tokens = (m for m, point in by_m.items() if not store.has_point(point["key"]))
    first, params = layer[0], layer[0]["params"]
    measured = harness.measure(
        params["n"], params["k"], tokens, params["dtype"], params["product"], first.get("format"),
        first.get("quantization_config"), first.get("contender"), params["repeats"],
    )  # fmt: skip
    for m, *outcome in measured:
        yield by_m[m], *outcome


def shuffled_layers(points):
    """Points grouped by all but their m, in an order that no drift of the machine can follow."""
    groups = {}
    for point in points:
        shared = {**point["identity"], "params": {**point["params"], "m": None}}
        groups.setdefault(canonical_json(shared), []).append(point)
    shuffle = random.Random(SHUFFLE_SEED).shuffle
    layers = [groups[name] for name in sorted(groups)]
    shuffle(layers)
    for layer in layers:
        shuffle(layer)
    return layers


if __name__ == "__main__":
    supervised(main)
