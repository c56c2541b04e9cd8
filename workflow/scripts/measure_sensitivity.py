"""Quantize one part of a model at a time, all else in 16 bits, and say what that does to its predictions: rule
measure_sensitivity.

needs   a checkpoint of the scheme, and its 16-bit model and data set in the store
makes   one point per part, in the store, and --output: the list of all its points' keys

The model is loaded once for all parts.
"""

import os
import time
from pathlib import Path

from quantbench.errors import UserError
from quantbench.jobs import job_options
from quantbench.keys import canonical_json
from quantbench.points import check_versions, expand, missing_points
from quantbench.progress import Progress
from quantbench.provenance import finish, new_run
from quantbench.sensitivity import ALL, documents, place_of
from quantbench.store import write_atomically
from quantbench.supervise import supervised

NO_ROOM = (
    "the 16-bit model does not fit into the memory of this node's GPUs: under `quantize` in config/cluster.yaml, name nodes with "
    "more of them, or with none, where it lies in host memory"
)


def main(argv=None):
    options = job_options(argv, __doc__.splitlines()[0])
    job, store = options.job, options.store
    points = missing_points(job, store)
    if points:
        progress = Progress(f"sensitivity {job['model']}/{job['scheme']}", len(points), options.manifest, store)
        measure(job, store, points, progress)
    write_atomically(options.output, canonical_json({"points": sorted(point["key"] for point in expand(job))}))


def measure(job, store, points, progress):
    """Measure and keep each point; points of other documents than the last take a pass of the 16-bit model more."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    run = new_run("measure_sensitivity", job)
    # 2.13.0+cpu is 2.13.0 built for another device.
    check_versions(points, {name: version.partition("+")[0] for name, version in run["versions"].items()})
    store.write_run(run)

    import torch
    from quantbench.quantize import sensitivity, toolkit

    torch.manual_seed(0)
    path = Path(job["model_path"])
    model = toolkit.load_model(path, device_map="auto" if torch.cuda.is_available() else None)
    if any(parameter.is_meta for parameter in model.parameters()):
        # No result: the points are of no device in particular, and another node may have the room.
        store.write_run(finish(run))
        raise UserError(NO_ROOM)
    if torch.cuda.is_available():
        run["device_name"] = torch.cuda.get_device_name()
    tokenizer = toolkit.load_tokenizer(path)
    checkpoint = sensitivity.Checkpoint(job["checkpoint_path"], model.device)
    # A block holds all that a recipe rescales; a scan by blocks says nothing of one by layers.
    layers = {name: part for name, part in job["parts"].items() if name != ALL and place_of(name)[1] != "block"}
    sensitivity.check_rest(model, checkpoint, layers or job["parts"])
    sensitivity.exact_head(model)
    progress.begin()
    scans = {}
    for [point] in store.unmeasured([point] for point in points):
        params = point["params"]
        text = canonical_json({name: value for name, value in params.items() if name != "part"})
        if text not in scans:
            # One at a time: its distributions take as much memory as the model.
            scans = {text: sensitivity.Scan(model, tokens(tokenizer, params, store))}
        started = time.perf_counter()
        rows = scans[text].rows(checkpoint, job["parts"][params["part"]])
        took = time.perf_counter() - started
        store.write_point(point["identity"], status="ok", rows=rows, run_id=run["run_id"], measured_s=took)
        run["points_measured"] += 1
        run["measured_s"] += took
        progress.step()
    store.write_run(finish(run))


def tokens(tokenizer, params, store):
    """Token ids of a point's documents, those of a single token left out: nothing predicts it."""
    path = store.folder("datasets", params["dataset"]) / f"{params['split']}.jsonl"
    found = (tokenizer(text)["input_ids"][: params["max_tokens"]] for text in documents(path, params["documents"]))
    rows = [ids for ids in found if len(ids) > 1]
    if not rows:
        raise UserError(f"{path}: none of its first {params['documents']} documents has two tokens")
    return rows


if __name__ == "__main__":
    supervised(main)
