"""Matrix products: the order they are measured in, and with an engine environment the products themselves."""

import json
import os
import subprocess
from pathlib import Path

import measure_gemm
import pytest
from quantbench.engine.settings import engine_environment
from quantbench.gpus import load_gpus
from quantbench.keys import canonical_json
from quantbench.points import expand
from quantbench.schemes import compressed_tensors_config
from quantbench.store import Store

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "workflow" / "scripts"
GPUS = load_gpus(ROOT / "config" / "gpus.yaml")
REPEATS = {"least": 3, "most": 4, "relative_ci": 0.05, "confidence": 0.95}


def args(bits, type, strategy, **more):
    return {"num_bits": bits, "type": type, "strategy": strategy, "symmetric": True, "dynamic": False, **more}


FP4 = args(4, "float", "tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn", zp_dtype="torch.float8_e4m3fn")
FORMATS = {
    "bf16": None,
    "int4": {"weights": args(4, "int", "group", group_size=128), "input_activations": None},
    "int4-zeros": {"weights": args(4, "int", "group", group_size=128, symmetric=False), "input_activations": None},
    "int8": {"weights": args(8, "int", "channel"), "input_activations": args(8, "int", "token", dynamic=True)},
    "fp8-channel": {
        "weights": args(8, "float", "channel"),
        "input_activations": args(8, "float", "token", dynamic=True),
    },
    "fp8-block": {
        "weights": args(8, "float", "block", block_structure=[128, 128]),
        "input_activations": args(8, "float", "group", group_size=128, dynamic=True),
    },
    "nvfp4": {"weights": FP4, "input_activations": {**FP4, "dynamic": "local"}},
}


def job(formats=FORMATS, tokens=(1, 16), gpu="cpu", n=256, k=128):
    groups = []
    for name in formats:
        params = [{"n": n, "k": k, "m": m, "dtype": "bfloat16", "repeats": REPEATS} for m in tokens]
        group = {"stage": "gemm", "protocol": 1, "versions": {}, "format": FORMATS[name], "params": params}
        if FORMATS[name]:
            group["quantization_config"] = compressed_tensors_config(FORMATS[name], ["re:.*q_proj"], [])
        groups.append(group)
    common = {"artefact": "point", "gpu": gpu, "epoch": 0}
    return {"gpu": gpu, "model": None, "scheme": None, "gpu_entry": GPUS[gpu], "common": common, "groups": groups}


def test_points_of_one_layer_stay_together_and_the_order_is_shuffled():
    points = expand(job(tokens=(1, 16, 256)))
    layers = measure_gemm.shuffled_layers(points)
    assert sorted(p["key"] for layer in layers for p in layer) == sorted(p["key"] for p in points)
    for layer in layers:
        assert len(layer) == 3 and len({canonical_json(p["format"]) for p in layer}) == 1
    in_order = [canonical_json(format) for format in FORMATS.values()]
    assert [canonical_json(layer[0]["format"]) for layer in layers] != in_order
    # The same seed gives the same order, whatever order the points came in.
    assert [[p["key"] for p in layer] for layer in measure_gemm.shuffled_layers(points)] == [
        [p["key"] for p in layer] for layer in layers
    ]


# --- with vLLM --------------------------------------------------------------------------------------------------------


def engine_python():
    python = os.environ.get("QUANTBENCH_ENGINE_PYTHON")
    if not python:
        pytest.skip("QUANTBENCH_ENGINE_PYTHON is not set: no engine environment to test with")
    return python


def run_script(tmp_path, job):
    output = tmp_path / "pointer.json"
    options = [f"--job={canonical_json(job)}", f"--store={tmp_path / 'store'}", f"--output={output}"]
    command = [engine_python(), SCRIPTS / "measure_gemm.py", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300), output


