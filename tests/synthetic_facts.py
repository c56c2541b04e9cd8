"""What synthetic.py makes up: devices, schemes, their kernels, and how fast each is."""

# The entries of config/gpus.yaml, shortened to what tables and report read.
GPUS = {
    "cpu": {
        "description": "whatever CPU the job runs on",
        "environment": "engine-cpu",
        "compute_capability": None,
        "memory_bytes": None,
        "memory_bandwidth_bytes_per_s": None,
        "matrix_flops_per_s": {"bf16": None, "int8": None, "fp8": None},
        "sparse_flops_per_s": {},
        "sources": {},
        "source_of": {},
    },
    "h200": {
        "description": "NVIDIA H200 SXM, 141 GB",
        "environment": "engine-cuda",
        "compute_capability": "9.0",
        "memory_bytes": 141_000_000_000,
        "memory_bandwidth_bytes_per_s": 4.8e12,
        "matrix_flops_per_s": {"bf16": 989.4e12, "int8": 1978.9e12, "fp8": 1978.9e12},
        "sparse_flops_per_s": {"bf16": 1978.9e12},
        "sources": {"datasheet": "NVIDIA H200 Tensor Core GPU datasheet (2024)"},
        "source_of": {"memory_bandwidth_bytes_per_s": "datasheet", "matrix_flops_per_s": "datasheet"},
    },
}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
TOKENS8 = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": True, "dynamic": False}
FP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
PLAIN = {"modifiers": [], "targets": ["Linear"], "ignore": ["lm_head"], "calibrated": False, "engine_args": {}}
SCHEMES = {
    "bf16": PLAIN | {"description": "The model as it came.", "toolkit": "none", "format": None, "computes": "bf16"},
    "int8-smoothquant": PLAIN
    | {
        "description": "INT8 weights and activations, outliers smoothed into the weights.",
        "toolkit": "llmcompressor",
        "modifiers": [{"SmoothQuantModifier": {"smoothing_strength": 0.8}}, {"GPTQModifier": {}}],
        "format": {"weights": INT8, "input_activations": TOKENS8},
        "calibrated": True,
        "computes": "w8a8-int8",
    },
    "rtn-int4": PLAIN
    | {
        "description": "INT4 weights in groups, rounded to nearest.",
        "toolkit": "llmcompressor",
        "modifiers": [{"QuantizationModifier": {}}],
        "format": {"weights": INT4, "input_activations": None},
        "computes": "w4a16",
    },
    "nvfp4": PLAIN
    | {
        "description": "FP4 weights and activations in blocks of 16.",
        "toolkit": "llmcompressor",
        "modifiers": [{"QuantizationModifier": {}}],
        "format": {"weights": FP4, "input_activations": FP4 | {"dynamic": "local"}},
        "calibrated": True,
        "computes": "w4a4-fp4",
    },
    "int8-online": PLAIN
    | {
        "description": "INT8 weights made by the engine while it loads.",
        "toolkit": "none",
        "format": None,
        "targets": [],
        "ignore": [],
        "engine_args": {"quantization": "int8_per_channel_weight_only"},
        "computes": "w8a16-int8",
    },
}
SPEEDUP = {"bf16": 1.0, "int8-smoothquant": 2.0, "rtn-int4": 1.5, "nvfp4": 1.8, "int8-online": 1.0}
KERNELS = {
    ("cpu", "rtn-int4"): ("CPUWNA16LinearKernel", "w4a8", True),
    ("cpu", "int8-smoothquant"): ("CPUInt8ScaledMMLinearKernel", "w8a8-int8", True),
    ("h200", "rtn-int4"): ("MacheteLinearKernel", "w4a16", True),
    ("h200", "int8-smoothquant"): ("CutlassInt8ScaledMMLinearKernel", "w8a8-int8", True),
    ("h200", "nvfp4"): ("MarlinNvFp4LinearKernel", "w4a16", True),
}
UNQUANTIZED = ("UnquantizedLinearMethod", "bf16", False)
BYTES = {"int8-smoothquant": 5_300_000, "rtn-int4": 3_900_000, "nvfp4": 4_000_000}
HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "tie_word_embeddings": False,
}
CONTENDERS = {
    "marlin-w4a16": {
        "description": "vLLM's layer with Marlin forced",
        "format": {"weights": INT4, "input_activations": None},
        "device": "cuda",
        "computes": "w4a16",
        "includes_quantization": None,
    },
    "int8-mm": {
        "description": "the product alone, on activations that were quantized beforehand",
        "format": {"weights": INT8, "input_activations": TOKENS8},
        "device": "any",
        "computes": "w8a8-int8",
        "includes_quantization": False,
    },
}
# Times faster than bf16, of one product at M = 1 and at M = 256; down_proj's where it differs.
PRODUCT_SPEEDUP = {
    "bf16": {1: 1.0, 256: 1.0},
    "int8-smoothquant": {1: 2.0, 256: 2.0},
    "rtn-int4": {1: 1.5, 256: 0.8},
    ("rtn-int4", "down_proj"): {1: 2.0, 256: 0.8},
    "nvfp4": {1: 1.8, 256: 0.9},
    "marlin-w4a16": {1: 3.0, 256: 0.9},
    "int8-mm": {1: 4.0, 256: 4.0},
}
LAYERS = {
    "qkv_proj": (512, 256),
    "down_proj": (256, 768),
    "lm_head": (2048, 256),
    "o_proj": (256, 256),
    "gate_up_proj": (1536, 256),
}
QUESTIONS, DOCUMENTS, REQUESTS = 60, 12, 20
BATCHES, LOADS = [1, 16, 64], [("rate", 2.0), ("rate", 8.0), ("concurrency", 4)]
REPEATS = {"least": 3, "most": 5, "relative_ci": 0.05, "confidence": 0.95}
VERSIONS = {"vllm": "0.32.0", "torch": "2.13.0"}

# What the study's servers have to keep, and the search for the highest rate at which they do.
SLO = {"ttft_s": 0.2, "share": 0.9}
SEARCH = {"least_rate_per_s": 1.0, "most_rate_per_s": 16.0, "probes": 8}


def layer_errors(shapes):
    """A scheme's rows of `layers`: a tenth of a dB better from layer to layer, weights from 20 dB and outputs from 15 dB."""
    return [
        {"layer": name, "n": n, "k": k, "tokens": 900, "weight_sqnr_db": 20 + i / 10, "output_sqnr_db": 15 + i / 10}
        for i, (name, (n, k)) in enumerate(shapes.items())
    ]
