"""Which jobs a study needs: one per gpu and variant, and only where the store lacks something.

A job carries its points as one canonical JSON text. Snakemake compares params as a set of values without names, so one
sorted text is what makes it see every change, and no difference in order.
"""

import argparse
import json
from pathlib import Path

from quantbench import scratch
from quantbench.dummy import is_dummy
from quantbench.engine_args import forced_backend
from quantbench.errors import UserError
from quantbench.keys import canonical_json
from quantbench.model_fit import left_alone
from quantbench.points import GROUP_FIELDS, JOB_OF_STAGE, expand, job_of
from quantbench.quantize.calibration import parts
from quantbench.schemes import compressed_tensors_config
from quantbench.store import Store
from quantbench.tasks import asked_tasks, is_file, slug
from quantbench.time_limit import LIMITS
from quantbench.workloads import workload_files


def build_jobs(manifest, store, only=None):
    """{job name: {(gpu, model, scheme): job}} of the whole study; model and scheme are None for jobs of a whole gpu.

    A second start of the baseline is a job of its own, of scheme `<baseline>+2`; an emulated start of a scheme one of scheme
    `<scheme>+emulated`, which is told the scheme's format and the `load` point that says whether it has to be emulated.

    Jobs of measure_sensitivity are of no gpu: theirs is None.

    only  one target: nothing but its jobs, by whatever rule
    """
    jobs = {name: {} for name in dict.fromkeys(JOB_OF_STAGE.values())}
    checkpoints = {(c["model"], c["scheme"]): c for c in manifest["checkpoints"]}
    for point in manifest["points"]:
        name, target = job_of(point)
        if only and target != only:
            continue
        if target not in jobs[name]:
            variant = (None, None) if target[1] is None else (point["model"], point["scheme"])
            job = _new_job(manifest, store, point["gpu"], *variant, checkpoints.get(variant))
            jobs[name][target] = job | ({"start": point["start"]} if point.get("start", 1) > 1 else {})
            if point.get("emulated"):
                jobs[name][target]["emulate"] = manifest["schemes"][point["scheme"]]["format"]
                jobs[name][target]["load_point"] = _load_point(manifest, point)
            if name == "measure_sensitivity":
                jobs[name][target] |= {"model_path": str(_model_folder(manifest, store, point["model"])), "parts": {}}
        _add(jobs[name][target], point["identity"], manifest, point["scheme"])
        if name == "measure_sensitivity":
            jobs[name][target]["parts"][point["part"]["name"]] = point["part"]
    for (gpu, model, scheme), job in jobs["measure_serving"].items():
        engine = jobs["measure_engine"][gpu, model, scheme]
        job["load_point"] = next(p["identity"] for p in expand(engine) if p["stage"] == "load")
    return jobs


def quantize_jobs(manifest, store):
    """{(model, scheme): job} of the variants that need a checkpoint of their own."""
    found, layers = {}, {}
    for point in manifest.get("layers", []):
        paths = _dataset_paths(point["identity"]["params"]["texts"], store)
        layers.setdefault((point["model"], point["scheme"]), []).append(
            {"identity": point["identity"], "dataset_paths": paths}
        )
    for entry in manifest["checkpoints"]:
        if entry["quantized"]:
            found[entry["model"], entry["scheme"]] = {
                "model": entry["model"],
                "scheme": entry["scheme"],
                "identity": entry["identity"],
                "model_path": str(store.folder("models", entry["identity"]["model"])),
                "dataset_paths": _dataset_paths(entry["identity"]["calibration"], store),
                "layers": layers.get((entry["model"], entry["scheme"]), []),
                "recipe": manifest["schemes"][entry["scheme"]],
                **({"spare": entry["spare"]} if "spare" in entry else {}),
            }
    return found


def _model_folder(manifest, store, model):
    return store.folder("models", manifest["models"][model]["key"])


def _dataset_paths(calibration, store):
    """The JSONL file of each part of a calibration, or None."""
    return calibration and [
        str(store.folder("datasets", part["dataset"]) / f"{part['split']}.jsonl") for part in parts(calibration)
    ]


