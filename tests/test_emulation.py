"""Emulated schemes: which they are, that they are never taken for native ones, and that their numbers are the scheme's."""

import copy
import json

import pytest
from quantbench import emulated
from quantbench.decision import choose, label, summarize
from quantbench.jobs import build_jobs
from quantbench.keys import key
from quantbench.manifest import build_manifest, data_names
from quantbench.points import expand
from quantbench.report import render
from quantbench.schemes import compressed_tensors_config, load_schemes
from quantbench.store import Store
from quantbench.study import ROOT, load_study
from quantbench.tables import build_tables
from quantbench.workflow import Workflow
from synthetic import synthetic_study
from workflow_study import CONFIG

SCHEMES = load_schemes(ROOT / "config" / "schemes")
TINY = ROOT / "resources" / "tiny" / "model"


@pytest.fixture
def config(tmp_path):
    config = {**copy.deepcopy(CONFIG), "store": str(tmp_path / "store")}
    return config | {"schemes": ["bf16", "rtn-int4", "fp8-dynamic", "nvfp4a16"], "emulate": True}


def manifest_of(config):
    return build_manifest(load_study(copy.deepcopy(config)))


# --- which, and as what ------------------------------------------------------------------------------------------------


def test_emulation_adds_quality_points_whose_identities_say_so_and_changes_none(config):
    found, plain = manifest_of(config), manifest_of(config | {"emulate": False})
    keys = {point["key"] for point in plain["points"]}
    added = [point for point in found["points"] if point["key"] not in keys]
    assert len(added) == len(found["points"]) - len(plain["points"])
    # never a time: neither latency nor throughput, serving, matrix products, nor the start itself
    assert {point["stage"] for point in added} == {"accuracy", "perplexity", "fidelity"}
    # not the baseline, and not what has a kernel wherever vLLM runs
    assert {point["scheme"] for point in added} == {"fp8-dynamic", "nvfp4a16"}
    for point in added:
        assert point["emulated"] and point["identity"]["emulated"] == emulated.EMULATION
        assert point["identity"]["engine_args"]["enforce_eager"]
    assert not any("emulated" in point["identity"] for point in plain["points"])


def test_only_a_device_that_may_lack_a_kernel_is_asked(config):
    config |= {"gpus": ["h100", "b200", "t4"], "schemes": ["bf16", "fp8-dynamic", "int8-rtn", "mxfp4"]}
    del config["kernels"]

    def asked(**engine):
        study = load_study(copy.deepcopy(config) | {"engine": {**config["engine"], **engine}})
        return {
            (gpu, scheme)
            for gpu, entry in study.gpus.items()
            for scheme in study.schemes
            if emulated.is_emulated(study, scheme, entry)
        }

    # Blackwell has no INT8 kernel in vLLM; on a T4 nothing runs in bfloat16, and MXFP4 not at all.
    assert asked() == {("b200", "int8-rtn")}
    assert asked(dtype="float16") == {("b200", "int8-rtn"), ("t4", "mxfp4")}


def test_what_a_device_is_known_to_lack_is_still_quantized_and_emulated(config):
    config |= {"gpus": ["b200"], "schemes": ["bf16", "int8-rtn"]}
    del config["kernels"]
    found = manifest_of(config)
    assert {s["stage"] for s in found["skips"] if s["scheme"] == "int8-rtn"} >= {"load", "latency", "accuracy"}
    job = build_jobs(found, load_study(copy.deepcopy(config)).store)["measure_engine"][
        "b200", "tiny", "int8-rtn+emulated"
    ]
    assert job["load_point"] is None and job["emulate"] == SCHEMES["int8-rtn"]["format"]
    assert emulated.decided(job, None) is None


def test_a_job_of_its_own_is_told_what_decides_whether_it_is_needed(config):
    found = manifest_of(config)
    jobs = build_jobs(found, load_study(copy.deepcopy(config)).store)["measure_engine"]
    own, job = (jobs["cpu", "tiny", scheme] for scheme in ("nvfp4a16", "nvfp4a16+emulated"))
    assert "emulate" not in own and not any("emulated" in point["identity"] for point in expand(own))
    assert all(point["identity"]["emulated"] for point in expand(job))
    assert key(job["load_point"]) in {point["key"] for point in expand(own) if point["stage"] == "load"}


