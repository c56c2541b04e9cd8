"""What a job takes by rule, before anything like it has been measured: from the model's size, the data sheet and the points.

Guesses are for asking a cluster for time and memory, and for the plan. estimate.py corrects them by what was measured: only
their proportions matter then (how a batch of 64 compares with one of 8), no longer their constants. Pure; SI units.
"""

import math
from dataclasses import dataclass

from quantbench.errors import UserError
from quantbench.roofline import floor_s, gemm_bytes, gemm_flops, layer_shapes, weight_bytes
from quantbench.serving_points import mean_lengths, probe_parameters

# Where a sheet has no number: a CPU with two channels of DDR4-2666 (42.6e9) at half of that, and its vector units.
CPU_BANDWIDTH_BYTES_PER_S, CPU_FLOPS_PER_S = 20e9, 100e9
# An engine reaches about half of its device's ceilings, and each step costs launches and scheduling besides.
SHARE_OF_CEILINGS = 0.5
STEP_S = {"engine-cpu": 0.002, "engine-cuda": 0.005}
# Start of a process (interpreter, imports, end), and of an engine without its weights: compiling and capturing graphs, or not.
PROCESS_S = 20.0
START_S = {"engine-cpu": 20.0, "engine-cuda": 90.0}
EAGER_START_S = {"engine-cpu": 10.0, "engine-cuda": 40.0}
# From shared storage into one node's memory.
LOAD_BYTES_PER_S = 1e9
PROBE_S = 60.0
# One layer that is built and thrown away.
SUPPORT_S = 1.0
# A stage that no rule is written for yet.
OTHER_POINT_S = 60.0
# Making and repacking the weights of one layer, shared by the points of its sweep.
GEMM_POINT_S = 0.3
# Hot and cold caches, graph and eager launches (PROTOCOL of gemm).
GEMM_WAYS = 4
# GSM8K's questions with their answers, and a document of a perplexity set.
SHOT_TOKENS, DOCUMENT_TOKENS = 150, 500
# Where a study leaves a number to the task's definition: those of GSM8K, and a hundred documents.
TASK_QUESTIONS, TASK_SHOTS, TASK_MAX_TOKENS, DOCUMENTS = 1319, 5, 256, 100
# Passes before the first one that counts (engine/session.py: at least two, at most five).
WARM_UP_PASSES = 3
# 8B parameters, where a config.json is of an architecture that is not counted here.
UNKNOWN_PARAMETERS = 8e9
# llm-compressor's documentation on an A100 and 8B parameters: rounding to nearest about a minute, GPTQ and AWQ about 30.
ROUND_S_PER_BYTE, CALIBRATE_S_PER_BYTE = 60 / 16e9, 1800 / 16e9
# A row is multiplied once to collect statistics, once more to go on with the quantized block.
CALIBRATION_PASSES = 2
# Interpreter, torch, CUDA context and the engine's own processes in host memory.
HOST_BYTES = {"engine-cpu": 3e9, "engine-cuda": 12e9}
QUANTIZE_HOST_BYTES = 4e9


@dataclass(frozen=True)
class Device:
    """A device's two ceilings, and the environment that decides which overheads it has."""

    environment: str
    bandwidth_bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True)
class Size:
    """A variant: parameters, bytes of its checkpoint, and of one token's keys and values."""

    parameters: float
    bytes: float
    kv_bytes_per_token: float


def device_of(entry, probed=None):
    """The Device of a data sheet; `probed` (a probe point's row) has measured what a CPU's sheet leaves open."""
    rates = [entry["matrix_flops_per_s"].get(dtype) for dtype in ("bf16", "fp16", "fp32")]
    measured = probed or {}
    bandwidth = entry["memory_bandwidth_bytes_per_s"] or measured.get("bandwidth_bytes_per_s")
    flops = next(filter(None, rates), None) or (measured.get("matrix_flops_per_s") or {}).get("bf16")
    return Device(entry["environment"], bandwidth or CPU_BANDWIDTH_BYTES_PER_S, flops or CPU_FLOPS_PER_S)


