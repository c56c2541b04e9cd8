"""ReLU-then-linear as torchao defines it: what its roofline expects of quantizing the activations on the fly.

Definition: pytorch/ao, benchmarks/float8/float8_inference_roofline.py with --enable_fusion_modeling True, and
torchao/testing/training/roofline_utils.py, both at 36027d82 (2026-08-21).

observed   time of relu(x) @ w.T in bf16 over its time with x quantized on the fly to the recipe's type and w beforehand.
           Both go through torch.compile; a time is the sum of GPU kernel times (torch.profiler, 5 calls after 2), so
           launch gaps do not count and nothing flushes L2.
expected   (bf16 gemm + bf16 ReLU) / (quantized gemm + ReLU that writes the quantized activations), as
           `relu_linear_times` sums it up.

torchao writes M x K x N: activations [m, k], weight [n, k]. Pure; SI units.
"""

from quantbench.errors import UserError

# What torchao reckons can be achieved of the data sheet (roofline_utils.py, H100 and B200), and the least time of any
# kernel. Measured ceilings need no such share: pass shares of 1.
BANDWIDTH_SHARE = 0.92
RATE_SHARE = 0.78
LEAST_KERNEL_S = 2e-6

# rate         which of a device's rates the product runs at
# bytes        of one quantized element
# passes       bytes per element of each kernel that turns bf16 activations into quantized ones
# block        elements along k that share one 1-byte scale (read by the gemm, written with the activations), or None
# row_bytes    of scales per row of the activations
RECIPES = {
    # read for the absolute maximum; read again and write
    "tensorwise": {"rate": "fp8", "bytes": 1, "passes": (2, 2 + 1), "block": None, "row_bytes": 0},
    "rowwise": {"rate": "fp8", "bytes": 1, "passes": (2 + 1,), "block": None, "row_bytes": 4},
    "mxfp8": {"rate": "fp8", "bytes": 1, "passes": (2 + 1,), "block": 32, "row_bytes": 0},
    "mxfp4": {"rate": "fp4", "bytes": 0.5, "passes": (2 + 0.5,), "block": 32, "row_bytes": 0},
    # global scale found on the fly: torchao counts both passes as one kernel
    "nvfp4": {"rate": "fp4", "bytes": 0.5, "passes": (2 + 2 + 0.5,), "block": 16, "row_bytes": 0},
    "nvfp4_static": {"rate": "fp4", "bytes": 0.5, "passes": (2 + 0.5,), "block": 16, "row_bytes": 0},
    # Not torchao's: INT8 per token moves as many bytes as FP8 per row, and multiplies at the int8 rate.
    "int8_rowwise": {"rate": "int8", "bytes": 1, "passes": (2 + 1,), "block": None, "row_bytes": 4},
}


def expected_speedup(m, k, n, recipe, bandwidth_bytes_per_s, rates, **shares):
    """torchao's expected speedup of ReLU-then-linear over bf16: the sum of `relu_linear_times`, as one ratio.

        (bf16_gemm_s + bf16_relu_s) / (gemm_s + relu_quantize_s)

    None when the device has no rate for bf16 or for the recipe. Arguments and errors as `relu_linear_times`.
    """
    times = relu_linear_times(m, k, n, recipe, bandwidth_bytes_per_s, rates, **shares)
    if times is None:
        return None
    return (times["bf16_gemm_s"] + times["bf16_relu_s"]) / (times["gemm_s"] + times["relu_quantize_s"])


def relu_linear_times(
    m,
    k,
    n,
    recipe,
    bandwidth_bytes_per_s,
    rates,
    bandwidth_share=BANDWIDTH_SHARE,
    rate_share=RATE_SHARE,
    least_kernel_s=LEAST_KERNEL_S,
):
    """The four least times that torchao's roofline adds up: {"bf16_gemm_s", "bf16_relu_s", "gemm_s", "relu_quantize_s"}.

    Every kernel takes the longest of its arithmetic, its memory traffic and `least_kernel_s`:

        bf16_gemm_s      2 m k n / bf16 rate         2 (m k + k n) + 2 m n bytes
        bf16_relu_s                                  2 m k + 2 m k bytes
        gemm_s           2 m k n / recipe's rate     b (m k + k n + scales) + 2 m n bytes, b bytes per quantized element,
                                                     scales = floor((m k + k n) / block)
        relu_quantize_s                              m k (2 + b) + scales: ReLU fused into the kernel that quantizes;
                                                     a kernel more, or a read more, where a maximum is sought first

    (torchao counts the scales that an FP4 gemm reads at half a byte each, and so does this.)

    recipe    a key of RECIPES
    rates     {dtype: operations per second}: needs bf16 and the recipe's rate; None there gives None
    *_share   of the ceilings, that torchao takes for achievable; 1 for ceilings that were measured

    Raises UserError for a recipe that is not in RECIPES.
    """
    if recipe not in RECIPES:
        raise UserError(f"recipe {recipe!r} is none of {', '.join(RECIPES)}")
    spec = RECIPES[recipe]
    if rates.get("bf16") is None or rates.get(spec["rate"]) is None or bandwidth_bytes_per_s is None:
        return None
    bandwidth = bandwidth_bytes_per_s * bandwidth_share

    def kernel_s(traffic_bytes, arithmetic_s=0.0):
        return max(arithmetic_s, traffic_bytes / bandwidth, least_kernel_s)

    def arithmetic_s(rate):
        return 2 * m * k * n / (rates[rate] * rate_share)

    operands, outputs = m * k + k * n, 2 * m * n
    block = spec["block"]
    read_scales = operands // block if block else 0
    written_scales = m * (k // block) if block else m * spec["row_bytes"]
    *searches, quantize = spec["passes"]
    return {
        "bf16_gemm_s": kernel_s(2 * operands + outputs, arithmetic_s("bf16")),
        "bf16_relu_s": kernel_s(4 * m * k),
        "gemm_s": kernel_s(spec["bytes"] * (operands + read_scales) + outputs, arithmetic_s(spec["rate"])),
        "relu_quantize_s": sum(kernel_s(each * m * k) for each in searches)
        + kernel_s(quantize * m * k + written_scales),
    }


def recipe_of(format):
    """The recipe whose sum fits a scheme's format ({"weights", "input_activations"}); None where there is none.

    Only formats that quantize activations on the fly have one: per row or per tensor FP8, per token INT8, MXFP8, MXFP4
    and NVFP4. NVFP4's global scale is known beforehand, as vLLM serves it: nvfp4_static. None for weight-only formats,
    for scales fixed by calibration and for 128-blocks, of which torchao's roofline knows nothing.
    """
    activations = (format or {}).get("input_activations")
    # Four-bit weights under 8-bit activations move other bytes than any recipe counts.
    if not activations or format["weights"]["num_bits"] != activations["num_bits"]:
        return None
    bits, kind, strategy = activations["num_bits"], activations.get("type"), activations.get("strategy")
    group = activations.get("group_size")
    if kind == "float" and bits == 4:
        return {"tensor_group": "nvfp4_static", "group": "mxfp4" if group == 32 else None}.get(strategy)
    if kind == "float" and bits == 8:
        dynamic = bool(activations.get("dynamic"))
        mx = "mxfp8" if group == 32 else None
        return {"token": "rowwise", "tensor": "tensorwise" if dynamic else None, "group": mx}.get(strategy)
    if kind == "int" and bits == 8 and strategy == "token":
        return "int8_rowwise"
    return None