def test_it_waits_for_the_schemes_own_start_and_the_baselines_distributions(config):
    waits = Workflow(copy.deepcopy(config)).needs("measure_engine", gpu="cpu", model="tiny", scheme="nvfp4a16+emulated")
    for wanted in ("engine/cpu/tiny/nvfp4a16.json", "engine/cpu/tiny/bf16.json", "checkpoints/tiny/nvfp4a16.json"):
        assert f"results/small/{wanted}" in waits


NATIVE = [{"layer_kind": "o_proj", "count": 4, "kernel": "K", "computes": "w4a16-fp4", "quantized": True}]
HEAD = {"layer_kind": "lm_head", "count": 1, "kernel": "H", "computes": "bf16", "quantized": False}


@pytest.mark.parametrize(
    ("load", "result"),
    [
        ({"status": "unsupported", "reason": "Failed to find a kernel", "rows": []}, None),
        ({"status": "out_of_memory", "reason": "full", "rows": []}, ("out_of_memory", "full")),
        (
            {"status": "ok", "reason": None, "rows": [{"kernels": NATIVE}]},
            ("ok", "the device has kernels of its own for it"),
        ),
        # vLLM took it without a word, and ran it in 16 bits
        (
            {
                "status": "ok",
                "reason": None,
                "rows": [{"kernels": [{**NATIVE[0], "computes": "bf16", "quantized": False}]}],
            },
            None,
        ),
    ],
)
def test_the_engines_own_start_decides_whether_there_is_anything_to_emulate(load, result):
    job = {"expects": {"computes": "w4a16-fp4", "ignore": ["lm_head"]}, "engine_args": {"dtype": "bfloat16"}}
    assert emulated.decided(job | {"emulate": {}}, load) == result


def test_an_emulation_that_did_not_happen_is_not_reported_as_one():
    expects = {"computes": "w4a16-fp4", "ignore": ["lm_head"]}
    ran = [{**NATIVE[0], "kernel": "EmulatedLinearKernel", "computes": "emulated-w4a16-fp4"}, HEAD]
    assert emulated.fault(expects, ran, "bfloat16") is None
    assert "o_proj took K" in emulated.fault(expects, [*NATIVE, HEAD], "bfloat16")
    assert "lm_head" in emulated.fault(expects, [ran[0], HEAD | {"computes": "emulated-w4a16-fp4"}], "bfloat16")


def test_entries_that_read_the_same_data_are_told_apart(config):
    text = {"dataset": "arithmetic", "documents": 4, "max_tokens": 64}
    study = load_study(copy.deepcopy(config) | {"fidelity": [{**text, "top_k": k} for k in (16, 64)]})
    assert data_names(study, "fidelity") == ["arithmetic, top k 16", "arithmetic, top k 64"]
    assert data_names(study, "perplexity") == ["arithmetic"]
    # A task asked with 0 and 3 worked examples has a column for that.
    asked = [{"task": "gsm8k", "dataset": "arithmetic", "questions": 4, "shots": shots} for shots in (0, 3)]
    assert data_names(load_study(copy.deepcopy(config) | {"accuracy": asked}), "accuracy") == ["arithmetic"] * 2


# --- the numbers -------------------------------------------------------------------------------------------------------