def run_code(code):
    environment = {**os.environ, **engine_environment(GPUS["cpu"])}
    environment |= {"PYTHONPATH": str(SCRIPTS), "VLLM_LOGGING_LEVEL": "ERROR"}
    result = subprocess.run([engine_python(), "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.engine
def test_every_format_is_measured_or_says_why_not(tmp_path):
    result, output = run_script(tmp_path, job())
    assert result.returncode == 0, result.stderr[-3000:]
    store, points = Store(tmp_path / "store"), expand(job())
    assert json.loads(output.read_text()) == {"points": sorted(point["key"] for point in points)}
    names = {canonical_json(format): name for name, format in FORMATS.items()}
    computes = {"bf16": "bf16", "int4": ("w4a16", "w4a8"), "int4-zeros": ("w4a16", "w4a8"), "int8": "w8a8-int8"}
    for point in points:
        name, record = names[canonical_json(point["format"])], store.read_point(point["key"])
        if name in computes:
            assert record["status"] == "ok", record["reason"]
            assert 3 <= len(record["rows"]) <= 4
            for index, row in enumerate(record["rows"]):
                assert row["repeat"] == index and row["computes"] in computes[name]
                assert row["includes_quantization"] == (row["computes"] in ("w8a8-int8", "w4a8"))
                # A microsecond to a tenth of a second for 65 000 to a million products.
                assert 1e-6 < row["latency_s"] < 0.1
        elif name == "nvfp4":
            assert record["status"] == "unsupported" and record["rows"] == []
            assert "NVFP4" in record["reason"]
        else:
            # Which FP8 a CPU runs hangs on its AMX; whatever runs has to be right.
            assert record["status"] in ("ok", "unsupported")
    [run] = store.read_runs().values()
    assert run["stage"] == "measure_gemm" and run["points_measured"] == len(points) and run["ended_at"]

    again, _ = run_script(tmp_path, job())
    assert again.returncode == 0 and len(store.read_runs()) == 1, "a second run has nothing to measure"


@pytest.mark.engine
def test_the_wrong_device_is_refused_by_name(tmp_path):
    result, output = run_script(tmp_path, job(formats=["bf16"], gpu="h200"))
    assert result.returncode == 2
    assert "error: this machine has" in result.stderr and "NVIDIA H200" in result.stderr
    assert "Traceback" not in result.stderr and not output.exists()


CONFIGS = {name: compressed_tensors_config(f, ["Linear"], []) for name, f in FORMATS.items() if f}
SETUP = f"""
import json, torch
from quantbench.gemm import harness as h
from quantbench.gemm.weights import make_weight
FORMATS = json.loads({json.dumps(FORMATS)!r})
CONFIGS = json.loads({json.dumps(CONFIGS)!r})
REPEATS = {{"least": 2, "most": 2, "relative_ci": 0.05, "confidence": 0.95}}
def run(name, tokens=(4,)):
    with h.Harness("cpu") as harness:
        return [(status, reason, rows) for _, status, reason, rows, _ in
                harness.measure(64, 256, list(tokens), "bfloat16", FORMATS[name], CONFIGS.get(name), REPEATS)]
"""


@pytest.mark.engine
def test_a_wrong_result_is_not_timed():
    # One zero point too many: each number of the last group is one step of its grid off.
    code = (
        SETUP
        + """
def off_by_one(*arguments):
    weight = make_weight(*arguments)
    weight.tensors["weight_zero_point"] += 1
    return weight
h.make_weight = off_by_one
print(json.dumps(run("int4-zeros")))
"""
    )
    [(status, reason, rows)] = run_code(code)
    assert status == "invalid" and rows == []
    assert "off by" in reason and "not timed" in reason


@pytest.mark.engine
def test_failures_that_are_results_and_failures_that_are_crashes():
    code = (
        SETUP
        + """
def fail(error):
    def build(*arguments):
        raise error
    h.build_layer = build
    try:
        return run("bf16", tokens=(1, 2))
    except Exception as crash:
        return [f"{type(crash).__name__}: {crash}"]
errors = [torch.OutOfMemoryError("CUDA out of memory. Tried"),
          ValueError("Failed to find a kernel that can implement the X linear layer.\\n"),
          RuntimeError("Quantization scheme is not supported for the current GPU. Min capability: 89."),
          RuntimeError("illegal memory access"), ValueError("odd")]
print(json.dumps([fail(error) for error in errors]))
"""
    )
    out_of_memory, no_kernel, too_old, illegal, odd = run_code(code)
    assert out_of_memory == [["out_of_memory", "CUDA out of memory. Tried", []]] * 2
    assert no_kernel == [["unsupported", "Failed to find a kernel that can implement the X linear layer.", []]] * 2
    assert [status for status, _, _ in too_old] == ["unsupported"] * 2
    assert illegal == ["RuntimeError: illegal memory access"]
    assert odd == ["ValueError: odd"]


@pytest.mark.engine
def test_weights_are_rounded_as_finely_as_their_format_allows():
    # Root mean square error of a unit Gaussian, from the step of each grid:
    #   bf16         2^-8 of the binade, about 2^-9 / sqrt(3) of the value: 0.0016
    #   int4         the largest of 128 is 2.7 sigma; steps of 2.7 / 7.5 = 0.36, over sqrt(12): 0.104
    #   int4-zeros   a range of 5.2 sigma in 15 steps: 0.35 / sqrt(12) = 0.10
    #   int8         the largest of 256 is 2.9 sigma; 2.9 / 127 / sqrt(12) = 0.0066
    #   fp8          3 bits of mantissa: about 0.026 of the value
    #   nvfp4        1 bit of mantissa and 16 to a group: about 0.09
    code = (
        SETUP
        + """
errors = {}
for name, format in FORMATS.items():
    generator = torch.Generator("cpu").manual_seed(0)
    values = torch.randn(256, 256, generator=generator, dtype=torch.float32)
    weight = make_weight(256, 256, format, torch.bfloat16, torch.device("cpu"))
    errors[name] = float((weight.dequantize(slice(None)) - values.double()).square().mean().sqrt())
print(json.dumps(errors))
"""
    )
    errors = run_code(code)
    expected = {"bf16": 0.0016, "int4": 0.104, "int4-zeros": 0.10, "int8": 0.0066, "fp8-channel": 0.026,
                "fp8-block": 0.026, "nvfp4": 0.09}  # fmt: skip
    assert errors == {name: pytest.approx(value, rel=0.2) for name, value in expected.items()}


@pytest.mark.engine
def test_nvfp4_is_laid_out_as_vllm_reads_it():
    # No CPU kernel takes it, so vLLM's own plain-torch reader stands in for one.
    code = (
        SETUP
        + """
from vllm.model_executor.layers.quantization.utils.nvfp4_emulation_utils import dequantize_to_dtype
weight = make_weight(32, 64, FORMATS["nvfp4"], torch.bfloat16, torch.device("cpu"))
packed, scales, divisor = (weight.tensors["weight_" + name] for name in ("packed", "scale", "global_scale"))
read = dequantize_to_dtype(packed, scales, 1 / divisor, torch.float32, 16, swizzle=False)
print(json.dumps(float((read.double() - weight.dequantize(slice(None))).abs().max())))
"""
    )
    assert run_code(code) < 1e-5
