"""Matrix products: the order they are measured in, and with an engine environment the products themselves.

What a CPU computes hangs on its AMX: with it vLLM multiplies 4-bit weights with 8-bit activations.
"""

import json
from pathlib import Path

import measure_gemm
import pytest
from quantbench.contenders import contender_identity, load_contenders
from quantbench.gpus import load_gpus
from quantbench.keys import canonical_json
from quantbench.points import expand
from quantbench.schemes import compressed_tensors_config
from quantbench.store import Store

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "workflow" / "scripts"
GPUS = load_gpus(ROOT / "config" / "gpus.yaml")
REPEATS = {"least": 3, "most": 4, "relative_ci": 0.05, "confidence": 0.95}
LISTED = {name: contender_identity(spec) for name, spec in load_contenders(ROOT / "config" / "kernels.yaml").items()}
AMX = "amx_tile" in Path("/proc/cpuinfo").read_text()


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


def job(formats=FORMATS, tokens=(1, 16), gpu="cpu", n=256, k=128, contenders=(), products=("linear",)):
    """A job of every format through the engine, and of contenders by name."""
    groups = []

    def add(format, contender, dtype, **more):
        shape = {"n": n, "k": k, "dtype": dtype, "repeats": REPEATS}
        params = [shape | {"m": m, "product": product} for product in products for m in tokens]
        group = {"stage": "gemm", "protocol": 2, "versions": {}, "format": format, "contender": contender}
        groups.append(group | {"params": params} | more)

    for name in formats:
        config = compressed_tensors_config(FORMATS[name], ["re:.*q_proj"], []) if FORMATS[name] else None
        add(FORMATS[name], None, "bfloat16", **({"quantization_config": config} if config else {}))
    for name in contenders:
        add(LISTED[name]["format"], LISTED[name], LISTED[name]["dtype"] or "bfloat16")
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


@pytest.fixture
def run_script(engine_forks, tmp_path):
    def run(job):
        output = tmp_path / "pointer.json"
        options = [f"--job={canonical_json(job)}", f"--store={tmp_path / 'store'}", f"--output={output}"]
        return engine_forks.run(SCRIPTS / "measure_gemm.py", *options), output

    return run


CONTENDERS = ("w4a16-gptq", "w4a16-awq", "w4a8-int8-cpu", "w4a16-cpu", "fp8-block-triton", "w4a16-gptq-marlin")


@pytest.mark.engine
def test_every_format_and_contender_is_measured_or_says_why_not(run_script, tmp_path):
    asked = job(contenders=CONTENDERS)
    result, output = run_script(asked)
    assert result.returncode == 0, result.stderr[-3000:]
    store, points = Store(tmp_path / "store"), expand(asked)
    assert json.loads(output.read_text()) == {"points": sorted(point["key"] for point in points)}
    names = {canonical_json([FORMATS[name], None]): name for name in FORMATS}
    names |= {canonical_json([LISTED[name]["format"], LISTED[name]]): name for name in CONTENDERS}
    quiet = "w4a8" if AMX else "w4a16"
    computes = {"bf16": "bf16", "int4": quiet, "int4-zeros": quiet, "int8": "w8a8-int8", "w4a16-gptq": "w4a16",
                "w4a16-awq": "w4a16", "w4a16-cpu": "w4a16"}  # fmt: skip
    if AMX:
        computes["w4a8-int8-cpu"] = "w4a8"
    for point in points:
        name = names[canonical_json([point["format"], point["contender"]])]
        record = store.read_point(point["key"])
        if name in computes:
            assert record["status"] == "ok", record["reason"]
            check_rows(record["rows"], computes[name])
        elif name in CONTENDERS:
            assert (record["status"], record["rows"]) == ("unsupported", [])
            assert record["reason"] == {
                "w4a8-int8-cpu": "CPUWNA16LinearKernel computes w4a16 here, not w4a8",
                "w4a16-gptq-marlin": "vLLM has no marlin kernel for this layer here: it would run CPUWNA16LinearKernel",
            }.get(name, record["reason"])
        elif name == "nvfp4":
            assert record["status"] == "unsupported" and record["rows"] == []
            assert "NVFP4" in record["reason"]
        else:
            # Which FP8 a CPU runs hangs on its AMX; whatever runs has to be right.
            assert record["status"] in ("ok", "unsupported")
    [run] = store.read_runs().values()
    assert run["stage"] == "measure_gemm" and run["points_measured"] == len(points) and run["ended_at"]

    again, _ = run_script(asked)
    assert again.returncode == 0 and len(store.read_runs()) == 1, "a second run has nothing to measure"