# One layer of each format: vLLM's own reading of a checkpoint's tensors, against a product in 64 bits of the dequantized
# weight (gemm/weights.py) and of activations rounded here, by the formulas that the formats are defined by.
LAYERS = """
import os, torch
from quantbench.engine import emulation
from quantbench.gemm.harness import Harness, build_layer, make_quantization
from quantbench.gemm.weights import FP4_VALUES, LARGEST_INPUT, make_activations, make_weight, static_input_scales
from quantbench.engine.kernels import describe_layer
from types import SimpleNamespace

def nearest(x, grid):
    grid = torch.tensor([-v for v in reversed(grid)] + list(grid), dtype=torch.float64)
    # Halfway, the number whose last bit is 0: every other one, counted from 0.
    odd = torch.tensor([i % 2 for i in reversed(range(8))] + [i % 2 for i in range(8)])
    return grid[((x.unsqueeze(-1) - grid).abs() + 1e-9 * odd).argmin(-1)]

def round_inputs(x, inputs):
    if inputs is None:
        return x
    groups = x.unflatten(-1, (-1, inputs.get("group_size") or x.shape[-1]))
    most = groups.abs().amax(-1, keepdim=True)
    if inputs["num_bits"] == 4 and inputs["group_size"] == 32:
        # The power of two below the largest, so that it becomes 4 to 8; from 7 on the next one, since 6 is the most.
        power = torch.exp2(torch.floor(torch.log2(most)))
        scale = torch.where(most / power >= 1.75, 2 * power, power) / 4
        return (nearest((groups / scale).clamp(-6, 6), FP4_VALUES) * scale).flatten(-2)
    if inputs["num_bits"] == 4:
        divisor = 448 * 6 / LARGEST_INPUT
        scale = (most / 6 * divisor).float().to(torch.float8_e4m3fn).double() / divisor
        return (nearest((groups / scale).clamp(-6, 6), FP4_VALUES) * scale).flatten(-2)
    if inputs["type"] == "int":
        scale = most / 127
        return ((groups / scale).round().clamp(-128, 127) * scale).flatten(-2)
    scale = most / 448 if inputs["dynamic"] else LARGEST_INPUT / 448
    return ((groups / scale).clamp(-448, 448).float().to(torch.float8_e4m3fn).double() * scale).flatten(-2)

answer, dtype = {}, torch.bfloat16
torch.set_default_dtype(dtype)
with Harness("cpu") as harness:
    harness.config.model_config = SimpleNamespace(dtype=dtype, hf_config=None, hf_text_config=None, is_moe=False)
    for name, (format_, quantization) in given.items():
        os.environ[emulation.FORMAT] = json.dumps(format_)
        emulation.register()
        with torch.inference_mode():
            weight = make_weight(256, 384, format_, dtype, "cpu")
            tensors = weight.tensors | static_input_scales(format_, "cpu")
            layer = build_layer(256, 384, dtype, make_quantization(quantization), tensors)
            x = make_activations(32, 384, dtype, "cpu")
            result = layer(x).double()
            exact, rounded = weight.dequantize(slice(None)), round_inputs(x.double(), format_["input_activations"])
            off = (result - rounded @ exact.T).norm() / result.norm()
            unrounded = (rounded @ exact.T - x.double() @ exact.T).norm() / result.norm()
        answer[name] = {"off": float(off), "rounding": float(unrounded), **describe_layer(layer)}
"""

FORMATS = (
    *("fp8-dynamic", "fp8-static", "fp8-block", "int8-rtn", "gptq-int4-fp8"),
    *("nvfp4", "nvfp4a16", "mxfp4", "mxfp4a16"),
)


@pytest.fixture(scope="module")
def layers(ask_engine):
    configs = {name: compressed_tensors_config(SCHEMES[name]["format"], ["Linear"], []) for name in FORMATS}
    return ask_engine(LAYERS, {name: [SCHEMES[name]["format"], configs[name]] for name in FORMATS})


@pytest.mark.parametrize("name", FORMATS)
def test_an_emulated_layer_multiplies_what_the_format_says(layers, name):
    found = layers[name]
    assert found["computes"] == f"emulated-{SCHEMES[name]['computes']}" and found["quantized"]
    inputs = SCHEMES[name]["format"]["input_activations"]
    # bfloat16 rounds weights, activations and the result by 2^-9 at most each; of 4-bit activations some of ten thousand lie
    # so near the middle of two numbers that the last bit of their scale decides
    assert found["off"] < (0.015 if inputs and inputs["num_bits"] == 4 else 0.005)
    # and rounding the activations, where the format does, is more than that: to 8 bits 0.7 %, to 4 bits 10 %
    least = 0 if inputs is None else 0.08 if inputs["num_bits"] == 4 else 0.006
    assert least <= found["rounding"] < (1 if inputs else 1e-12)


