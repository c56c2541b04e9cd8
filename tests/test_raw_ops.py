"""Operators without vLLM's layer: those of a CPU for real, those of CUDA against stand-ins that decode what they get.

A stand-in has the operator's own arguments (compared with vLLM's where it has the function) and reads the packed weight
as the layout is documented, in plain torch: a wrong order, zero point, scale or argument gives a wrong product.
"""

import pytest


def args(bits, type, strategy, **more):
    return {"num_bits": bits, "type": type, "strategy": strategy, "symmetric": True, "dynamic": False, **more}


FP4 = args(4, "float", "tensor_group", group_size=16)
FORMATS = {
    "plain": None,
    "int4": {"weights": args(4, "int", "group", group_size=128), "input_activations": None},
    "int4-zeros": {"weights": args(4, "int", "group", group_size=128, symmetric=False), "input_activations": None},
    "int8-group": {"weights": args(8, "int", "group", group_size=128), "input_activations": None},
    "int8-only": {"weights": args(8, "int", "channel"), "input_activations": None},
    "int8": {"weights": args(8, "int", "channel"), "input_activations": args(8, "int", "token", dynamic=True)},
    "int8-tensor": {"weights": args(8, "int", "tensor"), "input_activations": args(8, "int", "tensor")},
    "fp8": {"weights": args(8, "float", "channel"), "input_activations": args(8, "float", "token", dynamic=True)},
    "fp8-tensor": {"weights": args(8, "float", "tensor"), "input_activations": args(8, "float", "tensor")},
    "fp8-block": {
        "weights": args(8, "float", "block", block_structure=[128, 128]),
        "input_activations": args(8, "float", "group", group_size=128, dynamic=True),
    },
    "nvfp4": {"weights": FP4, "input_activations": {**FP4, "dynamic": "local"}},
}

# (op, format, dtype, what it computes)
ON_CPU = [
    ("torch_mm", "plain", "float32", "fp32"),
    ("torch_mm", "plain", "float16", "fp16"),
    ("torch_mm", "plain", "bfloat16", "bf16"),
    ("int8_scaled_mm", "int8", "bfloat16", "w8a8-int8"),
    ("int8_scaled_mm_tensor", "int8-tensor", "bfloat16", "w8a8-int8"),
    ("torch_int_mm", "int8", "bfloat16", "w8a8-int8"),
    ("torch_int_mm", "int8", "float16", "w8a8-int8"),
    ("torch_scaled_mm_tensor", "fp8-tensor", "bfloat16", "w8a8-fp8"),
    ("torch_int4_weight_only", "int4", "bfloat16", "w4a16"),
    ("torch_int4_weight_only", "int4-zeros", "bfloat16", "w4a16"),
    ("torch_int8_weight_only", "int8-only", "bfloat16", "w8a16-int8"),
]
STOOD_IN = [
    ("int8_scaled_mm", "int8", "bfloat16", "w8a8-int8"),
    ("int8_scaled_mm_tensor", "int8-tensor", "bfloat16", "w8a8-int8"),
    ("fp8_scaled_mm_token", "fp8", "bfloat16", "w8a8-fp8"),
    ("fp8_scaled_mm_tensor", "fp8-tensor", "float16", "w8a8-fp8"),
    ("fp8_block_scaled_mm", "fp8-block", "bfloat16", "w8a8-fp8"),
    ("gptq_gemm", "int4", "float16", "w4a16"),
    ("gptq_gemm", "int4-zeros", "float16", "w4a16"),
    ("gptq_gemm", "int8-group", "float16", "w8a16-int8"),
    ("awq_gemm", "int4-zeros", "float16", "w4a16"),
    ("awq_gemm", "int4", "float16", "w4a16"),
    ("awq_dequantize_mm", "int4-zeros", "float16", "w4a16"),
    ("marlin_gptq", "int4", "bfloat16", "w4a16"),
    ("marlin_gptq", "int8-group", "bfloat16", "w8a16-int8"),
    ("marlin_gptq", "int8-only", "bfloat16", "w8a16-int8"),
    ("marlin_awq", "int4-zeros", "float16", "w4a16"),
    ("machete", "int4", "bfloat16", "w4a16"),
    ("machete", "int8-group", "bfloat16", "w8a16-int8"),
    ("machete_zeros", "int4-zeros", "bfloat16", "w4a16"),
    ("w4a8_scaled_mm", "int4", "bfloat16", "w4a8-fp8"),
    ("nvfp4_scaled_mm", "nvfp4", "bfloat16", "w4a4-fp4"),
]
WRONG = [
    ("awq_gemm", "int4-zeros", "float16"),
    ("torch_mm_tf32", "plain", "float32"),
    ("torch_int4_weight_only", "int4", "float16"),
    ("torch_int4_weight_only", "int8", "bfloat16"),
    ("int8_scaled_mm", "fp8", "bfloat16"),
    ("int8_scaled_mm_tensor", "int8", "bfloat16"),
    ("torchao_int4_weight_only", "int4", "bfloat16"),
    ("no_such_op", "plain", "bfloat16"),
]

