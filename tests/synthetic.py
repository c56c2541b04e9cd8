"""A made-up study: a small store and its manifest, following the contract of the tables. No number in it was measured.

What it holds, so that a test knows its answer: two gpus, and per model
    bf16             the baseline, ok everywhere
    int8-smoothquant twice as fast; 1 question lost, 1 won: as accurate as the baseline
    rtn-int4         1.5 times as fast; 10 % of the questions lost, none won; on the cpu its kernel computes w4a8
    nvfp4            unsupported on the cpu (no kernel); on the h200 a weight-only kernel, half of the questions lost,
                     and out of memory at the largest throughput batch
    int8-online      loads, but its kernels run unquantized: every measured point of it is invalid; its gemm is skipped
Matrix products, at M = 1 and 256: int8-smoothquant is twice as fast at both; rtn-int4 is 1.5 times as fast at 1 (on
down_proj 2 times, a tie) and 0.8 times at 256, so that it stops paying in between; lm_head stays in 16 bits. Beside
them two contenders: marlin-w4a16 (not on the cpu, no down_proj; 3 times as fast at 1) and int8-mm (quantizing left out).
Quantized one part at a time, down_proj of block 2 suffers most (rtn-int4).
In the support table the sources disagree: the chooser picks Marlin for rtn-int4 on the h200, and Machete ran.
"""

import json
import random
from pathlib import Path

from quantbench import sensitivity
from quantbench.energy import METERED
from quantbench.keys import canonical_json, key
from quantbench.layers import layer_points
from quantbench.model_fit import quantized_layers
from quantbench.points import JOB_OF_STAGE
from quantbench.store import Store, write_atomically
from quantbench.token_gaps import histogram
from synthetic_facts import (
    BATCHES,
    BYTES,
    CONTENDERS,
    DOCUMENTS,
    GPUS,
    HF_CONFIG,
    KERNELS,
    LAYERS,
    LOADS,
    PRODUCT_SPEEDUP,
    QUESTIONS,
    REPEATS,
    REQUESTS,
    SCHEMES,
    SEARCH,
    SLO,
    SPEEDUP,
    UNQUANTIZED,
    VERSIONS,
    layer_errors,
)  # fmt: skip


def synthetic_study(root, models=("tiny",), gpus=("cpu", "h200")):
    """Write root/store and root/manifest.json; returns the manifest."""
    root = Path(root)
    study = Study(Store(root / "store"), models, gpus)
    for model in models:
        study.add_sensitivity(model)
    study.add_layers()
    for gpu in gpus:
        study.add_probe(gpu)
        for scheme in SCHEMES:
            study.add_support(gpu, scheme)
        for model in models:
            for scheme in SCHEMES:
                study.add_variant(gpu, model, scheme)
            study.add_contenders(gpu, model)
        study.skip_contenders(gpu)
    write_atomically(root / "manifest.json", json.dumps(study.manifest, indent=1))
    return study.manifest