# The whole tiny model in one engine, its kernels emulated through vLLM's plugins, beside transformers in 32 bits with the same
# numbers in its linear layers: weights as dequantized, activations rounded before each.
MODEL = """
import shutil, torch
from pathlib import Path
from quantbench.engine import emulation, fidelity
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

def to_fp8(x):
    scale = x.abs().amax(-1, keepdim=True) / 448
    return (x / scale).to(torch.float8_e4m3fn), scale

tiny, folder = Path(given["tiny"]), Path("checkpoint")
shutil.copytree(tiny, folder)
config = json.loads((tiny / "config.json").read_text())
(folder / "config.json").write_text(json.dumps(config | {"quantization_config": given["quantization"]}))
plain, exact = (AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32) for _ in range(2))
tensors = load_file(tiny / "model.safetensors")
for name, module in exact.named_modules():
    if name.endswith("_proj"):
        weight, scale = to_fp8(module.weight.data)
        tensors |= {f"{name}.weight": weight, f"{name}.weight_scale": scale}
        module.weight.data = weight.float() * scale
        module.register_forward_pre_hook(lambda _, x: (torch.mul(*(part.float() for part in to_fp8(x[0]))),))
save_file(tensors, folder / "model.safetensors")
tokenizer = AutoTokenizer.from_pretrained(tiny)
prompts = [tokenizer(text).input_ids for text in given["texts"]]

def logs(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)

def divergence(p, q):
    return float((p.exp() * (p - q)).sum(-1).mean())

emulation.switch_on(given["format"])
from quantbench.engine.session import Session
session = Session(folder.resolve(), given["engine_args"])
found, far = [], []
for ids, mine in zip(prompts, fidelity.distributions(session, prompts, config["vocab_size"])):
    reference = logs(exact, ids)
    order = torch.tensor(mine["ids"]).long().argsort(-1)
    found.append(divergence(reference, torch.tensor(mine["logs"]).double().gather(-1, order)))
    far.append(divergence(reference, logs(plain, ids)))
answer = {"emulated": sum(found) / len(found), "plain": sum(far) / len(far), "kernels": session.kernels}
"""


def test_an_engine_with_emulated_kernels_expects_what_the_schemes_numbers_say(ask_engine):
    rows = (ROOT / "resources/tiny/data/test.jsonl").read_text().splitlines()[:8]
    format_ = SCHEMES["fp8-dynamic"]["format"]
    given = {
        "tiny": str(TINY),
        "format": format_,
        "quantization": compressed_tensors_config(format_, ["Linear"], ["lm_head"]),
        "texts": ["Question: {question}\nAnswer: {answer}".format(**json.loads(row)) for row in rows],
        "engine_args": {
            "dtype": "bfloat16",
            "kv_cache_memory_bytes": 16777216,
            "enforce_eager": True,
            "max_num_seqs": 8,
        },
    }
    found = ask_engine(MODEL, given)
    assert emulated.fault({"computes": "w8a8-fp8", "ignore": ["lm_head"]}, found["kernels"], "bfloat16") is None
    # What is left is the engine's own 16 bits; the 16-bit model is further from the scheme.
    assert found["emulated"] < found["plain"] / 4


# --- tables and report -------------------------------------------------------------------------------------------------

