"""Ask vLLM's own kernel chooser what it takes for a study's schemes on one device: rule ask_support.

The device need not be there: for a GPU its compute capability is pretended, in its engine environment. Reads its points
from --job, asks for those that the store lacks, and writes all answers to --output last.
"""

import os
import time
from pathlib import Path

from quantbench.engine.settings import engine_environment
from quantbench.environments import pins
from quantbench.jobs import job_options
from quantbench.keys import canonical_json
from quantbench.points import check_versions, expand, missing_points
from quantbench.progress import Progress
from quantbench.provenance import finish, new_run
from quantbench.schemes import compressed_tensors_config
from quantbench.store import write_atomically
from quantbench.supervise import supervised

ENVIRONMENTS = Path(__file__).parents[2] / "envs"


def main(argv=None):
    options = job_options(argv, __doc__.splitlines()[0])
    job, store = options.job, options.store
    points = missing_points(job, store)
    if points:
        ask(job, store, points, Progress(f"support {job['gpu']}", len(points), options.manifest, store))
    answers = [store.read_point(point["key"]) for point in expand(job)]
    write_atomically(options.output, canonical_json({"points": answers}))


def ask(job, store, points, progress):
    """Ask for every point in this one process, and write each answer. A refusal is an answer, with vLLM's reason."""
    run = new_run("ask_support", job)
    check_versions(points, run["versions"])
    os.environ.update(engine_environment(job["gpu_entry"]))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from quantbench.engine.chooser import Chooser
    from quantbench.engine.pretend import optional_packages

    store.write_run(run)
    present = optional_packages(pins(ENVIRONMENTS / f"{job['gpu_entry']['environment']}.txt"))
    # A data sheet without a compute capability is a CPU's: the one that this is.
    with Chooser(job["gpu_entry"]["compute_capability"], present) as chooser:
        progress.begin()
        for point in points:
            started = time.perf_counter()
            row = chooser.ask(**request(point["params"]))
            measured_s = time.perf_counter() - started
            store.write_point(
                point["identity"], status="ok", rows=[row], run_id=run["run_id"], measured_s=measured_s,
            )  # fmt: skip
            run["points_measured"] += 1
            run["measured_s"] += measured_s
            progress.step()
    store.write_run(finish(run))


def request(params):
    """What Chooser.ask takes, from a point's parameters."""
    format, engine_args = params["format"], params["engine_args"] or {}
    config = compressed_tensors_config(format, ["Linear"], []) if format else None
    asked = {"quantization_config": config, "dtype": params["dtype"], "quantization": engine_args.get("quantization")}
    asked |= {"backend": engine_args["linear_backend"]} if engine_args.get("linear_backend") else {}
    overrides = engine_args.get("hf_overrides")
    return asked | ({"torchao": overrides["quantization_config_dict_json"]} if overrides else {})


if __name__ == "__main__":
    supervised(main)
