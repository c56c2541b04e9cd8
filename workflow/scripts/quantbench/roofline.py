"""Least times by arithmetic: what must cross the memory bus, what must be computed, and how long that takes at best.

The roofline model: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009. Pure; SI units.
"""

import math

from quantbench.errors import UserError

# vLLM pads the vocabulary so that the rows of lm_head divide evenly among kernels and devices.
VOCABULARY_PADDING = 64

# Weight scales as the engine holds them: 32-bit per channel, per tensor or per block; per group in the layer's own
# 16-bit type, except for NVFP4 and MXFP4, whose formats fix 8 bits.
SCALE_BYTES = {"channel": 4, "tensor": 4, "block": 4, "group": 2, "tensor_group": 1}

# The data sheet's rate that a product can reach at best: weight-only formats multiply in 16 bit.
RATES = {
    "bf16": "bf16", "fp16": "fp16", "fp32": "fp32", "tf32": "tf32", "w4a16": "bf16", "w8a16-int8": "bf16", "w8a16-fp8": "bf16",
    "w4a16-fp4": "bf16", "w8a8-int8": "int8", "w4a8": "int8", "w8a8-fp8": "fp8", "w4a8-fp8": "fp8", "w4a4-fp4": "fp4",
    "w4a16-mxfp4": "bf16", "w4a4-mxfp4": "fp4", "w8a16-mxfp8": "bf16", "w8a8-mxfp8": "fp8",
}  # fmt: skip


def layer_shapes(model_config, tensor_parallel_size=1):
    """Linear layers of a dense Llama-like decoder, fused as they are served: [{"layer", "n", "k", "count"}].

    A layer multiplies [m, k] activations with an [n, k] weight; `n` and `k` are one device's part.
    model_config is the model's config.json. Raises UserError for an architecture whose shapes these are not.

        qkv_proj      n = (heads + 2 kv_heads) head_dim     k = hidden             once per block
        o_proj        n = hidden                            k = heads head_dim
        gate_up_proj  n = 2 intermediate                    k = hidden
        down_proj     n = hidden                            k = intermediate
        lm_head       n = vocabulary, padded to 64          k = hidden             once
    """
    config = model_config.get("text_config") or model_config
    experts = [key for key in ("num_local_experts", "num_experts", "n_routed_experts") if config.get(key)]
    if experts:
        raise UserError(f"config.json has {experts[0]}: mixtures of experts have other matrix products")
    try:
        hidden, heads, blocks = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
        intermediate, vocabulary = config["intermediate_size"], config["vocab_size"]
    except KeyError as error:
        raise UserError(f"config.json has no {error.args[0]!r}: not a Llama-like decoder") from error
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    devices = tensor_parallel_size
    if heads % devices or intermediate % devices:
        raise UserError(f"{heads} heads and {intermediate} MLP features do not divide among {devices} devices")
    # Fewer key/value heads than devices: each device keeps a copy of one.
    heads_here, kv_heads_here = heads // devices, max(1, kv_heads // devices)
    padded = math.ceil(vocabulary / VOCABULARY_PADDING) * VOCABULARY_PADDING
    shapes = [
        ("qkv_proj", (heads_here + 2 * kv_heads_here) * head_dim, hidden, blocks),
        ("o_proj", hidden, heads_here * head_dim, blocks),
        ("gate_up_proj", 2 * intermediate // devices, hidden, blocks),
        ("down_proj", hidden, intermediate // devices, blocks),
        ("lm_head", math.ceil(padded / devices), hidden, 1),
    ]
    return [{"layer": layer, "n": n, "k": k, "count": count} for layer, n, k, count in shapes]


def gemm_traffic(m, n, k, format, element_bytes=2, input_bits=None):
    """What has to cross the memory bus, part by part: {part: bytes}.

    format         {"weights": QuantizationArgs names, ...}, or None for the model's own type of `element_bytes`
    input_bits     of activations that were quantized beforehand; None: they come in the model's own type

        weights        n k bits / 8
        scales         n k / group x 2     (group; 1 byte each and a 4-byte scale per tensor for NVFP4)
                       n x 4               (channel)
                       ceil(n / rows) ceil(k / columns) x 4    (block)
        zeros          n k / group x bits / 8, of asymmetric integers only
        inputs         m k x element_bytes: quantizing them is part of the product, and a fused kernel need not write
                       the quantized ones; or m k x input_bits / 8
        outputs        m n x element_bytes
    """
    inputs = m * k * (element_bytes if input_bits is None else input_bits / 8)
    ends = {"inputs": inputs, "outputs": m * n * element_bytes}
    if format is None:
        return {"weights": n * k * element_bytes, "scales": 0, "zeros": 0, **ends}
    weights = format["weights"]
    strategy, bits = weights["strategy"], weights["num_bits"]
    count = _scales(n, k, weights)
    scales = count * SCALE_BYTES[strategy] + (4 if strategy == "tensor_group" else 0)
    zeros = 0 if weights.get("symmetric", True) else count * bits / 8
    return {"weights": n * k * bits / 8, "scales": scales, "zeros": zeros, **ends}


def weight_bytes(n, k, format, element_bytes=2):
    """Bytes of one [n, k] weight as the engine reads it: packed numbers, scales and zero points (see gemm_traffic)."""
    traffic = gemm_traffic(0, n, k, format, element_bytes)
    return sum(traffic[part] for part in ("weights", "scales", "zeros"))


def _scales(n, k, weights):
    """How many scales an [n, k] weight has."""
    strategy = weights["strategy"]
    if strategy in ("group", "tensor_group"):
        return n * math.ceil(k / weights["group_size"])
    if strategy == "block":
        rows, columns = weights["block_structure"]
        return math.ceil(n / rows) * math.ceil(k / columns)
    return {"channel": n, "tensor": 1}[strategy]


def gemm_bytes(m, n, k, format, element_bytes=2, input_bits=None):
    """Bytes that cross the memory bus at least: the sum of gemm_traffic."""
    return sum(gemm_traffic(m, n, k, format, element_bytes, input_bits).values())


def gemm_flops(m, n, k):
    """One multiplication and one addition for each of m n k products."""
    return 2 * m * n * k


def floor_s(bytes, flops, bandwidth_bytes_per_s, rate_flops_per_s):
    """Least time: the memory bus and the arithmetic overlap, so the slower of the two; None without a ceiling."""
    if bandwidth_bytes_per_s is None or rate_flops_per_s is None:
        return None
    return max(bytes / bandwidth_bytes_per_s, flops / rate_flops_per_s)


def rate_dtype(computes):
    """Which of the data sheet's rates bounds a kernel that computes this ("w4a16" -> "bf16"); None when unknown."""
    return RATES.get(computes)


def decode_floor_s(weight_bytes, kv_bytes, bandwidth_bytes_per_s):
    """Least time of one decode step: every weight and every cached key and value crosses the memory bus once."""
    return (weight_bytes + kv_bytes) / bandwidth_bytes_per_s