def check_rows(rows, computes):
    """Cold caches until narrow enough, hot ones the least number of times; on a CPU there are no graphs and no clocks."""
    assert [row["repeat"] for row in rows if row["cache"] == "hot"] == [0, 1, 2]
    assert [row["repeat"] for row in rows if row["cache"] == "cold"] in ([0, 1, 2], [0, 1, 2, 3])
    for row in rows:
        assert (row["launch"], row["computes"], row["sm_clock_hz"]) == ("eager", computes, None)
        assert row["includes_quantization"] is (True if computes in ("w8a8-int8", "w4a8") else None)
        assert 0 < row["relative_error"] < row["error_bound"] <= 0.035
        # A microsecond to a tenth of a second for 65 000 to a million products.
        assert 1e-6 < row["latency_s"] < 0.1


@pytest.mark.engine
def test_the_wrong_device_is_refused_by_name(run_script):
    result, output = run_script(job(formats=["bf16"], gpu="h200"))
    assert result.returncode == 2
    assert "error: this machine has" in result.stderr and "NVIDIA H200" in result.stderr
    assert "Traceback" not in result.stderr and not output.exists()


# Each answers a question about the harness (`h`), in one process: importing vLLM takes longer than any of them. `run`
# is the harness's measure for a format or a contender by name; `answer` is what the test below it looks at.
SNIPPETS = {
    "off by one": """
# One zero point too many: each number of the last group is one step of its grid off.
def off_by_one(*arguments, make=h.make_weight):
    weight = make(*arguments)
    weight.tensors["weight_zero_point"] += 1
    return weight
h.make_weight = off_by_one
answer = run("int4-zeros")
""",
    "failures": """
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
          RuntimeError("size_k = 100 is not divisible by tile_size"),
          RuntimeError("illegal memory access"), ValueError("odd")]
answer = [fail(error) for error in errors]
""",
    "shapes": """
answer = [run("int4", k=192)[0], run("fp8-block", n=192)[0], run("w4a16-awq", n=36)[0]]
""",
    "forced": """
from vllm.config import get_current_vllm_config
seen = []
def spy(*arguments, build=h.build_layer):
    seen.append([os.environ.get("VLLM_CPU_INT4_W4A8"), get_current_vllm_config().kernel_config.linear_backend])
    return build(*arguments)
h.build_layer = spy
for name in ("w4a16-cpu", "w4a16-gptq-marlin", "bf16"):
    run(name)
answer = [now for now, before in zip(seen, [None, *seen]) if now != before]
""",
    "relu": """
LINEAR = h.relative_error
class Op:
    kernel, computes, includes_quantization = "torch.mm", "bf16", None
    def __init__(self, weight): self.weight = weight.tensors["weight"]
    def prepare(self, x): return x
    def __call__(self, x): return x @ self.weight.T
class Quantized(Op):
    includes_quantization = False
made, errors = [], []
def build(op, n, k, weight, dtype, device):
    made.append((Quantized if op == "torch_mm_tf32" else Op)(weight))
    return made[-1]
h.raw_ops = types.SimpleNamespace(build=build)
def relative_error(result, x, *rest):
    errors.append([float(x.min()), LINEAR(result, x, *rest)])
    return errors[-1][1]
h.relative_error = relative_error
found = [run(name, product="relu_linear")[0] for name in ("bf16", "dense-bf16", "dense-tf32")]
addresses = {op.weight.data_ptr() for op in made[:-1]}
answer = [[status for status, _, _ in found], found[2][1], errors, len(addresses), len(made) - 1]
""",
    "stopwatch": """
watch = harness.stopwatch
watch.cache_bytes, before = 50 << 20, watch.cache_bytes
copies = [watch._copies_needed(calls, weight_bytes) for calls, weight_bytes in ((100, 8 << 20), (3, 8 << 20), (1, 1 << 31))]
watch.cache_bytes = before
watch._at_rest, before = watch._at_rest | {"throttle_reasons": ["software power cap", "hardware slowdown"]}, watch._at_rest
throttled = run("bf16")[0]
watch._at_rest = before
answer = [copies, throttled]
""",
    "operators": """
answer = sorted({c["through"]["op"] for c in LISTED.values() if "op" in c["through"]} - set(h.raw_ops.OPS))
""",
    "rounding": """
answer = {}
for name, format in (FORMATS | {"mxfp4": LISTED["mxfp4"]["format"]}).items():
    generator = torch.Generator("cpu").manual_seed(0)
    values = torch.randn(256, 256, generator=generator, dtype=torch.float32)
    weight = make_weight(256, 256, format, torch.bfloat16, torch.device("cpu"))
    answer[name] = float((weight.dequantize(slice(None)) - values.double()).square().mean().sqrt())
""",
    "layouts": """
from vllm.model_executor.layers.quantization.utils.nvfp4_emulation_utils import break_fp4_bytes, dequantize_to_dtype
def made(format, *layout):
    return make_weight(32, 128, format, torch.bfloat16, torch.device("cpu"), *layout)
def off(read, weight):
    return float((read.double() - weight.dequantize(slice(None))).abs().max())
weight = made(FORMATS["nvfp4"])
packed, scales, divisor = (weight.tensors["weight_" + name] for name in ("packed", "scale", "global_scale"))
nvfp4 = off(dequantize_to_dtype(packed, scales, 1 / divisor, torch.float32, 16, swizzle=False), weight)
weight = made(LISTED["mxfp4"]["format"])
values = break_fp4_bytes(weight.tensors["weight_packed"], torch.float32).view(32, 4, 32)
scales = weight.tensors["weight_scale"].view(torch.float8_e8m0fnu).float()
mxfp4 = off((values * scales.unsqueeze(-1)).view(32, 128), weight)
zeros = made(FORMATS["int4"], "gptq").tensors["qzeros"]
answer = {"nvfp4": nvfp4, "mxfp4": mxfp4, "zeros": [list(zeros.shape), sorted(set(zeros.flatten().tolist()))]}
""",
}