CODE = """
import inspect, torch
from types import SimpleNamespace
torch.cpu._init_amx()
from quantbench.gemm import raw_ops
from quantbench.gemm.ops import layouts, vllm_calls
from quantbench.gemm.harness import error_bound, relative_error
from quantbench.gemm.weights import make_activations, make_weight
cpu, N, K = torch.device("cpu"), 128, 512
FORMATS, ON_CPU, STOOD_IN, WRONG = given

def compare(make, format, dtype):
    weight = make_weight(N, K, FORMATS[format], dtype, cpu)
    op, errors = make(weight, dtype), []
    for m in (1, 33):
        x = make_activations(m, K, dtype, cpu)
        result = op(op.prepare(x))
        assert result.shape == (m, N) and result.dtype == dtype, (result.shape, result.dtype)
        errors.append(relative_error(result, x, weight, N, K))
    return {"computes": op.computes, "kernel": op.kernel, "includes": op.includes_quantization, "errors": errors,
            "bound": error_bound(op.computes, FORMATS[format])}

def build(name):
    return lambda weight, dtype: raw_ops.build(name, N, K, weight, dtype, "cpu")

def refusal(name, format, dtype):
    try:
        compare(build(name), format, dtype)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

with torch.inference_mode():
    real = [compare(build(op), format, getattr(torch, dtype)) for op, format, dtype, _ in ON_CPU]
    wrong = [refusal(op, format, getattr(torch, dtype)) for op, format, dtype in WRONG]
"""