def size_of(config, recipe, stored_bytes=None):
    """The Size of a variant from the model's config.json and the scheme's recipe.

    recipe        {"format", "ignore"}; a scheme without a format, and a model that the engine quantizes, load in 16 bit
    stored_bytes  of the checkpoint, where it has been made
    """
    text = config.get("text_config") or config
    try:
        layers = layer_shapes(config)
    except UserError:
        # A mixture of experts, say: only its size in bytes is told by its files.
        parameters = stored_bytes / 2 if stored_bytes else UNKNOWN_PARAMETERS
        return Size(parameters, stored_bytes or 2 * parameters, 0.0)
    head = next(layer for layer in layers if layer["layer"] == "lm_head")
    tables = 1 if text.get("tie_word_embeddings") else 2
    parameters = (
        sum(layer["count"] * layer["n"] * layer["k"] for layer in layers) + (tables - 1) * head["n"] * head["k"]
    )
    size = 2 * head["n"] * head["k"] * (tables - 1)
    for layer in layers:
        kept = layer["layer"] in recipe["ignore"]
        size += layer["count"] * weight_bytes(layer["n"], layer["k"], None if kept else recipe["format"])
    heads = text["num_attention_heads"]
    width = text.get("head_dim") or text["hidden_size"] // heads
    # A key and a value of 16 bit each.
    kv = 2 * 2 * (text.get("num_key_value_heads") or heads) * width * text["num_hidden_layers"]
    return Size(parameters, stored_bytes or size, kv)


def step_s(device, size, batch_size, context):
    """One decode step of a batch: every weight and every cached key and value crosses the memory bus once."""
    moved = size.bytes + size.kv_bytes_per_token * batch_size * context
    return STEP_S[device.environment] + _attained(device, moved, 2 * size.parameters * batch_size)


def prefill_s(device, size, tokens):
    """All tokens of some prompts: two operations per parameter and token, or one pass over the weights."""
    return STEP_S[device.environment] + _attained(device, size.bytes, 2 * size.parameters * tokens)


def engine_start_s(device, size, enforce_eager):
    """Seconds until an engine is ready."""
    return (EAGER_START_S if enforce_eager else START_S)[device.environment] + size.bytes / LOAD_BYTES_PER_S


def point_s(identity, device, size):
    """Seconds of one point, the engine's start not counted. `size` is None for points of a device (gemm, probe, support)."""
    stage, params = identity["stage"], identity["params"]
    if stage in ("probe", "support"):
        return PROBE_S if stage == "probe" else SUPPORT_S
    if stage == "load":
        return 0.0
    if stage == "gemm":
        m, n, k = (params[name] for name in "mnk")
        moved, flops = gemm_bytes(m, n, k, identity.get("format")), gemm_flops(m, n, k)
        return GEMM_POINT_S + GEMM_WAYS * passes(params["repeats"]) * _attained(device, moved, flops)
    if stage in ("latency", "throughput"):
        once = batch_s(device, size, params["batch_size"], *mean_lengths(params))
        return passes(params["repeats"]) * once
    if stage == "serving":
        return _serving_s(params, device, size)
    if stage == "search":
        middle = math.sqrt(params["least_rate_per_s"] * params["most_rate_per_s"])
        return params["probes"] * _serving_s(probe_parameters(params, middle), device, size)
    if stage == "accuracy":
        return _accuracy_s(params, device, size, identity["engine_args"])
    if stage in ("perplexity", "reference", "fidelity"):
        # How many a fidelity point reads only its reference says.
        return prefill_s(device, size, (params.get("documents") or DOCUMENTS) * DOCUMENT_TOKENS)
    if stage == "sensitivity":
        # One document after another, by a model in 16 bits but for a part.
        whole = Size(size.parameters, 2 * size.parameters, size.kv_bytes_per_token)
        return params["documents"] * prefill_s(device, whole, min(params["max_tokens"], DOCUMENT_TOKENS))
    return OTHER_POINT_S


def batch_s(device, size, batch_size, input_tokens, output_tokens):
    """One batch from its submission to its last token."""
    steps = output_tokens * step_s(device, size, batch_size, input_tokens + output_tokens / 2)
    return prefill_s(device, size, batch_size * input_tokens) + steps


