"""Every contender and every operator on this machine's GPU, on one shape: right, or refused for a reason."""

import importlib.util
import subprocess
from pathlib import Path

import pytest
from quantbench.contenders import load_contenders
from test_raw_ops import FORMATS, ON_CPU, STOOD_IN

ROOT = Path(__file__).parents[1]
N = K = 1024
TOKENS = [1, 17, 256]
REPEATS = {"least": 2, "most": 2, "relative_ci": 0.05, "confidence": 0.95}

# Operators that nothing stands in for elsewhere: (op, format, dtype, what it computes).
CUDA_ONLY = [
    ("torch_mm_tf32", "plain", "float32", "tf32"),
    ("torch_scaled_mm_token", "fp8", "bfloat16", "w8a8-fp8"),
    ("fp8_block_deep_gemm", "fp8-block", "bfloat16", "w8a8-fp8"),
    ("transformer_engine_delayed", "fp8-tensor", "bfloat16", "w8a8-fp8"),
    ("torchao_int4_weight_only", "int4-zeros", "bfloat16", "w4a16"),
    ("torchao_int8_weight_only", "int8-only", "bfloat16", "w8a16-int8"),
    ("torch_scaled_mm_nvfp4", "nvfp4", "bfloat16", "w4a4-fp4"),
]

# What must run, by the device's compute capability: (least, most, contenders and operators).
MUST_RUN = [
    (8.0, None, ["dense-fp32", "dense-tf32", "dense-fp16", "dense-bf16", "w4a16-gptq-marlin", "w4a16-awq-marlin"]),
    (8.0, None, ["awq_gemm of int4-zeros", "gptq_gemm of int4", "marlin_gptq of int4", "marlin_awq of int4-zeros"]),
    (8.0, 9.0, ["int8-token-channel", "int8_scaled_mm of int8"]),
    (8.9, None, ["fp8_scaled_mm_token of fp8", "torch_scaled_mm_tensor of fp8-tensor", "fp8-token-channel"]),
    (9.0, 9.0, ["w4a16-gptq-machete", "machete of int4", "machete_zeros of int4-zeros", "w4a8_scaled_mm of int4"]),
    (10.0, 10.3, ["nvfp4_scaled_mm of nvfp4"]),
]


@pytest.fixture(scope="module")
def capability():
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0])


@pytest.fixture(scope="module")
def results(capability, engine_python):
    """{name: points, or the words it died with}"""
    source = ROOT / "tests" / "bench" / "gpu_kernels.py"
    spec = importlib.util.spec_from_file_location("gpu_kernels", source)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    entries = load_contenders(ROOT / "config" / "kernels.yaml")
    entries = {name: entry for name, entry in entries.items() if entry["device"] != "cpu"}
    for op, format, dtype, computes in STOOD_IN + ON_CPU + CUDA_ONLY:
        entries[f"{op} of {format}"] = {
            "format": FORMATS[format], "layout": "compressed-tensors" if FORMATS[format] else "plain", "dtype": dtype,
            "through": {"op": op}, "computes": computes, "device": "any", "capability": {"least": None, "most": None},
        }  # fmt: skip
    jobs = [bench.contender_job(name, entry, N, K, TOKENS, REPEATS) for name, entry in entries.items()]
    found = bench.run_worker(engine_python, jobs)
    return {result["job"]["name"]: result.get("points", result.get("died")) for result in found}


@pytest.mark.gpu
def test_every_kernel_is_right_or_says_why_it_does_not_run(results):
    for name, points in results.items():
        assert not isinstance(points, str), f"{name} ended the process: {points}"
        for point in points:
            case = f"{name} at m = {point['m']}: {point['reason']}"
            assert point["status"] in ("ok", "unsupported"), case
            if point["status"] == "unsupported":
                assert point["reason"], case
                continue
            for row in point["rows"]:
                assert row["relative_error"] <= row["error_bound"], f"{case}: {row}"
                assert row["latency_s"] > 0, case


@pytest.mark.gpu
def test_kernels_that_this_device_has_do_run(results, capability):
    for least, most, names in MUST_RUN:
        if least <= capability and (most is None or capability <= most):
            for name in names:
                statuses = {point["m"]: (point["status"], point["reason"]) for point in results[name]}
                assert {status for status, _ in statuses.values()} == {"ok"}, f"{name}: {statuses}"
