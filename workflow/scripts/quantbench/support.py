"""Which scheme runs on which device, and how, by rules that are known before anything runs: they decide what a study skips.
Pure. support_table.py sets them beside what vLLM's chooser answers and what an engine ran.
"""

from typing import NamedTuple

LEVELS = ("native", "emulated", "unsupported", "unknown")


class Support(NamedTuple):
    """What a device does with a scheme.

    level     native (computes what the scheme promises), emulated (other arithmetic: weight-only, widened, simulated),
              unsupported, or unknown
    kernel    kernel class that vLLM takes; None where the rules name none
    computes  w4a16, w8a8-fp8, ...; None where that is not known
    reason    one sentence; None for what is native
    """

    level: str
    kernel: str | None
    computes: str | None
    reason: str | None


# --- rules -----------------------------------------------------------------------------------------------------------

# The pinned engine is built for CUDA 13, which dropped Volta and older (CUDA Toolkit 13.0 release notes, "Deprecated
# Architectures"); compute capability 7.5 is also the least that vLLM's quantized schemes ask for.
LEAST_CAPABILITY = "7.5"
# vLLM's CudaPlatform.check_if_supports_dtype.
LEAST_BFLOAT16 = "8.0"

FLOAT_OF_DTYPE = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

NO_FP8 = (
    "needs compute capability 8.9 for native FP8 arithmetic; the device has {has}: weights stay FP8 and are widened to "
    "16 bits ({by})"
)
NO_FP8_BLOCKS = (
    "needs compute capability 9.0 for vLLM's kernels for FP8 in blocks; the device has {has}: weights stay FP8 and are "
    "widened to 16 bits ({by})"
)
NO_FP4 = "needs compute capability 10.0 for native FP4 arithmetic; the device has {has}: weights are widened ({by})"
NO_MXFP8 = (
    "needs compute capability 10.0 for native MXFP8 arithmetic; the device has {has}: weights stay FP8 and are widened "
    "({by})"
)
NO_INT8 = (
    "vLLM's INT8 kernel (CUTLASS) is built for compute capability 7.5 to 9.0; the device has {has}, where its first "
    "product raises 'Int8 not supported on SM{sm}'"
)
HOPPER_ONLY = (
    "vLLM has a kernel for 4-bit weights with FP8 activations for compute capability 9.0 only; the device has {has}"
)
LEAST_MXFP4 = "vLLM's MXFP4 scheme needs compute capability 8.0; the device has {has}"


class Rule(NamedTuple):
    """From compute capability `least` on: this kernel, which computes this; no kernel: unsupported."""

    least: str
    kernel: str | None
    computes: str | None
    reason: str | None = None