STAND_INS = """
from vllm import _custom_ops
from vllm.model_executor.layers.quantization.utils import marlin_utils, nvfp4_utils, quant_utils, w8a8_utils
from quantbench.gemm.weights import FP4_VALUES, _fp4, _groups

def words(packed, bits, along):
    return quant_utils.unpack_quantized_values_into_int32(packed, SimpleNamespace(size_bits=bits), along)

def spread(values, rows):
    return values.repeat_interleave(rows // len(values), 0)

def times(a, weight):
    return (a.float() @ weight.float()).to(a.dtype)

def in_awq_order(packed):
    rows, n = len(packed), packed.shape[1] * 8
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7]).argsort()
    return quant_utils.unpack_cols(packed, 4, rows, n).view(rows, -1, 8)[:, :, order].reshape(rows, n)

def gptq_gemm(a, b_q_weight, b_gptq_qzeros, b_gptq_scales, use_exllama, use_v2_format, bit):
    codes, zeros = words(b_q_weight, bit, 0), words(b_gptq_qzeros, bit, 1) + (0 if use_v2_format else 1)
    assert use_exllama and b_gptq_scales.dtype == torch.float16
    return times(a, (codes - spread(zeros, len(codes))) * spread(b_gptq_scales, len(codes)))

def awq_dequantize(qweight, scales, zeros, split_k_iters, thx, thy):
    codes, zeros = in_awq_order(qweight), in_awq_order(zeros)
    return ((codes - spread(zeros, len(codes))) * spread(scales, len(codes))).to(scales.dtype)

def awq_gemm(input, qweight, scales, qzeros, split_k_iters):
    return times(input, awq_dequantize(qweight, scales, qzeros, 0, 0, 0))

def gptq_marlin_repack(b_q_weight, size_k, size_n, num_bits, is_a_8bit=False):
    return words(b_q_weight, num_bits, 0)

def awq_marlin_repack(b_q_weight, size_k, size_n, num_bits, is_a_8bit=False):
    return in_awq_order(b_q_weight)

def marlin_gemm(a, c, b_q_weight, b_bias, b_scales, a_scales, global_scale, b_zeros, workspace, b_q_type, size_m,
                size_n, size_k, use_atomic_add=False, use_fp32_reduce=False, is_zp_float=False):
    assert (size_m, size_n, size_k) == (len(a), N, K)
    groups = len(b_scales)
    size = K // groups if groups > 1 else -1
    places = torch.arange(groups * N).view(groups, N)
    scales = torch.empty_like(b_scales).view(-1)
    scales[marlin_utils.marlin_permute_scales(places, K, N, size).view(-1)] = b_scales.view(-1)
    if b_q_type.has_bias():
        assert b_zeros.numel() == 0
        zeros = torch.full((groups, N), b_q_type.bias)
    else:
        # Where each column went: two digits of 4 bits, packed as zero points are.
        moved = lambda digit: words(marlin_utils.marlin_zero_points(digit.int(), groups, N, 4), 4, 1).long()
        columns = moved(places % N % 16) + 16 * moved(places % N // 16)
        zeros = torch.zeros_like(columns).scatter_(1, columns, words(b_zeros, 4, 1).long())
    return times(a, (b_q_weight - spread(zeros, K)) * spread(scales.view(groups, N), K))

def machete_prepack_B(b_q_weight, a_type, b_type, group_scales_type):
    assert b_q_weight.stride(0) == 1, "not column-major"
    return b_q_weight

def machete_mm(a, b_q, b_type, out_type=None, b_group_scales=None, b_group_zeros=None, b_group_size=None,
               b_channel_scales=None, a_token_scales=None, schedule=None):
    codes = words(b_q, b_type.size_bits, 0) - (b_type.bias if b_type.has_bias() else 0)
    assert b_group_size == K // len(b_group_scales)
    weight = codes * spread(b_group_scales, K).float()
    return times(a, weight if b_group_zeros is None else weight + spread(b_group_zeros, K))

def cutlass_scaled_mm(a, b, scale_a, scale_b, out_dtype, bias=None):
    assert b.stride(0) == 1, "not column-major"
    if scale_b.shape == (K // 128, N // 128):
        assert scale_a.stride(0) == 1, "activations' scales are not column-major"
        scale_a, scale_b = scale_a.repeat_interleave(128, 1), spread(scale_b, K).repeat_interleave(128, 1)
        return ((a.float() * scale_a) @ (b.float() * scale_b)).to(out_dtype)
    assert scale_a.numel() in (1, len(a)) and scale_b.numel() in (1, N)
    return ((a.float() @ b.float()) * scale_a.view(-1, 1) * scale_b.view(1, -1)).to(out_dtype)

def scaled_fp8_quant(input, use_per_token_if_dynamic=False):
    return layouts.quantize(input, 448.0, torch.float8_e4m3fn, per_token=use_per_token_if_dynamic)

def cutlass_w4a8_mm(a, b_q, b_group_scales, b_group_size, b_channel_scales, a_token_scales, out_type=None,
                    maybe_schedule=None):
    codes = words(b_q, 4, 0)
    weight = torch.where(codes > 7, codes - 16, codes) * spread(b_group_scales.float(), K)
    return (a.float() @ weight * a_token_scales * b_channel_scales.view(1, -1)).to(torch.bfloat16)

def scaled_fp4_quant(input, input_global_scale, is_sf_swizzled_layout=True, backend="none", padded_n=None):
    groups = _groups(input.float(), 16)
    scales = (groups.abs().amax(-1) / 6 * input_global_scale).to(torch.float8_e4m3fn)
    return _fp4(groups * input_global_scale / scales.float().unsqueeze(-1))[1], scales

def numbers(packed, scales):
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(1).long()
    signed = torch.tensor((*FP4_VALUES, *(-value for value in FP4_VALUES)))[codes]
    return signed * scales.float().repeat_interleave(16, 1)

def cutlass_scaled_fp4_mm(a, b, block_scale_a, block_scale_b, alpha, out_dtype):
    return (numbers(a, block_scale_a) @ numbers(b, block_scale_b).T * alpha).to(out_dtype)

NEW = {f.__name__: f for f in (gptq_gemm, awq_dequantize, awq_gemm, gptq_marlin_repack, awq_marlin_repack, marlin_gemm,
       machete_prepack_B, machete_mm, cutlass_scaled_mm, cutlass_w4a8_mm, scaled_fp4_quant, cutlass_scaled_fp4_mm)}
NEW["gptq_shuffle"] = lambda q_weight, bit: None
MORE = {"scaled_fp8_quant": scaled_fp8_quant, "cutlass_encode_and_reorder_int4b": lambda b: b,
        "cutlass_pack_scale_fp8": lambda scales: scales}

# vLLM 0.25.1 takes act-order's arguments too.
OLD = {
    "gptq_gemm": lambda a, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx, use_exllama, use_v2_format, bit:
        gptq_gemm(a, b_q_weight, b_gptq_qzeros, b_gptq_scales, use_exllama, use_v2_format, bit),
    "gptq_shuffle": lambda q_weight, q_perm, bit: None,
    "gptq_marlin_repack": lambda b_q_weight, perm, size_k, size_n, num_bits, is_a_8bit=False:
        gptq_marlin_repack(b_q_weight, size_k, size_n, num_bits),
    "marlin_gemm": lambda a, c, b_q_weight, b_bias, b_scales, a_scales, global_scale, b_zeros, g_idx, perm, workspace,
        b_q_type, size_m, size_n, size_k, is_k_full=True, use_atomic_add=False, use_fp32_reduce=False,
        is_zp_float=False:
        marlin_gemm(a, c, b_q_weight, b_bias, b_scales, a_scales, global_scale, b_zeros, workspace, b_q_type, size_m,
                    size_n, size_k, use_atomic_add, use_fp32_reduce, is_zp_float),
}

def names(function):
    return list(inspect.signature(function).parameters)

strange = [name for name, function in NEW.items()
           if hasattr(_custom_ops, name) and names(getattr(_custom_ops, name)) not in
           [names(function), names(OLD.get(name, function))]]

def stood_in(name):
    family = raw_ops.OPS[name][0]
    return lambda weight, dtype: family(N, K, weight, dtype, cpu)

marlin_utils.marlin_make_workspace_new = lambda device, blocks: None
nvfp4_utils.cutlass_fp4_supported = w8a8_utils.cutlass_block_fp8_supported = lambda: True
nvfp4_utils.swizzle_blockscale = lambda scales: scales

def scales_to_fp8(quantize, scales):
    fp8, channel = quantize(scales)
    return (fp8.float() / 8).to(torch.float8_e4m3fn), channel * 8

quant_utils.convert_bf16_scales_to_fp8 = scales_to_fp8
with torch.inference_mode():
    releases = {}
    for release, ops in {"new": {**NEW, **MORE}, "old": {**NEW, **MORE, **OLD}}.items():
        vllm_calls.vllm_ops = lambda ops=ops: SimpleNamespace(**ops)
        releases[release] = [compare(stood_in(op), format, getattr(torch, dtype)) for op, format, dtype, _ in STOOD_IN
                             if release == "new" or op.startswith(("gptq", "marlin"))]
answer = {"real": real, "wrong": wrong, "strange": strange, **releases}
"""


