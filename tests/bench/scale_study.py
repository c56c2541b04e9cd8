"""A large study for scale.py: models of which only the configuration is there, schemes derived from a shipped one, and a
store in which every point stands as if it had been measured. No number in it was measured."""

import json
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from quantbench.environments import environment_folder
from quantbench.keys import canonical_json
from quantbench.manifest import build_manifest, requirements
from quantbench.points import JOB_OF_STAGE
from quantbench.study import load_study

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("bf16", "rtn-int4", "gptq-int4", "awq-int4", "fp8-block", "int8-smoothquant", "nvfp4", "int8-online")
GPUS = ("h200", "h100", "a100", "l40s", "b200", "l4")
# The layers of an 8B model; its weights are not needed to plan.
HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}  # fmt: skip
LENGTHS = [{"input_tokens": 512, "output_tokens": 128}]


def make_checkout(folder, models, schemes, gpus):
    """The project's files in `folder`, with a study.yaml of so many models, schemes and gpus; returns the study's config."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")):
        if (ROOT / name).is_file() and name.split("/")[0] not in ("tests", "docs"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for number in range(models):
        _write_model(folder / "models" / f"model-{number}", number)
    config = {
        "study": "scale",
        "title": "How long does planning take?",
        "models": [{"name": f"model-{number}", "source": f"models/model-{number}"} for number in range(models)],
        "schemes": [*SHIPPED, *_derived(folder / "config" / "schemes", schemes - len(SHIPPED))][:schemes],
        "gpus": list(GPUS[:gpus]),
        "datasets": [{"name": "arithmetic", "source": "tiny"}],
        "calibration": {"dataset": "arithmetic", "samples": 16},
        "kernels": {"tokens": [1, 16, 64, 256, 1024]},
        "latency": {"batch_sizes": [1, 8, 32], "lengths": [*LENGTHS, {"input_tokens": 2048, "output_tokens": 128}]},
        "throughput": {"batch_sizes": [64, 256], "lengths": LENGTHS},
        "serving": {"request_rates": [2, 8], "concurrencies": [4, 16], "lengths": LENGTHS, "requests": 20},
        "accuracy": [{"task": "gsm8k", "dataset": "arithmetic", "questions": 20}],
        "perplexity": [{"dataset": "arithmetic", "documents": 10}],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    for name in ("engine-cuda", "quantize-cuda"):
        environment = folder / environment_folder([requirements(name)])
        environment.mkdir(parents=True)
        (environment / "ready").touch()
        # Nothing is measured with it: it says so of a job whose points are all there.
        (environment / "bin").mkdir()
        (environment / "bin" / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        (environment / "bin" / "python").chmod(0o755)
    return config


def _write_model(folder, number):
    """A config.json, and one tensor that makes the model another than the rest."""
    folder.mkdir(parents=True)
    # Other layers than the rest, too, or they would share their matrix products.
    config = HF_CONFIG | {"intermediate_size": HF_CONFIG["intermediate_size"] + 1024 * number}
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({"one": {"dtype": "I16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    content = len(header).to_bytes(8, "little") + header + number.to_bytes(2, "little")
    (folder / "model.safetensors").write_bytes(content)


def _derived(folder, count):
    """Names of `count` schemes like rtn-int4 with other groups."""
    for number in range(count):
        scheme = {"extends": "int4", "description": f"4-bit integer weights in groups of {64 >> number}."}
        scheme["format"] = {"weights": {"group_size": 64 >> number}}
        (folder / f"rtn-int4-g{64 >> number}.yaml").write_text(yaml.safe_dump(scheme))
        yield f"rtn-int4-g{64 >> number}"


def fill_store(config):
    """Write every model, data set, checkpoint, point and run of the study of the current folder; returns the manifest."""
    study = load_study(config)
    manifest, store = build_manifest(study), study.store
    for kind, entries in (("models", study.models), ("datasets", study.datasets)):
        for entry in entries.values():
            folder = store.folder(kind, entry["key"])
            folder.mkdir(parents=True)
            known = {"identity": entry["identity"]} | (entry["config"] if kind == "datasets" else {})
            (folder / "quantbench.json").write_text(canonical_json(known))
            if kind == "models":
                shutil.copytree(entry["source"], folder, dirs_exist_ok=True)
    made = {"bytes": 5_000_000_000, "parameters": 8_000_000_000, "bits_per_weight": 4.5, "quantize_s": 600.0}
    for entry in manifest["checkpoints"]:
        if entry["quantized"] and not store.has_folder("checkpoints", entry["key"]):
            folder = store.folder("checkpoints", entry["key"])
            folder.mkdir(parents=True)
            record = made | {"identity": entry["identity"], "device": "cuda", "peak_memory_bytes": 40_000_000_000}
            (folder / "quantbench.json").write_text(canonical_json(record))
    runs = {}
    for point in [*manifest["layers"], *manifest["points"]]:
        # Whoever makes a checkpoint compares its layers.
        stage = JOB_OF_STAGE.get(point["stage"], "quantize_model")
        run_id = "-".join(
            filter(None, (stage, point["gpu"], point["model"] if stage != "measure_gemm" else None, point["scheme"]))
        )
        runs[run_id] = point
        # Not store.write_point: it flushes each file to the disk.
        rows = _noisy(ROWS[point["stage"]], point["key"])
        record = {"identity": point["identity"], "status": "ok", "reason": None, "rows": rows}
        path = store.point_path(point["key"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(canonical_json(record | {"run_id": run_id, "measured_s": 2.0}))
    (store.root / "runs").mkdir()
    for run_id, point in runs.items():
        (store.root / "runs" / f"{run_id}.json").write_text(canonical_json(_run(run_id, point)))
    return manifest


def _noisy(rows, key):
    """The rows with 2 % of noise on what is a time: as long in digits, and as hard to pack, as measurements are."""
    draw = random.Random(key).lognormvariate

    def noisy(name, value):
        return value * draw(0, 0.02) if name.endswith("_s") and isinstance(value, float) else value

    return [{name: noisy(name, value) for name, value in row.items()} for row in rows]


def _run(run_id, point):
    stage = JOB_OF_STAGE.get(point["stage"], "quantize_model")
    starts = stage in ("measure_engine", "measure_serving")
    run = {"run_id": run_id, "stage": stage, "gpu": point["gpu"], "model": point["model"], "scheme": point["scheme"]}
    run |= {"device_name": "made up", "device_uuid": None, "driver": None, "clocks": None, "power_limit_w": None}
    run |= {
        "versions": {},
        "commit": None,
        "started_at": "2026-01-01T00:00:00+00:00",
        "ended_at": "2026-01-01T00:02:00+00:00",
    }
    run |= {"engine_args": {}, "engine_start_s": 40.0 if starts else None, "engine_starts": int(starts), "host": "node"}
    run |= {"points_measured": 1, "measured_s": 60.0, "kernels": KERNELS if starts else None}
    return run | {"log": f"results/scale/logs/{stage}/{run_id}.log"}


def _repeats(**more):
    return [{"repeat": i, "elapsed_s": 1.0 + i / 100, **more} for i in range(5)]


KERNELS = [{"layer_kind": "qkv_proj", "count": 32, "kernel": "AKernel", "computes": "bf16", "quantized": True}]
_REQUEST = {"input_tokens": 512, "output_tokens": 128, "error": None}
_TIMES = {"scheduled_s": 0.1, "sent_s": 0.1, "first_token_s": 0.2, "finished_s": 1.0}
_GEMM = {
    "kernel": "AKernel",
    "computes": "bf16",
    "error_bound": 0.035,
    "relative_error": 0.01,
    "includes_quantization": None,
}
_STATE = {"sm_clock_hz": 1.7e9, "memory_clock_hz": 3.2e9, "temperature_c": 50.0, "power_w": 400.0}
_PROBE = {
    "device_name": "made up", "driver": None, "capability": "9.0", "cuda_version": "13.0", "memory_bytes": 150_000_000_000,
    "l2_bytes": 60 << 20, "l3_bytes": None, "threads": None, "isa": None, "other_processes": [], "bandwidth_bytes_per_s": 2e12,
    "bandwidths_bytes_per_s": {"copy": 2e12}, "matrix_flops_per_s": {"bf16": 3e14}, "power_limit_w": 700.0, "ecc": True,
    "max_sm_clock_hz": 1.98e9,
}  # fmt: skip
# What a point of each stage has measured, as the tables take it.
ROWS = {
    "layers": [
        {"layer": "made.up", "n": 4096, "k": 4096, "tokens": 900, "weight_sqnr_db": 20.0, "output_sqnr_db": 15.0}
    ],
    "probe": [_PROBE | _STATE],
    "support": [{"kernel": "AKernel", "computes": "bf16", "refusals": {}, "reason": None}],
    "load": [{"engine_start_s": 40.0, "weight_bytes": 5_000_000_000, "kv_cache_tokens": 100_000, "kernels": KERNELS}],
    "latency": _repeats(ttft_s=0.1),
    "throughput": _repeats(),
    "serving": [{"request": i, **_TIMES, **_REQUEST} for i in range(20)],
    "accuracy": [
        {"question": i, "filter": "strict-match", "correct": i % 2 == 0, "answer": "1", "target": "1"}
        for i in range(20)
    ],
    "perplexity": [{"document": i, "tokens": 100, "negative_log_likelihood": 120.0} for i in range(10)],
    "gemm": [
        {"launch": "graph", "cache": "cold", "repeat": i, "latency_s": 1e-4 + i * 1e-6, **_GEMM, **_STATE}
        for i in range(3)
    ],
}

if __name__ == "__main__":
    fill_store(yaml.safe_load(Path(sys.argv[1]).read_text()))