class Study:
    """The manifest while it grows, and the store that its points are written to."""

    def __init__(self, store, models, gpus):
        # The products have numbers of their own, so that one more of them moves nothing else.
        self.store, self.random, self.products_random = store, random.Random(0), random.Random(1)
        self.more_products_random = random.Random(2)
        self.manifest = {
            "study": _config(models, gpus),
            "models": {name: self._model(name) for name in models},
            "schemes": SCHEMES,
            "gpus": {name: GPUS[name] for name in gpus},
            "contenders": CONTENDERS,
            "checkpoints": [],
            "layers": [],
            "points": [],
            "skips": [],
        }
        for model in models:
            for scheme in SCHEMES:
                self.manifest["checkpoints"].append(self._checkpoint(model, scheme))

    def _model(self, name):
        identity = {"artefact": "model", "source": name, "files": {"model.safetensors": f"made up, {name}"}}
        if not self.store.has_folder("models", key(identity)):
            with self.store.new_folder("models", identity, {"source": name}) as folder:
                # One bf16 tensor in the safetensors layout: header length, header, data (a hole in the file).
                tensor = {"dtype": "BF16", "shape": [4200, 1000], "data_offsets": [0, 8_400_000]}
                header = json.dumps({"w": tensor}).encode()
                with open(folder / "model.safetensors", "wb") as file:
                    file.write(len(header).to_bytes(8, "little") + header)
                    file.truncate(8 + len(header) + 8_400_000)
        return {"key": key(identity), "source": name, "config": HF_CONFIG}

    def _checkpoint(self, model, name):
        scheme, model_key = SCHEMES[name], self.manifest["models"][model]["key"]
        if scheme["toolkit"] == "none":
            identity = {"artefact": "model", "source": model, "files": {"model.safetensors": f"made up, {model}"}}
            return {"model": model, "scheme": name, "key": model_key, "identity": identity, "quantized": False}
        calibration = {"dataset": "d" * 64, "split": "train", "samples": 128, "max_tokens": 256, "seed": 0}
        identity = {
            "artefact": "checkpoint",
            "model": model_key,
            "recipe": {part: scheme[part] for part in ("toolkit", "modifiers", "format", "targets", "ignore")},
            "calibration": calibration if scheme["calibrated"] else None,
            "versions": {"llmcompressor": "0.14.0.1", "compressed-tensors": "0.19.0", "torch": "2.13.0"},
        }
        size = BYTES[name]
        record = {"quantize_s": 12.5, "peak_memory_bytes": 900_000_000, "layers_quantized": 28, "bytes": size}
        record |= {"parameters": 4_200_000, "bits_per_weight": size * 8 / 4_200_000, "sqnr": {}}
        with self.store.new_folder("checkpoints", identity, record):
            pass
        return {"model": model, "scheme": name, "key": key(identity), "identity": identity, "quantized": True}

    def add_probe(self, gpu):
        identity = {"artefact": "point", "stage": "probe", "protocol": 1, "gpu": gpu, "epoch": 0, "versions": VERSIONS}
        identity |= {"params": {}}
        row = {"device_name": f"made-up {gpu}", "capability": None, "memory_bytes": 16 << 30, "driver": None}
        row |= {"bandwidth_bytes_per_s": 4.0e10, "matrix_flops_per_s": {"bf16": 1.0e12, "int8": 2.0e12}}
        row |= {"l2_bytes": 32 << 20, "other_processes": None, "threads": 2, "isa": ["avx2", "avx512"]}
        if gpu == "h200":
            row |= {"capability": "9.0", "memory_bytes": 150_000_000_000, "driver": "580.1", "cuda_version": "13.0"}
            row |= {"l2_bytes": 60 << 20, "sm_clock_hz": 1.755e9, "max_sm_clock_hz": 1.98e9, "memory_clock_hz": 3.2e9}
            row |= {"power_limit_w": 700.0, "ecc": True, "threads": None, "isa": None}
            row |= {"other_processes": [{"pid": 7, "name": "someone else", "memory_bytes": 1 << 30}]}
            row |= {
                "bandwidth_bytes_per_s": 4.2e12,
                "matrix_flops_per_s": {"bf16": 7.0e14, "fp8": 1.3e15, "int8": 1.3e15},
            }
        self._write({"stage": "probe", "gpu": gpu, "model": None, "scheme": None, "identity": identity}, [row])

    def add_support(self, gpu, scheme):
        """What the engine's chooser says of a scheme on a device."""
        kernel, computes, _ = KERNELS.get((gpu, scheme), UNQUANTIZED)
        row = {"kernel": kernel, "computes": computes, "refusals": {}, "reason": None}
        if (gpu, scheme) == ("h200", "rtn-int4"):
            row |= {"kernel": "MarlinLinearKernel"}
        elif (gpu, scheme) == ("cpu", "nvfp4"):
            row |= {"kernel": None, "computes": None, "reason": "no CPU kernel computes FP4"}
        identity = {"artefact": "point", "stage": "support", "protocol": 1, "gpu": gpu, "epoch": 0}
        identity |= {"versions": VERSIONS, "params": {"format": SCHEMES[scheme]["format"], "scheme": scheme}}
        self._write({"stage": "support", "gpu": gpu, "model": None, "scheme": scheme, "identity": identity}, [row])

    def add_sensitivity(self, model):
        """rtn-int4 layer by layer: 0.001 nats per token times the block's number, from 1; down_proj of block 2 ten times that."""
        scheme, checkpoint = SCHEMES["rtn-int4"], self._checkpoint_key(model, "rtn-int4")
        for name, part in sensitivity.parts(scheme, HF_CONFIG, "linear").items():
            block, kind = sensitivity.place_of(name)
            nats = 0.1 if block is None else 0.001 * (block + 1) * (10 if (block, kind) == (2, "down_proj") else 1)
            identity = {"artefact": "point", "stage": "sensitivity", "protocol": 1, "gpu": None}
            identity |= {"checkpoint": checkpoint, "versions": {"torch": "2.13.0"}}
            identity |= {"params": {"part": name, "documents": DOCUMENTS}}
            rows = [
                {
                    "document": i,
                    "tokens": 40 + i,
                    "negative_log_likelihood": (40 + i) * (1.2 + nats * (1 + 0.1 * (i % 3))),
                    "baseline_negative_log_likelihood": (40 + i) * 1.2,
                    "kl_divergence": (40 + i) * nats * (1 + 0.1 * (i % 3)),
                    "top1_agreement": 40 + i - i % 2,
                }
                for i in range(DOCUMENTS)
            ]
            point = {"stage": "sensitivity", "gpu": None, "model": model, "scheme": "rtn-int4", "identity": identity}
            labels = {"part": {"name": name, **part}, "per": "linear", "dataset_name": "arithmetic"}
            self._write(point | labels, rows)

    def add_layers(self):
        for checkpoint in self.manifest["checkpoints"]:
            for point in layer_points(self.manifest["study"], checkpoint, {"arithmetic": "d" * 64}):
                rows = layer_errors(quantized_layers(SCHEMES[point["scheme"]], HF_CONFIG))
                self.store.write_point(point["identity"], status="ok", rows=rows, run_id=f"quantize-{point['scheme']}")
                self.manifest["layers"].append(point)

    def _checkpoint_key(self, model, scheme):
        return next(c["key"] for c in self.manifest["checkpoints"] if (c["model"], c["scheme"]) == (model, scheme))

    def add_variant(self, gpu, model, scheme):
        kernel, computes, quantized = KERNELS.get((gpu, scheme), UNQUANTIZED)
        kinds = [
            {"layer_kind": layer, "count": 4, "kernel": kernel, "computes": computes, "quantized": quantized}
            for layer in ("qkv_proj", "down_proj")
        ]
        load = {"engine_start_s": 2.1, "weight_bytes": BYTES.get(scheme, 8_400_000), "kv_cache_tokens": 16384}
        add = self._adder(gpu, model, scheme, kinds)
        add("load", {}, [load | {"kernels": kinds}])
        for batch in BATCHES:
            params = {"batch_size": batch, "input_tokens": 64, "output_tokens": 16, "repeats": REPEATS}
            seconds = (0.05 if gpu == "cpu" else 0.002) * (1 + batch / 16) / SPEEDUP[scheme]
            times = [{"repeat": i, "elapsed_s": self._noisy(seconds)} for i in range(5)]
            if batch < 64:
                add("latency", params, [row | {"ttft_s": row["elapsed_s"] / 5} for row in times])
            else:
                add("throughput", params | {"batch_size": 32}, times)
                full = scheme == "nvfp4"
                add("throughput", params, times, "out_of_memory" if full else "ok", "the KV cache" if full else None)
        for load_kind, level in LOADS:
            params = {"load": load_kind, "rate_per_s" if load_kind == "rate" else "concurrency": level}
            params |= {"input_tokens": 64, "output_tokens": 16, "requests": REQUESTS, "seed": 0}
            add("serving", params, self._requests(load_kind, level, 0.2 / SPEEDUP[scheme]))
        search = SEARCH | {
            "slo": SLO,
            "send": {"input_tokens": 64, "output_tokens": 16, "requests": REQUESTS, "seed": 0},
        }
        add("search", search, probes(SPEEDUP[scheme]))
        params = {"task": "gsm8k", "dataset": "d" * 64, "split": "test", "questions": QUESTIONS, "shots": 3}
        add("accuracy", params | {"fewshot_split": "train"}, answers(scheme), dataset_name="arithmetic")
        params = {"dataset": "d" * 64, "split": "test", "documents": DOCUMENTS}
        extra = {"rtn-int4": 0.013, "nvfp4": 0.15}.get(scheme, 0.0)
        documents = [
            {"document": i, "tokens": 40 + i, "negative_log_likelihood": (40 + i) * (1.2 + extra + 0.01 * (i % 3))}
            for i in range(DOCUMENTS)
        ]
        add("perplexity", params, documents, dataset_name="arithmetic")
        stage, params = ("reference" if scheme == "bf16" else "fidelity"), params | {"top_k": 64}
        if stage == "fidelity":
            far = {"kl_divergence": 0.4 * extra + 0.01, "largest_kl_divergence": 0.005, "unresolved_mass": 0.3}
            documents = [row | far | {"top1_agreement": row["tokens"] - i % 2} for i, row in enumerate(documents)]
        add(stage, params, documents, dataset_name="arithmetic")
        if scheme == "int8-online":
            reason = (
                "quantized by the engine while it loads: there is no checkpoint format to build a single layer from"
            )
            self.manifest["skips"].append(
                {"stage": "gemm", "gpu": gpu, "model": model, "scheme": scheme, "reason": reason}
            )
            return
        for layer in LAYERS:
            head = layer == "lm_head"
            row = {"kernel": kernel, "computes": computes, "error_bound": 0.035}
            row |= {"includes_quantization": True if "a8" in computes else None}
            if head:
                row |= {"kernel": UNQUANTIZED[0], "computes": "bf16", "includes_quantization": None}
            for m in (1, 256):
                rows = self._products(gpu, "bf16" if head else scheme, layer, m, row)
                # The head stays in 16 bits, so its product is the same point in every scheme.
                add(
                    "gemm", self._shape(layer, m), rows, layer=layer, format=None if head else SCHEMES[scheme]["format"]
                )
                if layer == "down_proj" and scheme in ("bf16", "int8-smoothquant"):
                    params = self._shape(layer, m) | {"product": "relu_linear"}
                    add("gemm", params, rows, layer=layer, format=SCHEMES[scheme]["format"])

    def add_contenders(self, gpu, model):
        for name, spec in CONTENDERS.items():
            if gpu == "cpu" and spec["device"] == "cuda":
                continue
            for layer in ("qkv_proj", "down_proj"):
                for m in (1, 256):
                    identity = {"artefact": "point", "stage": "gemm", "protocol": 2, "gpu": gpu, "epoch": 0}
                    identity |= {"versions": VERSIONS, "format": spec["format"], "contender": spec}
                    identity |= {"params": self._shape(layer, m)}
                    row = {"kernel": f"{name} class", "computes": spec["computes"], "error_bound": 0.035}
                    row |= {"includes_quantization": spec["includes_quantization"]}
                    refused = (name, layer) == ("marlin-w4a16", "down_proj")
                    status = ("unsupported", "256 output features do not divide by 512") if refused else ("ok", None)
                    point = {"stage": "gemm", "gpu": gpu, "model": model, "scheme": None, "identity": identity}
                    point |= {"layer": layer, "contender": name}
                    self._write(point, self._products(gpu, name, layer, m, row), *status)

    def skip_contenders(self, gpu):
        if gpu == "cpu":
            skip = {"stage": "gemm", "gpu": gpu, "model": None, "scheme": None, "contender": "marlin-w4a16"}
            self.manifest["skips"].append(skip | {"reason": "this kernel runs on CUDA devices only"})

    def _shape(self, layer, m):
        n, k = LAYERS[layer]
        return {"n": n, "k": k, "m": m, "dtype": "bfloat16", "product": "linear", "repeats": REPEATS}

    def _products(self, gpu, entry, layer, m, row):
        """Repeats of one product: bf16 takes 1.6 times its floor, the others that over their PRODUCT_SPEEDUP."""
        n, k = LAYERS[layer]
        bandwidth, rate = (4.0e10, 1.0e12) if gpu == "cpu" else (4.2e12, 7.0e14)
        seconds = 1.6 * max((n * k + m * k + m * n) * 2 / bandwidth, 2 * m * n * k / rate)
        seconds /= PRODUCT_SPEEDUP.get((entry, layer), PRODUCT_SPEEDUP.get(entry, {1: 1.0, 256: 1.0}))[m]
        device = {"sm_clock_hz": 1.7e9, "memory_clock_hz": 3.2e9, "temperature_c": 50.0, "power_w": 400.0}
        row = row | {"relative_error": 0.01} | (dict.fromkeys(device) if gpu == "cpu" else device)
        generator = self.more_products_random if layer in ("o_proj", "gate_up_proj") else self.products_random
        primary = "eager" if gpu == "cpu" else "graph"
        kinds = {(primary, "cold"): (3, 1.0)}
        if layer == "qkv_proj":
            # Launched call by call everything takes longer; out of the cache, less.
            kinds |= {("eager", "cold"): (3, 1.0 if gpu == "cpu" else 5.0), (primary, "hot"): (3, 0.5)}
        return [
            row
            | {
                "launch": launch,
                "cache": cache,
                "repeat": i,
                "latency_s": self._noisy(seconds * factor, generator),
            }
            for (launch, cache), (repeats, factor) in kinds.items()
            for i in range(repeats)
        ]

    def _adder(self, gpu, model, scheme, kinds):
        checkpoints = self.manifest["checkpoints"]
        checkpoint = next(c["key"] for c in checkpoints if (c["model"], c["scheme"]) == (model, scheme))
        invalid, unsupported = scheme == "int8-online", (gpu, scheme) == ("cpu", "nvfp4")

        def add(stage, params, rows, status="ok", reason=None, format=None, **more):
            identity = {"artefact": "point", "stage": stage, "protocol": 1, "checkpoint": checkpoint, "gpu": gpu}
            identity |= {"epoch": 0, "versions": VERSIONS, "engine_args": SCHEMES[scheme]["engine_args"]}
            identity |= {"params": params}
            if stage == "gemm":
                del identity["checkpoint"]
                identity |= {"format": format, "contender": None}
            if unsupported and more.get("layer") != "lm_head":
                status, reason = "unsupported", "no CPU kernel computes FP4"
            if invalid and stage != "load":
                status, reason = "invalid", "its linear layers ran unquantized"
            point = {"stage": stage, "gpu": gpu, "model": model, "scheme": scheme, "identity": identity, **more}
            self._write(
                point, rows, status, reason, kinds if stage in ("serving", "search") and not unsupported else None
            )

        return add

    def _write(self, point, rows, status="ok", reason=None, kernels=None):
        process = JOB_OF_STAGE[point["stage"]]
        names = [part for part in (process, point["gpu"], point["model"], point["scheme"]) if part]
        run_id = "-".join(names)
        run = {"run_id": run_id, "stage": process, "gpu": point["gpu"], "model": point["model"]}
        run |= {"scheme": point["scheme"], "device_name": f"made-up {point['gpu']}", "device_uuid": None}
        run |= {"driver": None, "clocks": None, "power_limit_w": None, "versions": VERSIONS, "commit": "c" * 40}
        run |= {"started_at": "2026-11-20T12:00:00+00:00", "ended_at": "2026-11-20T12:01:00+00:00"}
        run |= {"engine_args": point["identity"].get("engine_args", {}), "engine_start_s": 2.1, "engine_starts": 1}
        run |= {"points_measured": 1, "measured_s": 60.0, "host": "node1", "log": f"logs/{run_id}.log"}
        self.store.write_run(run | ({"kernels": kernels} if kernels else {}))
        rows = rows if status == "ok" else []
        arguments = {"status": status, "reason": reason, "rows": rows, "run_id": run_id, "measured_s": 1.5}
        if status == "ok" and point["gpu"] == "h200" and point["stage"] in METERED:
            # 700 W, except that each scheme draws as much less as it is faster.
            seconds = sum(row.get("elapsed_s", 0.01) for row in rows)
            drawn = {"joules": 700 / SPEEDUP[point["scheme"]] * seconds, "seconds": seconds, "largest_gap_s": 0.1}
            arguments["energy"] = drawn | {"valid": True}
        self.store.write_point(point["identity"], **arguments)
        self.manifest["points"].append({"key": key(point["identity"]), **json.loads(canonical_json(point))})

    def _noisy(self, seconds, generator=None):
        return seconds * (generator or self.random).uniform(0.99, 1.01)

    def _requests(self, load_kind, level, seconds):
        rows = []
        for i in range(REQUESTS):
            scheduled = i / level if load_kind == "rate" else (i // level) * seconds
            first = scheduled + self._noisy(seconds / 4)
            row = {"request": i, "scheduled_s": scheduled, "sent_s": scheduled + 0.001, "first_token_s": first}
            row |= {"finished_s": first + self._noisy(seconds), "input_tokens": 64, "output_tokens": 16, "error": None}
            row["token_gaps"] = histogram([(row["finished_s"] - first) / 15] * 15)
            rows.append(row)
        return rows


def answers(scheme):
    """Per question: the baseline misses every tenth; `strict-match` also misses question 5 of every scheme."""
    rows = []
    for question in range(QUESTIONS):
        correct = question % 10 != 0
        if scheme == "int8-smoothquant":
            correct = (correct or question == 10) and question != 11
        elif scheme == "rtn-int4":
            correct = correct and question % 10 != 1
        elif scheme == "nvfp4":
            correct = correct and question % 2 == 0
        for name in ("flexible-extract", "strict-match"):
            right = correct and not (name == "strict-match" and question == 5)
            answer = str(question if right else question + 1)
            target = str(question)
            rows.append({"question": question, "filter": name, "correct": right, "answer": answer, "target": target})
    return rows


def probes(speedup):
    """A search's loads: the SLO is met up to a rate of 4 times the speedup; 3 % of the requests miss it there, above half."""
    found = []
    for number, rate in enumerate((1.0, 16.0, 4.0, 8.0, 5.66)):
        share = 0.97 if rate <= 4 * speedup else 0.5
        row = {"probe": number, "rate_per_s": rate, "probe_key": "f" * 64, "probe_status": "ok", "probe_reason": None}
        row |= {"requests": REQUESTS, "within_share": share, "within_low": share - 0.05, "within_high": share + 0.03}
        row |= {"met": share > 0.9, "goodput_per_s": rate * share, "output_tokens_per_s": 16 * rate}
        found.append(row)
    return found


def _config(models, gpus):
    return {
        "study": "synthetic",
        "title": "A made-up study <b>for tests</b>",
        "store": "results/store",
        "models": [{"name": name, "source": "tiny"} for name in models],
        "schemes": list(SCHEMES),
        "gpus": list(gpus),
        "datasets": [{"name": "arithmetic", "source": "tiny"}],
        "calibration": {"dataset": "arithmetic", "split": "train", "samples": 128, "max_tokens": 256, "seed": 0},
        "engine": {"dtype": "bfloat16", "max_model_len": None, "kv_cache_memory_bytes": 1 << 26, "enforce_eager": True},
        "kernels": {
            "tokens": [1, 256],
            "shapes": [],
            "contenders": list(CONTENDERS),
            "products": ["linear", "relu_linear"],
        },
        "latency": {"batch_sizes": [1, 16], "lengths": [{"input_tokens": 64, "output_tokens": 16}]},
        "throughput": {"batch_sizes": [32, 64], "lengths": [{"input_tokens": 64, "output_tokens": 16}]},
        "serving": {
            "request_rates": [2.0, 8.0],
            "concurrencies": [4],
            "lengths": [{"input_tokens": 64, "output_tokens": 16}],
            "requests": REQUESTS,
            "seed": 0,
            "slo": SLO,
            "search": SEARCH,
        },
        "accuracy": [{"task": "gsm8k", "dataset": "arithmetic", "split": "test", "questions": QUESTIONS, "shots": 3}],
        "perplexity": [{"dataset": "arithmetic", "split": "test", "documents": DOCUMENTS}],
        "sensitivity": [{"scheme": "rtn-int4", "per": "linear", "dataset": "arithmetic", "documents": DOCUMENTS}],
        "repeats": REPEATS,
        "baseline": "bf16",
    }