@pytest.fixture(scope="module")
def found(ask_engine):
    return ask_engine(CODE + STAND_INS, given=[FORMATS, ON_CPU, STOOD_IN, WRONG])


def assert_right(cases, results):
    assert len(cases) == len(results)
    for (op, format, dtype, computes), result in zip(cases, results, strict=True):
        case = f"{op} of {format} in {dtype} by {result['kernel']}"
        assert result["computes"] == computes, case
        assert max(result["errors"]) <= result["bound"], f"{case}: {result['errors']}"
        # Activations in 8 or 4 bits were quantized before the call; others are as they were.
        assert result["includes"] is (False if "a8" in computes or "a4" in computes else None), case


@pytest.mark.engine
def test_operators_of_a_cpu_compute_the_weights_integers(found):
    assert_right(ON_CPU, found["real"])


@pytest.mark.engine
def test_operators_of_cuda_are_given_the_weights_integers_as_their_layout_has_them(found):
    assert_right(STOOD_IN, found["new"])
    assert found["strange"] == [], "the stand-ins have other arguments than vLLM's functions"


@pytest.mark.engine
def test_the_older_release_is_given_its_further_arguments(found):
    cases = [case for case in STOOD_IN if case[0].startswith(("gptq", "marlin"))]
    assert_right(cases, found["old"])


@pytest.mark.engine
def test_what_cannot_be_is_said_in_a_sentence(found):
    cuda, tf32, fp16, int8, fp8, channel, torchao, unknown = found["wrong"]
    assert cuda == "NotImplementedError: awq_gemm runs on CUDA devices only"
    assert tf32 == "NotImplementedError: torch_mm_tf32 runs on CUDA devices only"
    assert fp16 == "NotImplementedError: torch_int4_weight_only multiplies bfloat16, not float16"
    assert int8 == "ValueError: this product is for 4-bit weights"
    assert fp8 == "ValueError: this product is for int8 weights"
    assert channel == "ValueError: this product is for one scale per tensor"
    # Where somebody has installed torchao it may well run.
    assert torchao is None or torchao.startswith("ImportError: torchao is not installed in the engine's environment")
    assert unknown.startswith("UserError: 'no_such_op' is no op of gemm/raw_ops.py: choose from torch_mm, ")
