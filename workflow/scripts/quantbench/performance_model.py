"""Time of a whole model from its measured matrix products: where an end-to-end speedup comes from, or went.

    decode step   sum over layers (count x time at M = sequences)       + cached keys and values / bandwidth
    prefill       sum over layers (count x time at M = prompt tokens)   + attention arithmetic / rate

A lower bound in all but the products: normalization, rotary embedding, activation functions, sampling, communication
and gaps between kernels are not in it. What an engine takes longer is exactly these (see `account`).

A `time` is (value, low, high) in seconds; low and high are None when no interval is known. Sums add lows to lows and
highs to highs, as if every product erred to the same side: wider than an interval of the sum, never narrower.
Pure; SI units.
"""

import math
from dataclasses import dataclass

from quantbench.errors import UserError
from quantbench.roofline import floor_s, gemm_bytes, gemm_flops


@dataclass(frozen=True)
class Gemms:
    """Times of one scheme's products on one device.

    times       {(layer, m): (value, low, high)} in seconds, of one product with m rows
    projection  whether they were computed for a device that was not measured, instead of measured
    assumption  of a projection: what was assumed, one sentence
    """

    times: dict
    projection: bool = False
    assumption: str | None = None


# --- the pieces


def time_at(times, layer, m):
    """Time of one layer's product with m rows, from those measured: (value, low, high).

    Between two measured M the logarithm of the time is linear in the logarithm of M, which is exact where time is
    constant (weights dominate) or proportional to M (arithmetic dominates), and in between where they meet.
    Raises UserError outside the measured range, naming it: nothing is extrapolated.
    """
    measured = sorted(rows for name, rows in times if name == layer)
    if not measured:
        have = ", ".join(sorted({name for name, _ in times})) or "none"
        raise UserError(f"no times of {layer}'s products (measured: {have})")
    if (layer, m) in times:
        return tuple(times[layer, m])
    if not measured[0] < m < measured[-1]:
        raise UserError(f"{layer}: M = {m} is outside the measured {measured[0]} to {measured[-1]}: add it to tokens")
    below = max(rows for rows in measured if rows < m)
    above = min(rows for rows in measured if rows > m)
    share = math.log(m / below) / math.log(above / below)
    ends = zip(times[layer, below], times[layer, above], strict=True)
    return tuple(None if None in end else end[0] ** (1 - share) * end[1] ** share for end in ends)


def layer_times(shapes, times, rows):
    """What each layer's products take together, blocks and all: {layer: (value, low, high)}.

    shapes  [{"layer", "count", ...}] of roofline.layer_shapes
    rows    {layer: M}; a layer with M = 0 is not run. Raises UserError as time_at, for all missing layers at once.
    """
    have = {name for name, _ in times}
    missing = [shape["layer"] for shape in shapes if shape["layer"] not in have]
    if missing:
        raise UserError(f"no times of {', '.join(missing)} (measured: {', '.join(sorted(have)) or 'none'})")
    return {
        shape["layer"]: _scaled(time_at(times, shape["layer"], rows[shape["layer"]]), shape["count"])
        for shape in shapes
        if rows[shape["layer"]]
    }