REFUSED = {"status": "unsupported", "reason": "Failed to find a kernel that can implement the NVFP4 linear layer."}


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """(manifest, tables) of the made-up study, as if its cpu had no kernel for rtn-int4, which was emulated instead."""
    root = tmp_path_factory.mktemp("emulated")
    manifest, store = synthetic_study(root), Store(root / "store")
    run = {"run_id": "emulation", "stage": "measure_engine", "gpu": "cpu", "model": "tiny", "scheme": "rtn-int4"}
    run["kernels"] = [{**NATIVE[0], "kernel": "EmulatedLinearKernel", "computes": "emulated-w4a16"}]
    store.write_run(run)
    store.write_run(run | {"run_id": "refused", "kernels": None})
    for point in [p for p in manifest["points"] if (p["gpu"], p["scheme"]) == ("cpu", "rtn-int4")]:
        path = store.point_path(point["key"])
        if point["stage"] in ("support", "gemm"):
            continue
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | REFUSED | {"rows": [], "run_id": "refused"}))
        if point["stage"] in emulated.STAGES:
            identity = point["identity"] | {"emulated": emulated.EMULATION}
            manifest["points"].append(point | {"key": key(identity), "identity": identity, "emulated": True})
            store.write_point(identity, status="ok", rows=record["rows"], run_id="emulation")
    # One that turned out to need no emulation has no rows.
    native = next(p for p in manifest["points"] if (p["gpu"], p["scheme"], p["stage"]) == ("cpu", "bf16", "accuracy"))
    identity = native["identity"] | {"emulated": emulated.EMULATION}
    manifest["points"].append(native | {"key": key(identity), "identity": identity, "emulated": True})
    store.write_failure(identity, ("ok", "the device has kernels of its own for it"), "other")
    return manifest, build_tables(manifest, store)


def test_tables_say_which_rows_are_emulated_and_what_the_device_itself_said(reported):
    _, tables = reported
    for stage in emulated.STAGES:
        rows = tables[stage].filter(gpu="cpu", scheme="rtn-int4").to_dicts()
        assert {(row["emulated"], row["status"]) for row in rows} == {(False, "unsupported"), (True, "ok")}
        assert not tables[stage].filter(gpu="cpu", scheme="bf16")["emulated"].any()
    for stage in ("latency", "throughput", "serving"):
        assert set(tables[stage].filter(gpu="cpu", scheme="rtn-int4")["status"]) == {"unsupported"}
    kernels = tables["kernels"].filter(gpu="cpu", scheme="rtn-int4", emulated=True).to_dicts()
    assert [(row["computes"], row["verdict"]) for row in kernels] == [("emulated-w4a16", "emulated")]
    # The device is still one that cannot run it.
    [support] = tables["support"].filter(gpu="cpu", scheme="rtn-int4").to_dicts()
    assert (support["level"], support["reason"]) == ("unsupported", REFUSED["reason"])


def test_an_emulated_scheme_is_compared_in_quality_and_never_chosen(reported):
    _, tables = reported
    summary = summarize(tables, "bf16")
    [entry] = [e for e in summary if (e["gpu"], e["scheme"]) == ("cpu", "rtn-int4")]
    assert (entry["status"], entry["verdict"], label(entry)) == ("ok", "emulated", "rtn-int4 (emulated)")
    assert all(found["emulated"] for stage in emulated.STAGES for found in entry[stage]) and entry["accuracy"]
    assert not entry["speed"] and {failed["table"] for failed in entry["failures"]} == {
        "latency",
        "throughput",
        "serving",
        "search",
    }
    [decision] = [d for d in choose(summary) if d["gpu"] == "cpu"]
    assert decision["scheme"] != "rtn-int4"
    assert "rtn-int4 emulated, without a speed (vLLM has no kernel on this device)" in decision["left_out"]
    [why] = [r["why"] for r in decision["rejected"] if r["scheme"] == "rtn-int4"]
    assert why == "emulated, so without a speed: vLLM has no kernel on this device"


def test_the_report_says_emulated_wherever_the_numbers_stand(reported):
    page, summary = render(*reported)
    for section in ("accuracy", "perplexity"):
        text = page.split(f'<section id="{section}"')[1].split("</section>")[0]
        # in the chart's labels and its description, in the table, and in a note
        assert text.count("rtn-int4 (emulated)") >= 3 and "has no kernel on this device and is emulated" in text, (
            section
        )
    [row] = [r for r in summary["schemes"] if (r["gpu"], r["scheme"]) == ("cpu", "rtn-int4")]
    assert all(found["emulated"] for found in row["accuracy"]) and row["throughput_gain"] is None