# What vLLM 0.32 takes on CUDA with the packages that envs/engine-cuda.txt pins (FlashInfer, Humming, the wheel's own
# DeepGEMM), for everyday shapes. Least capabilities: get_min_capability of each scheme in
# vllm/model_executor/layers/quantization/compressed_tensors/schemes. Order of kernels: _POSSIBLE_*_KERNELS in
# vllm/model_executor/kernels/linear/__init__.py; on 9.0 Humming goes before Marlin (utils/humming/priority.py). What
# the compiled kernels take: csrc/libtorch_stable/quantization/{w8a8/cutlass/scaled_mm_entry.cu,
# w8a8/cutlass/c3x/scaled_mm_helper.hpp, fp4/nvfp4_scaled_mm_entry.cu}. A kernel of which vLLM does not tell what it
# computes (Humming) has None there, and a reason where it cannot be native.
RULES = {
    "w4a16": (
        Rule("7.5", "MarlinLinearKernel", "w4a16"),
        Rule("9.0", "MacheteLinearKernel", "w4a16"),
        Rule("10.0", "MarlinLinearKernel", "w4a16"),
    ),
    # Machete takes groups of 64 and 128 and whole channels, Marlin groups of 32, too.
    "w4a16-group32": (
        Rule("7.5", "MarlinLinearKernel", "w4a16"),
        Rule("9.0", "HummingLinearKernel", "w4a16"),
        Rule("10.0", "MarlinLinearKernel", "w4a16"),
    ),
    "w8a16-int8": (
        Rule("7.5", "MarlinLinearKernel", "w8a16-int8"),
        Rule("9.0", "MacheteLinearKernel", "w8a16-int8"),
        Rule("10.0", "MarlinLinearKernel", "w8a16-int8"),
    ),
    "w8a8-int8": (
        Rule("7.5", "CutlassInt8ScaledMMLinearKernel", "w8a8-int8"),
        Rule("10.0", None, None, NO_INT8),
    ),
    "w8a8-fp8": (
        Rule("7.5", "HummingFP8ScaledMMLinearKernel", "w8a16-fp8", NO_FP8),
        Rule("8.9", "CutlassFP8ScaledMMLinearKernel", "w8a8-fp8"),
    ),
    "w8a8-fp8-tensor": (
        Rule("7.5", "HummingFP8ScaledMMLinearKernel", "w8a16-fp8", NO_FP8),
        Rule("8.9", "CutlassFP8ScaledMMLinearKernel", "w8a8-fp8"),
        Rule("10.0", "FlashInferFP8ScaledMMLinearKernel", "w8a8-fp8"),
    ),
    "w8a8-fp8-block": (
        Rule("7.5", "HummingFP8ScaledMMLinearKernel", "w8a16-fp8", NO_FP8),
        # The arithmetic is there, but the kernels for blocks are Hopper's: Marlin is the first that takes them.
        Rule("8.9", "MarlinFP8ScaledMMLinearKernel", "w8a16-fp8", NO_FP8_BLOCKS),
        Rule("9.0", "FlashInferFp8DeepGEMMDynamicBlockScaledKernel", "w8a8-fp8"),
        Rule("10.0", "DeepGemmFp8BlockScaledMMKernel", "w8a8-fp8"),
    ),
    "w8a16-fp8": (Rule("7.5", "HummingFP8ScaledMMLinearKernel", "w8a16-fp8"),),
    "w4a4-fp4": (
        Rule("7.5", "MarlinNvFp4LinearKernel", "w4a16-fp4", NO_FP4),
        Rule("9.0", "HummingNvFp4LinearKernel", None, NO_FP4),
        Rule("10.0", "FlashInferCuteDslNvFp4LinearKernel", "w4a4-fp4"),
        Rule("12.0", "FlashInferCutlassNvFp4LinearKernel", "w4a4-fp4"),
    ),
    "w4a16-fp4": (
        Rule("7.5", "MarlinNvFp4LinearKernel", "w4a16-fp4"),
        Rule("9.0", "HummingNvFp4LinearKernel", "w4a16-fp4"),
        Rule("10.0", "FlashInferCuteDslNvFp4W4A16LinearKernel", "w4a16-fp4"),
        Rule("12.0", "MarlinNvFp4LinearKernel", "w4a16-fp4"),
    ),
    "mxfp4": (
        Rule("7.5", None, None, LEAST_MXFP4),
        Rule("8.0", "MarlinMxFp4LinearKernel", "w4a16-mxfp4", NO_FP4),
        Rule("9.0", "HummingMxFp4LinearKernel", None, NO_FP4),
        Rule("10.0", "FlashInferMxFp4LinearKernel", "w4a4-mxfp4"),
    ),
    "mxfp8": (
        Rule("7.5", "MarlinMxfp8LinearKernel", "w8a16-mxfp8", NO_MXFP8),
        Rule("9.0", "HummingMxfp8LinearKernel", None, NO_MXFP8),
        Rule("10.0", "FlashInferCutedslMxfp8LinearKernel", "w8a8-mxfp8"),
        Rule("12.0", "FlashInferCutlassMxfp8LinearKernel", "w8a8-mxfp8"),
    ),
    "w4a8-fp8": (
        Rule("7.5", None, None, HOPPER_ONLY),
        Rule("9.0", "CutlassW4A8LinearKernel", "w4a8-fp8"),
        Rule("10.0", None, None, HOPPER_ONLY),
    ),
}  # fmt: skip

# The engine argument `quantization` for weights quantized while they load (vllm/config/quantization.py).
ONLINE = {
    "fp8": "w8a8-fp8-tensor",
    "fp8_per_tensor": "w8a8-fp8-tensor",
    "fp8_per_channel": "w8a8-fp8",
    "fp8_per_block": "w8a8-fp8-block",
    "mxfp4": "mxfp4",
    "mxfp8": "mxfp8",
}
# Of these vLLM gives nothing to dense layers, so what they do hangs on the model.
EXPERTS_ONLY = ("int8_per_channel_weight_only", "nvfp4_per_token")

# By running it: facts that hold on CPUs with AMX. Others take other kernels, or none.
CPU_KERNELS = {
    "w4a16": "CPUWNA16LinearKernel",
    "w4a16-group32": "CPUWNA16LinearKernel",
    "w8a8-int8": "CPUInt8ScaledMMLinearKernel",
    "w8a8-fp8-block": "CPUFp8BlockScaledMMKernel",
}