def kv_bytes_per_token(model_config, element_bytes=2, tensor_parallel_size=1):
    """Bytes that one token keeps in the cache of one device: 2 x blocks x kv_heads x head_dim x element_bytes.

    Keys and values, hence 2; fewer key/value heads than devices: each device keeps a copy of one, as layer_shapes.
    """
    config = model_config.get("text_config") or model_config
    heads, blocks = config["num_attention_heads"], config["num_hidden_layers"]
    kv_heads = max(1, (config.get("num_key_value_heads") or heads) // tensor_parallel_size)
    return 2 * blocks * kv_heads * _head_dim(config) * element_bytes


def attention_flops(model_config, sequences, input_tokens, tensor_parallel_size=1):
    """Operations of causal attention over whole prompts: sequences x blocks x heads x 4 head_dim x S (S + 1) / 2.

    Each of S (S + 1) / 2 pairs of tokens costs head_dim multiply-adds for the score and as many for the value.
    """
    config = model_config.get("text_config") or model_config
    heads = config["num_attention_heads"] // tensor_parallel_size
    pairs = input_tokens * (input_tokens + 1) // 2
    return sequences * config["num_hidden_layers"] * heads * 4 * _head_dim(config) * pairs


def _head_dim(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


# --- whole models


def decode_step(
    shapes,
    gemms,
    sequences,
    context_tokens,
    model_config,
    bandwidth_bytes_per_s,
    kv_element_bytes=2,
    tensor_parallel_size=1,
):
    """Time of one decode step: one token more for each of `sequences`, with `context_tokens` cached tokens each.

    shapes        roofline.layer_shapes(model_config, tensor_parallel_size)
    gemms         Gemms, or its `times` alone: at M = sequences, or measured on both sides of it
    model_config  config.json: heads, key/value heads, head_dim, blocks
    bandwidth     that the cache is read at; the measured ceiling, where there is one

    {"total_s": time, "gemm_s": time, "kv_s": seconds, "attention_s": 0.0, "gemm_share", "kv_share", "layers": {layer:
    time}, "projection": bool, "assumption"}; shares are of the total's value. Raises UserError as time_at.
    """
    gemms = _gemms(gemms)
    layers = layer_times(shapes, gemms.times, {shape["layer"]: sequences for shape in shapes})
    cached = sequences * context_tokens * kv_bytes_per_token(model_config, kv_element_bytes, tensor_parallel_size)
    return _total(layers, kv_s=cached / bandwidth_bytes_per_s, attention_s=0.0, gemms=gemms)


def prefill(
    shapes,
    gemms,
    sequences,
    input_tokens,
    model_config,
    bandwidth_bytes_per_s,
    rate_flops_per_s,
    chunk_tokens=None,
    kv_element_bytes=2,
    tensor_parallel_size=1,
):
    """Time until `sequences` prompts of `input_tokens` have their first token.

    The tokens of all prompts go through the layers together, `chunk_tokens` at a time (the engine's
    max_num_batched_tokens; None: all at once); lm_head sees only each prompt's last token. Attention multiplies at
    `rate_flops_per_s` (16 bit); keys and values are written once.

    Result and errors as decode_step, with "attention_s" and "kv_s" of the whole prefill.
    """
    gemms = _gemms(gemms)
    tokens = sequences * input_tokens
    chunk = min(chunk_tokens or tokens, tokens)
    body = [shape for shape in shapes if shape["layer"] != "lm_head"]
    layers = {}
    for rows, times in ((chunk, tokens // chunk), (tokens % chunk, 1)):
        for layer, time in layer_times(body, gemms.times, {shape["layer"]: rows for shape in body}).items():
            layers[layer] = _added(layers.get(layer, (0.0, 0.0, 0.0)), _scaled(time, times))
    head = [shape for shape in shapes if shape["layer"] == "lm_head"]
    layers |= layer_times(head, gemms.times, {"lm_head": sequences})
    written = tokens * kv_bytes_per_token(model_config, kv_element_bytes, tensor_parallel_size)
    arithmetic = attention_flops(model_config, sequences, input_tokens, tensor_parallel_size)
    return _total(layers, kv_s=written / bandwidth_bytes_per_s, attention_s=arithmetic / rate_flops_per_s, gemms=gemms)


def _total(layers, kv_s, attention_s, gemms):
    """Sum of the parts, and their shares."""
    gemm = (0.0, 0.0, 0.0)
    for time in layers.values():
        gemm = _added(gemm, time)
    rest = kv_s + attention_s
    total = _added(gemm, (rest, rest, rest))
    return {
        "total_s": total,
        "gemm_s": gemm,
        "kv_s": kv_s,
        "attention_s": attention_s,
        "gemm_share": gemm[0] / total[0],
        "kv_share": kv_s / total[0],
        "layers": layers,
        "projection": gemms.projection,
        "assumption": gemms.assumption,
    }


# --- comparisons


def predicted_speedup(baseline, scheme):
    """How much faster a scheme's decode step or prefill is than the baseline's, and where that comes from.

    baseline, scheme   results of decode_step or of prefill, for the same load

    speedup        (value, low, high): total over total; low is the baseline's low over the scheme's high
    gemm_speedup   the same of the matrix products alone
    saved_share    {"gemm", "kv", "attention"}: of the baseline's time, saved by this part (negative: lost); they add up to
                   1 - 1 / speedup
    layers         {layer: share of the baseline's time saved there}
    projection     whether either side is one
    """
    whole = baseline["total_s"][0]
    saved = {
        "gemm": (baseline["gemm_s"][0] - scheme["gemm_s"][0]) / whole,
        "kv": (baseline["kv_s"] - scheme["kv_s"]) / whole,
        "attention": (baseline["attention_s"] - scheme["attention_s"]) / whole,
    }
    return {
        "speedup": _ratio(baseline["total_s"], scheme["total_s"]),
        "gemm_speedup": _ratio(baseline["gemm_s"], scheme["gemm_s"]),
        "saved_share": saved,
        "layers": {layer: (time[0] - scheme["layers"][layer][0]) / whole for layer, time in baseline["layers"].items()},
        "projection": baseline["projection"] or scheme["projection"],
    }


def account(baseline, scheme, baseline_measured_s, scheme_measured_s):
    """Sets a measured end-to-end speedup against the prediction: what the products gave, and what the rest took back.

    baseline, scheme   results of decode_step or of prefill
    *_measured_s       what the engine took for the same step

    observed_speedup    measured over measured
    predicted_speedup   of the model
    gemm_saved_s        seconds the model says the products save
    outside_s           {"baseline", "scheme"}: measured less predicted: everything the model leaves out
    outside_lost_s      how much more of it the scheme has: quantizing as its own kernel, launches, lost fusions
    """
    outside = {
        "baseline": baseline_measured_s - baseline["total_s"][0],
        "scheme": scheme_measured_s - scheme["total_s"][0],
    }
    return {
        "observed_speedup": baseline_measured_s / scheme_measured_s,
        "predicted_speedup": baseline["total_s"][0] / scheme["total_s"][0],
        "gemm_saved_s": baseline["gemm_s"][0] - scheme["gemm_s"][0],
        "outside_s": outside,
        "outside_lost_s": outside["scheme"] - outside["baseline"],
    }


# --- projection to a device without measurements


def achieved_shares(shapes, times, format, bandwidth_bytes_per_s, rate_flops_per_s, element_bytes=2):
    """Which share of the roofline the measured products reach: {(layer, m): (value, low, high)}, floor over time.

    format   of the weights (roofline.weight_bytes); None for the model's own type
    bandwidth, rate   the ceilings of the device they were measured on. Layers that are not in shapes are left out.
    """
    sizes = {shape["layer"]: (shape["n"], shape["k"]) for shape in shapes}
    shares = {}
    for (layer, m), time in times.items():
        if layer not in sizes:
            continue
        floor = _floor(m, *sizes[layer], format, bandwidth_bytes_per_s, rate_flops_per_s, element_bytes)
        value, low, high = time
        shares[layer, m] = (floor / value, _quotient(floor, high), _quotient(floor, low))
    return shares


def project(shapes, shares, format, bandwidth_bytes_per_s, rate_flops_per_s, element_bytes=2, assumption=None):
    """Times on a device without measurements: the floor of its data sheet over the share achieved elsewhere.

        time = max(bytes / bandwidth, operations / rate) / share

    Such as FP4 on Blackwell: NVFP4's bytes, a B200's bandwidth and FP4 rate, and the share that FP8 reaches on an H200.
    shares   of achieved_shares, by layer and M
    Gives Gemms with projection=True, whatever comes out of it is marked so. Raises UserError when the data sheet has no
    such rate.
    """
    if bandwidth_bytes_per_s is None or rate_flops_per_s is None:
        raise UserError("cannot project to a device whose data sheet has no bandwidth or no rate for the format")
    sizes = {shape["layer"]: (shape["n"], shape["k"]) for shape in shapes}
    times = {}
    for (layer, m), (value, low, high) in shares.items():
        if layer not in sizes:
            continue
        floor = _floor(m, *sizes[layer], format, bandwidth_bytes_per_s, rate_flops_per_s, element_bytes)
        times[layer, m] = (floor / value, _quotient(floor, high), _quotient(floor, low))
    return Gemms(times, projection=True, assumption=assumption or "the share of the roofline achieved elsewhere")


def _floor(m, n, k, format, bandwidth_bytes_per_s, rate_flops_per_s, element_bytes):
    moved = gemm_bytes(m, n, k, format, element_bytes)
    return floor_s(moved, gemm_flops(m, n, k), bandwidth_bytes_per_s, rate_flops_per_s)


# --- times with intervals


def _gemms(gemms):
    return gemms if isinstance(gemms, Gemms) else Gemms(gemms)


def _scaled(time, factor):
    return tuple(None if part is None else factor * part for part in time)


def _added(one, other):
    return tuple(None if None in parts else sum(parts) for parts in zip(one, other, strict=True))


def _quotient(numerator, denominator):
    return None if numerator is None or denominator is None else numerator / denominator


def _ratio(one, other):
    return one[0] / other[0], _quotient(one[1], other[2]), _quotient(one[2], other[1])