RUNNER = """
import importlib, os, torch, types
from quantbench.gemm import harness as h
from quantbench.gemm.weights import make_weight
FORMATS, CONFIGS, LISTED = given["formats"], given["configs"], given["listed"]
REPEATS = {"least": 2, "most": 2, "relative_ci": 0.05, "confidence": 0.95}
def run(name, tokens=(4,), product="linear", n=64, k=256):
    contender = LISTED.get(name)
    format = contender["format"] if contender else FORMATS[name]
    dtype = (contender or {}).get("dtype") or "bfloat16"
    return [(status, reason, rows) for _, status, reason, rows, _ in harness.measure(
        n, k, list(tokens), dtype, product, format, CONFIGS.get(name), contender, REPEATS)]
answers = {}
with h.Harness("cpu") as harness:
    for name, code in given["snippets"].items():
        known = {**globals()}
        exec(code, known)
        answers[name] = known["answer"]
        # Whatever a snippet changed in the module is as it was.
        importlib.reload(h)
answer = answers
"""


@pytest.fixture(scope="module")
def answers(ask_engine):
    configs = {name: compressed_tensors_config(format, ["Linear"], []) for name, format in FORMATS.items() if format}
    return ask_engine(RUNNER, given={"formats": FORMATS, "configs": configs, "listed": LISTED, "snippets": SNIPPETS})


@pytest.mark.engine
def test_a_wrong_result_is_not_timed(answers):
    [[status, reason, rows]] = answers["off by one"]
    assert status == "invalid" and rows == []
    assert "off by" in reason and "not timed" in reason


