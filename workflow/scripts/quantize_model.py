"""Make one quantized checkpoint, unless the store has it, compare its layers with the model's, and write a pointer to it.

needs   the staged model and data sets in the store; --job: {"model", "scheme", "identity", "model_path", "dataset_paths",
        "layers"}, the last one its points of quantbench/layers.py, each with the paths of its texts
makes   store/checkpoints/<key>/ with quantbench.json, points in the store, and --output: {"key", "path", and what
        quantbench.json records}
"""

import importlib.metadata
import json
import os
import resource
import sys
import time
from pathlib import Path

from quantbench.errors import UserError
from quantbench.jobs import job_options
from quantbench.keys import canonical_json, file_sha256, key
from quantbench.model_fit import check_scheme_fits
from quantbench.provenance import finish, new_run
from quantbench.sensitivity import recipe_of
from quantbench.store import write_atomically
from quantbench.supervise import supervised


def main(argv=None):
    options = job_options(argv, __doc__.splitlines()[0])
    job, store = options.job, options.store
    identity = job["identity"]
    checkpoint_key = key(identity)
    run = None
    if not store.has_folder("checkpoints", checkpoint_key):
        run = make_checkpoint(job, store)
    if missing := [point for point in job["layers"] if not store.has_point(key(point["identity"]))]:
        compare_layers(job, missing, store, run)
    record = store.read_folder("checkpoints", checkpoint_key)
    path = store.folder("checkpoints", checkpoint_key)
    write_atomically(options.output, canonical_json({**record, "key": checkpoint_key, "path": str(path)}))


def make_checkpoint(job, store):
    """Quantize into the store; returns the run's record. Raises UserError for what a user can mend."""
    identity, model_path = job["identity"], Path(job["model_path"])
    recipe, calibration = recipe_of(job, store), identity["calibration"]
    check_versions(identity["versions"])
    check_model(model_path, recipe)
    set_environment()

    from quantbench.quantize import checkpoint
    from quantbench.quantize.calibration import calibration_texts

    texts = None
    if calibration:
        texts = calibration_texts(job["dataset_paths"], calibration)

    from quantbench.quantize import layouts, toolkit

    record, run = {}, new_run("quantize_model", job)
    store.write_run(run)
    with store.new_folder("checkpoints", identity, record) as folder:
        started = time.monotonic()
        made = toolkit.quantize(model_path, recipe, calibration, texts, folder)
        record["quantize_s"] = time.monotonic() - started
        checkpoint.plain_recipe(folder)
        checkpoint.copy_companions(model_path, folder)
        if recipe.get("layout"):
            layouts.convert(folder, recipe["layout"], recipe["format"]["weights"], recipe["ignore"])
        found = checkpoint.tensors(folder)
        check_layers(checkpoint.quantized_layers(found), set(made["shapes"]))
        record.update(
            device=made["device"],
            parameters=made["parameters"],
            spared=[name for name in recipe["ignore"] if name not in identity["recipe"]["ignore"]],
            calibration_rows=made["rows"],
            layers_quantized=len(made["shapes"]),
            bits_per_weight=checkpoint.bits_per_weight(found, made["shapes"]),
            bytes=checkpoint.safetensors_bytes(folder),
            # Linux counts the resident peak in KiB.
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            peak_device_memory_bytes=toolkit.peak_device_memory_bytes(),
            # What a copy on a node is held to.
            files={path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()},
        )
    run["measured_s"] = record["quantize_s"]
    store.write_run(finish(run))
    print(
        f"[quantize_model {job['model']}/{job['scheme']}] {record['layers_quantized']} layers, "
        f"{record['bits_per_weight']:.3f} bits per weight, {record['quantize_s']:.1f} s",
        file=sys.stderr,
    )
    return run


def compare_layers(job, points, store, run=None):
    """Measure these points: the checkpoint's layers against the model's. Raises UserError for what a user can mend.

    run: the record of this process, where it has one already
    """
    set_environment()

    from quantbench.quantize import layer_error, toolkit
    from quantbench.quantize.calibration import calibration_texts

    recipe, model_path = job["identity"]["recipe"], Path(job["model_path"])
    folder = store.folder("checkpoints", key(job["identity"]))
    run = run or new_run("quantize_model", job)
    store.write_run(run)
    began = time.monotonic()
    model, tokenizer = toolkit.load_model(model_path), toolkit.load_tokenizer(model_path)
    for point in points:
        started, rows, found, status, reason = time.monotonic(), None, [], "ok", None
        if texts := point["identity"]["params"]["texts"]:
            held_out = calibration_texts(point["dataset_paths"], texts, held_out=layer_error.ROWS)
            rows = toolkit.tokens_of(held_out, tokenizer, model, min(texts["max_tokens"], layer_error.TOKENS))
        try:
            found = layer_error.layer_errors(model, folder, recipe, rows)
        except layer_error.NotComparable as error:
            status, reason = "unsupported", str(error)
        spent = time.monotonic() - started
        store.write_point(
            point["identity"], status=status, reason=reason, rows=found, run_id=run["run_id"], measured_s=spent
        )
    run["points_measured"] += len(points)
    run["measured_s"] += time.monotonic() - began
    store.write_run(finish(run))


def set_environment():
    """Before any import that reads it: nothing is fetched, and OpenMP threads give a busy machine its cores back."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Without it cuBLAS may add up in another order, and the same recipe gives other bytes.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def check_versions(wanted):
    """The versions are part of the checkpoint's identity, so the ones at work have to be these."""
    for name, version in wanted.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        # 2.13.0+cpu is 2.13.0 built for another device.
        if version not in (found, found.partition("+")[0]):
            raise UserError(f"the checkpoint is to be made with {name} {version}, but this environment has {found}")


def check_model(model_path, recipe):
    """What config.json already tells: the model is there, not quantized yet, and of sizes that fit the recipe."""
    try:
        config = json.loads((model_path / "config.json").read_text())
    except FileNotFoundError as error:
        raise UserError(f"{model_path} holds no model: config.json is missing") from error
    if not any(model_path.glob("*.safetensors")):
        raise UserError(f"{model_path}: no safetensors file, and other formats are not read because they can run code")
    try:
        check_scheme_fits(recipe, config)
    except UserError as error:
        raise UserError(f"{model_path}: {error}") from None


def check_layers(made, expected):
    """The toolkit quantizes what it matches and says nothing of the rest, so count."""
    if made != expected:
        wrong = ", ".join(sorted(made ^ expected)[:5])
        raise RuntimeError(f"{len(made)} layers are quantized instead of {len(expected)}; they differ in {wrong}")


if __name__ == "__main__":
    supervised(main)
