"""Formats on devices that are not there: what the rules know, and what vLLM's own chooser has to answer."""

from pathlib import Path

from quantbench.schemes import load_schemes

ROOT = Path(__file__).parents[1]
SCHEMES = load_schemes(ROOT / "config" / "schemes")
CPU = {"environment": "engine-cpu", "compute_capability": None}


def cuda(capability):
    return {"environment": "engine-cuda", "compute_capability": capability}


def numbers(bits, type, strategy, group_size=None, dynamic=False, symmetric=True, **more):
    found = {"num_bits": bits, "type": type, "strategy": strategy, "symmetric": symmetric, "dynamic": dynamic, **more}
    return found | ({"group_size": group_size} if group_size else {})


def w_a(weights, input_activations=None):
    return {"weights": weights, "input_activations": input_activations}


FP8_TOKENS = numbers(8, "float", "token", dynamic=True)
NVFP4 = SCHEMES["nvfp4"]["format"]
# name: (format, what it promises)
FORMATS = {
    "bf16": (None, "bf16"),
    "w4a16": (SCHEMES["gptq-int4"]["format"], "w4a16"),
    "w4a16-zeros": (SCHEMES["awq-int4"]["format"], "w4a16"),
    "w4a16-group32": (w_a(numbers(4, "int", "group", 32)), "w4a16"),
    "w8a16": (w_a(numbers(8, "int", "channel")), "w8a16-int8"),
    "int8": (SCHEMES["int8-smoothquant"]["format"], "w8a8-int8"),
    "fp8": (w_a(numbers(8, "float", "channel"), FP8_TOKENS), "w8a8-fp8"),
    "fp8-tensor": (w_a(numbers(8, "float", "tensor"), numbers(8, "float", "tensor", dynamic=False)), "w8a8-fp8"),
    "fp8-block": (SCHEMES["fp8-block"]["format"], "w8a8-fp8"),
    "w8a16-fp8": (w_a(numbers(8, "float", "channel")), "w8a16-fp8"),
    "nvfp4": (NVFP4, "w4a4-fp4"),
    "nvfp4a16": ({**NVFP4, "input_activations": None}, "w4a16-fp4"),
    "mxfp4": (w_a(numbers(4, "float", "group", 32), numbers(4, "float", "group", 32, dynamic=True)), "w4a4-mxfp4"),
    "w4a8-fp8": (w_a(numbers(4, "int", "group", 128), FP8_TOKENS), "w4a8-fp8"),
}

# format, compute capability, level, kernel: A100 8.0, A10G 8.6, L40S 8.9, H100 and H200 9.0, B200 10.0, RTX 5090 12.0
EXPECTED = [
    ("bf16", "8.0", "native", "UnquantizedLinearMethod"),
    ("bf16", "10.0", "native", "UnquantizedLinearMethod"),
    ("w4a16", "8.0", "native", "MarlinLinearKernel"),
    ("w4a16", "8.6", "native", "MarlinLinearKernel"),
    ("w4a16", "8.9", "native", "MarlinLinearKernel"),
    ("w4a16", "9.0", "native", "MacheteLinearKernel"),
    ("w4a16", "10.0", "native", "MarlinLinearKernel"),
    ("w4a16", "12.0", "native", "MarlinLinearKernel"),
    ("w4a16-zeros", "8.0", "native", "MarlinLinearKernel"),
    ("w4a16-zeros", "9.0", "native", "MacheteLinearKernel"),
    ("w4a16-group32", "8.9", "native", "MarlinLinearKernel"),
    ("w4a16-group32", "9.0", "native", "HummingLinearKernel"),
    ("w8a16", "8.0", "native", "MarlinLinearKernel"),
    ("w8a16", "9.0", "native", "MacheteLinearKernel"),
    ("int8", "8.0", "native", "CutlassInt8ScaledMMLinearKernel"),
    ("int8", "9.0", "native", "CutlassInt8ScaledMMLinearKernel"),
    ("fp8", "8.0", "emulated", "HummingFP8ScaledMMLinearKernel"),
    ("fp8", "8.9", "native", "CutlassFP8ScaledMMLinearKernel"),
    ("fp8", "9.0", "native", "CutlassFP8ScaledMMLinearKernel"),
    ("fp8", "10.0", "native", "CutlassFP8ScaledMMLinearKernel"),
    ("fp8-tensor", "9.0", "native", "CutlassFP8ScaledMMLinearKernel"),
    ("fp8-tensor", "10.0", "native", "FlashInferFP8ScaledMMLinearKernel"),
    ("fp8-block", "8.0", "emulated", "HummingFP8ScaledMMLinearKernel"),
    ("fp8-block", "8.9", "emulated", "MarlinFP8ScaledMMLinearKernel"),
    ("fp8-block", "9.0", "native", "FlashInferFp8DeepGEMMDynamicBlockScaledKernel"),
    ("fp8-block", "10.0", "native", "DeepGemmFp8BlockScaledMMKernel"),
    ("w8a16-fp8", "8.0", "native", "HummingFP8ScaledMMLinearKernel"),
    ("nvfp4", "8.0", "emulated", "MarlinNvFp4LinearKernel"),
    ("nvfp4", "8.9", "emulated", "MarlinNvFp4LinearKernel"),
    ("nvfp4", "9.0", "emulated", "HummingNvFp4LinearKernel"),
    ("nvfp4", "10.0", "native", "FlashInferCuteDslNvFp4LinearKernel"),
    ("nvfp4", "12.0", "native", "FlashInferCutlassNvFp4LinearKernel"),
    ("nvfp4a16", "8.0", "native", "MarlinNvFp4LinearKernel"),
    ("nvfp4a16", "9.0", "native", "HummingNvFp4LinearKernel"),
    ("nvfp4a16", "10.0", "native", "FlashInferCuteDslNvFp4W4A16LinearKernel"),
    ("nvfp4a16", "12.0", "native", "MarlinNvFp4LinearKernel"),
    ("mxfp4", "8.0", "emulated", "MarlinMxFp4LinearKernel"),
    ("mxfp4", "9.0", "emulated", "HummingMxFp4LinearKernel"),
    ("mxfp4", "10.0", "native", "FlashInferMxFp4LinearKernel"),
    ("w4a8-fp8", "8.9", "unsupported", None),
    ("w4a8-fp8", "9.0", "native", "CutlassW4A8LinearKernel"),
    ("w4a8-fp8", "10.0", "unsupported", None),
]