@pytest.mark.engine
def test_failures_that_are_results_and_failures_that_are_crashes(answers):
    out_of_memory, no_kernel, too_old, shape, illegal, odd = answers["failures"]
    assert out_of_memory == [["out_of_memory", "CUDA out of memory. Tried", []]] * 2
    assert no_kernel == [["unsupported", "Failed to find a kernel that can implement the X linear layer.", []]] * 2
    assert [status for status, _, _ in too_old] == ["unsupported"] * 2
    assert shape == [["unsupported", "size_k = 100 is not divisible by tile_size", []]] * 2
    assert illegal == ["RuntimeError: illegal memory access"]
    assert odd == ["ValueError: odd"]


@pytest.mark.engine
def test_a_shape_that_a_format_or_a_kernel_cannot_hold_is_a_row_with_the_reason(answers):
    groups, blocks, words = answers["shapes"]
    assert groups == ["unsupported", "groups of 128 do not divide 192 input features", []]
    assert blocks == ["unsupported", "blocks of 128 by 128 do not divide 192 by 256", []]
    assert words[0] == "unsupported" and "8 output features to a word, 36" in words[1]


@pytest.mark.engine
def test_what_a_contender_sets_is_gone_when_its_layer_is(answers):
    assert answers["forced"] == [["0", "auto"], [None, "marlin"], [None, "auto"]]


@pytest.mark.engine
def test_relu_linear_is_relu_then_linear_and_a_call_on_quantized_activations_has_none(answers):
    statuses, reason, errors, addresses, copies = answers["relu"]
    assert statuses == ["ok", "ok", "unsupported"]
    assert reason == "torch.mm takes activations that were quantized before the ReLU"
    # Compared with the product of activations of which none is negative; without the ReLU half of them would be off.
    assert [least for least, _ in errors] == [0.0, 0.0] and max(error for _, error in errors) < 0.01
    assert addresses == copies > 1, "each copy has memory of its own, or a cold cache is a hot one"


@pytest.mark.engine
def test_calls_rotate_through_four_times_the_cache_and_a_throttled_repeat_is_invalid(answers):
    copies, (status, _, rows) = answers["stopwatch"]
    # 4 x 50 MiB in copies of 8 MiB are 25; never more than there are calls; 2 GiB are no cache's in one copy.
    assert copies == [25, 3, 1]
    assert status == "ok" and [row["repeat"] for row in rows] == [0, 1, 0, 1], "it ends at `most`, all invalid or not"
    assert {(row["status"], row["reason"]) for row in rows} == {("invalid", "throttled: hardware slowdown")}


@pytest.mark.engine
def test_every_operator_of_the_list_exists(answers):
    assert answers["operators"] == []


@pytest.mark.engine
def test_weights_are_rounded_as_finely_as_their_format_allows(answers):
    # Root mean square error of a unit Gaussian, from the step of each grid:
    #   bf16         2^-8 of the binade, about 2^-9 / sqrt(3) of the value: 0.0016
    #   int4         the largest of 128 is 2.7 sigma; steps of 2.7 / 7.5 = 0.36, over sqrt(12): 0.104
    #   int4-zeros   a range of 5.2 sigma in 15 steps: 0.35 / sqrt(12) = 0.10
    #   int8         the largest of 256 is 2.9 sigma; 2.9 / 127 / sqrt(12) = 0.0066
    #   fp8          3 bits of mantissa: about 0.026 of the value
    #   nvfp4        1 bit of mantissa and 16 to a group: about 0.09
    #   mxfp4        the same, with a power of two for 32, up to twice too coarse: about 0.12
    expected = {"bf16": 0.0016, "int4": 0.104, "int4-zeros": 0.10, "int8": 0.0066, "fp8-channel": 0.026,
                "fp8-block": 0.026, "nvfp4": 0.09, "mxfp4": 0.12}  # fmt: skip
    assert answers["rounding"] == {name: pytest.approx(value, rel=0.2) for name, value in expected.items()}


@pytest.mark.engine
def test_layouts_that_no_cpu_kernel_takes_are_as_vllm_reads_them(answers):
    # vLLM's own plain-torch reader stands in for the kernels, and torch's type for MX scales.
    assert answers["layouts"]["nvfp4"] < 1e-5 and answers["layouts"]["mxfp4"] < 1e-5
    # GPTQ stores zero points less one: eight times 8 - 1 to a word, for 128 features in one group.
    assert answers["layouts"]["zeros"] == [[1, 4], [0x77777777]]