def support(format, engine_args, computes, gpu_entry, dtype=None):
    """What the rules say of a scheme on a device: Support.

    format       {"weights", "input_activations"} as in config/schemes, or None
    engine_args  the scheme's own engine arguments: `quantization`, `linear_backend` and `dtype` count
    computes     what the scheme promises
    gpu_entry    the device's entry in config/gpus.yaml
    dtype        "bfloat16", ...: the engine's type where the scheme has none of its own; None leaves it out
    """
    quantization = (engine_args or {}).get("quantization")
    dtype = (engine_args or {}).get("dtype") or dtype
    family = rule_family(format, quantization)
    if gpu_entry["environment"].endswith("-cpu"):
        reason = "what a CPU runs hangs on its instruction set: the engine is asked"
        return Support("unknown", CPU_KERNELS.get(family), None, reason)
    has = gpu_entry["compute_capability"]
    if below(has, LEAST_CAPABILITY):
        reason = f"the engine needs compute capability {LEAST_CAPABILITY} (CUDA 13); the device has {has}"
        return Support("unsupported", None, None, reason)
    if dtype == "bfloat16" and below(has, LEAST_BFLOAT16):
        reason = (
            f"bfloat16 needs compute capability {LEAST_BFLOAT16}; the device has {has}: set engine.dtype to float16"
        )
        return Support("unsupported", None, None, reason)
    if family == "float":
        found = FLOAT_OF_DTYPE.get(dtype, computes)
        reason = None if found == computes else f"the engine's dtype is {dtype}, so it computes {found}, not {computes}"
        return Support("emulated" if reason else "native", "UnquantizedLinearMethod", found, reason)
    if (engine_args or {}).get("linear_backend"):
        return Support("unknown", None, None, "its kernels are forced: the engine's chooser is asked")
    if quantization in EXPERTS_ONLY:
        return Support("unknown", None, None, f"vLLM gives {quantization} to expert layers only: dense ones stay as is")
    if family not in RULES:
        return Support("unknown", None, None, "there are no rules for this format: the engine's chooser is asked")
    return _apply(RULES[family], computes, has)


def _apply(rules, computes, has):
    """The last rule that the device is not below, as Support."""
    rule = [rule for rule in rules if not below(has, rule.least)][-1]
    if rule.kernel is None:
        return Support("unsupported", None, None, rule.reason.format(has=has, sm=has.replace(".", "")))
    native = rule.reason is None and rule.computes in (computes, None)
    if native:
        return Support("native", rule.kernel, rule.computes, None)
    reason = rule.reason or "the kernel computes {computes}, the scheme promises {promised}"
    by = rule.kernel.removesuffix("Kernel").removesuffix("Linear").removesuffix("ScaledMM")
    reason = reason.format(has=has, by=by, computes=rule.computes, promised=computes)
    return Support("emulated", rule.kernel, rule.computes, reason)


def rule_family(format, quantization=None):
    """Name of the rules (a key of RULES, or "float") for a format or an online quantization; else None."""
    if format is None:
        return ONLINE.get(quantization) if quantization else "float"
    weights, inputs = format["weights"], format["input_activations"]
    if weights["type"] == "int":
        return _integer_family(weights, inputs)
    if weights["num_bits"] == 4:
        if weights.get("group_size") == 32:
            return "mxfp4"
        return "w4a4-fp4" if inputs else "w4a16-fp4"
    if weights.get("group_size") == 32:
        return "mxfp8"
    if not inputs:
        return "w8a16-fp8"
    if weights["strategy"] == "block":
        return "w8a8-fp8-block"
    return "w8a8-fp8-tensor" if weights["strategy"] == inputs["strategy"] == "tensor" else "w8a8-fp8"


def _integer_family(weights, inputs):
    bits, group = weights["num_bits"], weights.get("group_size")
    if inputs is None:
        # Marlin has no 8-bit weights with zero points.
        if bits == 8:
            return "w8a16-int8" if weights["symmetric"] and group in (None, -1, 64, 128) else None
        return (
            {None: "w4a16", -1: "w4a16", 64: "w4a16", 128: "w4a16", 32: "w4a16-group32"}.get(group)
            if bits == 4
            else None
        )
    if bits == 8 and inputs["type"] == "int":
        # Zero points of activations take another kernel, of which the compiled library has a Hopper and a Turing form.
        return "w8a8-int8" if inputs["symmetric"] else None
    return "w4a8-fp8" if bits == 4 and inputs["type"] == "float" and group == 128 else None


def below(capability, least):
    """Whether compute capability "8.6" is below "8.9"; numbers, not text: "10.0" is above "9.0"."""
    return _version(capability) < _version(least)


def _version(capability):
    return tuple(int(part) for part in capability.split("."))