def passes(repeats):
    """Warm-up, and half of the way from the least to the most repeats."""
    return WARM_UP_PASSES + (repeats["least"] + repeats["most"]) / 2


def quantize_s(size, calibration, cuda):
    """Seconds to quantize a model of this 16-bit Size; `calibration` is the checkpoint's, or None."""
    if not calibration:
        return size.bytes * ROUND_S_PER_BYTE
    known = size.bytes * CALIBRATE_S_PER_BYTE
    tokens = calibration["samples"] * calibration["max_tokens"]
    # On a CPU the rows' products take longer than the rounding.
    return known if cuda else max(known, CALIBRATION_PASSES * 2 * size.parameters * tokens / CPU_FLOPS_PER_S)


def quantize_memory_bytes(size):
    """The 16-bit model, and a second copy of it while the result is written."""
    return QUANTIZE_HOST_BYTES + 2 * size.bytes


def sensitivity_memory_bytes(size, points, vocabulary):
    """The 16-bit model twice, as while it is loaded, and a 32-bit number per token of the documents and word of the vocabulary."""
    params = [point["identity"]["params"] for point in points]
    tokens = max(p["documents"] * min(p["max_tokens"], DOCUMENT_TOKENS) for p in params)
    return QUANTIZE_HOST_BYTES + 2 * 2 * size.parameters + 4 * vocabulary * tokens


def engine_memory_bytes(device, size, engine_args):
    """Host memory of an engine: the files pass through it; a CPU keeps weights (and their repacked copy) and cache there."""
    bytes = HOST_BYTES[device.environment] + size.bytes
    if device.environment == "engine-cpu":
        bytes += size.bytes + (engine_args.get("kv_cache_memory_bytes") or 0)
    return bytes


def device_memory_bytes(device, largest_bytes=0.0):
    """Host memory of a process without an engine; `largest_bytes` of the largest weight that it holds, in 32 bit and copies."""
    return HOST_BYTES[device.environment] + 4 * largest_bytes


def _accuracy_s(params, device, size, engine_args):
    """Prompts with their worked examples, and answers of full length, as many at once as the engine takes."""
    questions, shots = params["questions"] or TASK_QUESTIONS, params["shots"]
    prompt = ((TASK_SHOTS if shots is None else shots) + 1) * SHOT_TOKENS
    at_once = min(questions, engine_args.get("max_num_seqs") or 256)
    steps = questions / at_once * (params["max_tokens"] or TASK_MAX_TOKENS)
    return prefill_s(device, size, questions * prompt) + steps * step_s(device, size, at_once, prompt)


def _serving_s(params, device, size):
    """The schedule or the device, whichever is slower; requests that are sent ahead; the wait for the last answer."""
    # Here, since it imports numpy: who plans a study without load need not wait for that.
    from quantbench.load import WAKING_S, warm_up_requests

    input_tokens, output_tokens = mean_lengths(params)
    if params["load"] == "concurrency":
        at_once = min(params["concurrency"], params["requests"])
    elif params["load"] == "all_at_once":
        at_once = params["requests"]
    else:
        alone_s = batch_s(device, size, 1, input_tokens, output_tokens)
        at_once = min(max(params["rate_per_s"] * alone_s, 1), params["requests"])
    # Each step makes a token of each running request; a prompt is computed between two steps.
    request_s = output_tokens * step_s(device, size, at_once, input_tokens + output_tokens / 2)
    request_s += at_once * prefill_s(device, size, input_tokens)
    requests = params["requests"] + warm_up_requests(params)
    busy_s = max(requests / at_once * request_s, params.get("least_duration_s", 0))
    scheduled_s = params["requests"] / params["rate_per_s"] if params["load"] == "rate" else 0.0
    return max(busy_s, scheduled_s + request_s) + params.get("ramp_s", 0) + WAKING_S


def _attained(device, moved_bytes, flops):
    return floor_s(moved_bytes, flops, device.bandwidth_bytes_per_s, device.flops_per_s) / SHARE_OF_CEILINGS