def read_job(text, store):
    """The job that a script's --job names: JSON, or <manifest.json>:<rule>/<gpu or model>/<...> as rules write it.

    A job's JSON may be longer than an operating system lets an argument be (128 KiB on Linux), its name never is.
    Raises UserError for a job that the manifest does not have.
    """
    if text.startswith("{"):
        return json.loads(text)
    path, _, name = text.rpartition(":")
    rule, *target = name.split("/")
    manifest = json.loads(Path(path).read_text())
    width = 2 if rule == "quantize_model" else 3
    target = [None, *target] if rule == "measure_sensitivity" else target
    key = (*target, *[None] * (width - len(target)))
    quantizing = rule == "quantize_model"
    found = quantize_jobs(manifest, store) if quantizing else build_jobs(manifest, store, only=key).get(rule, {})
    if key not in found:
        raise UserError(f"--job: {path} has no job {name!r}")
    return found[key]


def job_options(argv, description):
    """The command line of a script that runs one job: `job` (read_job), `store`, `output`, and `manifest`.

    From here on the process writes only where a job may (scratch.py).

    manifest  path of the study's manifest, for its overall progress; None for a job that is given as JSON
    """
    parser = argparse.ArgumentParser(description=description)
    name = "<manifest.json>:<rule>/<gpu>, /<gpu>/<model>/<scheme> or, to quantize, /<model>/<scheme>"
    parser.add_argument("--job", required=True, help=f"the job: {name}; or the job itself as JSON")
    parser.add_argument("--store", type=Path, required=True, help="folder of the store")
    parser.add_argument("--output", type=Path, required=True, help="pointer, written once all is in the store")
    options = parser.parse_args(argv)
    options.manifest = None if options.job.startswith("{") else options.job.rpartition(":")[0]
    options.store = Store(options.store)
    options.job = read_job(options.job, options.store)
    scratch.isolate(options.job.get("gpu") or "quantize")
    return options


def stored_as(entry):
    """(kind, key) of the store's folder that a variant is loaded from: a quantized checkpoint, or the model itself."""
    if is_dummy(entry):
        return "models", entry["identity"]["model"]
    return "checkpoints" if entry["quantized"] else "models", entry["key"]


def checkpoint_folder(entry, store):
    """Where a variant's weights lie, or what made-up ones are made from."""
    return store.folder(*stored_as(entry))


def text(job):
    """A job as the one canonical text that is Snakemake's param and the script's --job."""
    return canonical_json(job)


def _new_job(manifest, store, gpu, model, scheme, entry):
    # A price is the report's: another one is no other job.
    entry_of = manifest["gpus"].get(gpu)
    device = entry_of and {name: value for name, value in entry_of.items() if name != "price_usd_per_hour"}
    job = {"gpu": gpu, "model": model, "scheme": scheme, "gpu_entry": device, "groups": []}
    if entry:
        job["checkpoint_path"] = str(checkpoint_folder(entry, store))
        recipe = manifest["schemes"][scheme]
        job["expects"] = {name: recipe[name] for name in ("computes", "ignore")}
        job["expects"]["left"] = left_alone(recipe, manifest["models"][model]["config"])
        if backend := forced_backend(manifest["study"]["engine"], recipe):
            job["expects"]["linear_backend"] = backend
        files = {slug(task): task for task in asked_tasks(manifest["study"]) if is_file(task)}
        job |= {"task_files": files} if files else {}
        texts = workload_files(manifest.get("workloads", {}))
        job |= {"workload_files": texts} if texts else {}
        job["limits"] = manifest["study"].get("limits", LIMITS)
    return job


def _load_point(manifest, point):
    """The identity of the `load` point of a point's variant, without emulation; None where the device cannot run it."""
    wanted = ("load", *(point[name] for name in ("gpu", "model", "scheme")))
    found = (p for p in manifest["points"] if (p["stage"], p["gpu"], p["model"], p["scheme"]) == wanted)
    return next((p["identity"] for p in found), None)


def _add(job, identity, manifest, scheme):
    """Put a point into the job, beside the others that differ from it in nothing but their parameters."""
    varying = {name: identity[name] for name in GROUP_FIELDS if name in identity}
    job.setdefault("common", {k: v for k, v in identity.items() if k not in varying and k != "params"})
    job["engine_args"] = identity.get("engine_args")
    for group in job["groups"]:
        if all(group.get(name) == value for name, value in varying.items()):
            break
    else:
        group = varying | {"params": []}
        # A contender says itself how its weights lie.
        if identity.get("format") and not identity.get("contender"):
            recipe = manifest["schemes"][scheme]
            group["quantization_config"] = compressed_tensors_config(recipe["format"], recipe["targets"], [])
        job["groups"].append(group)
    if identity["params"] not in group["params"]:
        group["params"].append(identity["params"])
