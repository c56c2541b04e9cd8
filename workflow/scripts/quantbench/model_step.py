"""How much of a decode step its matrix products explain, and what FP4 might give: pure, no words.

`decode_rows` sets performance_model.py's decode step, from the products timed apart, beside the one that the engine took.
`fp4_projection` takes the shares of the roofline reached here to a device that was not at hand: never a measurement.
sections_model.py words both.
"""

from quantbench.errors import UserError
from quantbench.performance_model import Gemms, account, decode_step, predicted_speedup, project
from quantbench.roofline import layer_shapes, rate_dtype
from quantbench.sections import parts
from quantbench.statistics import median_ci, ratio_of_medians_ci

POINT = ("gpu", "model", "input_tokens", "output_tokens", "batch_size", "scheme")

# What products compute that quantize nothing.
PLAIN = ("bf16", "fp16", "fp32")

# NVFP4 as config/schemes/nvfp4.yaml has it, and the device with arithmetic for it that it is projected to.
NVFP4 = {"weights": {"num_bits": 4, "strategy": "tensor_group", "group_size": 16, "symmetric": True}}
TARGET = "b200"
# From here on (Blackwell) a device multiplies FP4 itself, and is measured instead.
FP4_CAPABILITY = 10.0
# vLLM's own limit of sequences decoded together.
MOST_SEQUENCES = 256


# --- the decode step, predicted and measured ------------------------------------------------------------------------


def decode_rows(latency, cells, models, bandwidths, baseline, kv_bytes, confidence=0.95):
    """[{...}], one per measured batch whose products were timed too: its decode step, predicted beside measured.

    latency     measured rows of the table latency
    cells       kernel_analysis.cells of the products
    models      {model: config.json}
    bandwidths  {gpu: bytes/s that the cache is read at}
    kv_bytes    {scheme: bytes of one cached key or value}

    gpu, model, input_tokens, output_tokens, batch_size, scheme
    predicted_s, gemm_s         (value, low, high) of products and KV reads, and of the products
    kv_s                        reading the cache, input_tokens + output_tokens / 2 deep as on average
    interpolated                whether the batch size is no measured M, but lies between two
    measured_s                  (value, low, high): of the repeats' (elapsed_s - ttft_s) / (output_tokens - 1)
    rest_s                      measured less predicted: what the model leaves out; its ends are the worst case
    shares                      {"gemm", "kv", "rest"} of the measured step
    speedup                     (value, low, high) over the baseline, of the whole batch, prefill included

    and over the baseline's row of the same batch, null without one:
    predicted_speedup           (value, low, high) of the decode step, as if there were no rest
    with_rest_speedup           the same if the baseline's rest came on top of it
    measured_speedup            (value, low, high) of the measured decode step
    gemm_saved_s, rest_added_s  (value, low, high): what the products save and what the rest takes more

    `measured_s` and all that follows from it are null where the time to the first token is, or for one token of output.
    A batch is left out whose predicted step would need a product that was not timed at M = batch size or on both sides of it.
    """
    times, found = _times(cells, models), []
    for values, rows in parts(latency, list(POINT)):
        here = dict(zip(POINT, values, strict=True))
        gpu, model, scheme = here["gpu"], here["model"], here["scheme"]
        step = _decode_step(here, times.get((gpu, model, scheme)), models, bandwidths.get(gpu), kv_bytes.get(scheme))
        if step is None:
            continue
        steps = _steps(rows, here["output_tokens"])
        measured = median_ci(steps, confidence) if steps else None
        found.append(here | {"step": step, "steps": steps, "elapsed": rows["elapsed_s"].to_list()})
        found[-1] |= {"predicted_s": step["total_s"], "gemm_s": step["gemm_s"], "kv_s": step["kv_s"]}
        exact = all((layer, here["batch_size"]) in times[gpu, model, scheme] for layer in step["layers"])
        found[-1] |= {"interpolated": not exact, "measured_s": measured}
        found[-1] |= {"rest_s": _minus(measured, step["total_s"]), "shares": _shares(step, measured)}
    bases = {_where(row): row for row in found if row["scheme"] == baseline}
    found = [row | _beside(row, bases.get(_where(row)), confidence) for row in found]
    return [{name: value for name, value in row.items() if name not in ("step", "steps", "elapsed")} for row in found]


def _times(cells, models):
    """{(gpu, model, scheme): {(layer, m): (median, low, high)}} of the products that a model is made of."""
    shapes, found = {model: _shapes(config) for model, config in models.items()}, {}
    for cell in cells:
        size = cell["layer"], cell["n"], cell["k"]
        if cell["kind"] == "scheme" and size in [(s["layer"], s["n"], s["k"]) for s in shapes.get(cell["model"], [])]:
            times = found.setdefault((cell["gpu"], cell["model"], cell["entry"]), {})
            times[cell["layer"], cell["m"]] = cell["median_s"], cell["low_s"], cell["high_s"]
    return found


def _shapes(config):
    """A model's products, or none for an architecture whose products are others."""
    try:
        return layer_shapes(config)
    except UserError:
        return []


def _decode_step(here, times, models, bandwidth, kv_bytes):
    """performance_model.decode_step of one batch; None where its products or its cache cannot be told."""
    if not times or bandwidth is None or kv_bytes is None:
        return None
    config = models[here["model"]]
    # The first token out reads input_tokens + 1 positions, the last input_tokens + output_tokens - 1.
    context = here["input_tokens"] + here["output_tokens"] / 2
    try:
        return decode_step(_shapes(config), times, here["batch_size"], context, config, bandwidth, kv_bytes)
    except UserError:
        return None


def _steps(rows, output_tokens):
    """Seconds of one decode step, a repeat each; empty where the first token's time is not known."""
    if output_tokens < 2:
        return []
    rests = (rows["elapsed_s"] - rows["ttft_s"]).drop_nulls().to_list()
    return [rest / (output_tokens - 1) for rest in rests if rest > 0]


def _shares(step, measured):
    if measured is None:
        return dict.fromkeys(("gemm", "kv", "rest"))
    gemm, kv = step["gemm_s"][0] / measured[0], step["kv_s"] / measured[0]
    return {"gemm": gemm, "kv": kv, "rest": 1 - gemm - kv}


def _where(row):
    return tuple(row[name] for name in POINT if name != "scheme")


def _beside(row, base, confidence):
    """What one batch says beside the baseline's."""
    names = ("speedup", "predicted_speedup", "with_rest_speedup", "measured_speedup", "gemm_saved_s", "rest_added_s")
    found = dict.fromkeys(names)
    if base is None:
        return found
    found["speedup"] = ratio_of_medians_ci(row["elapsed"], base["elapsed"], confidence)
    found["predicted_speedup"] = predicted_speedup(base["step"], row["step"])["speedup"]
    found["gemm_saved_s"] = _minus(base["gemm_s"], row["gemm_s"])
    if base["measured_s"] is None or row["measured_s"] is None:
        return found
    outside = account(base["step"], row["step"], base["measured_s"][0], row["measured_s"][0])["outside_s"]["baseline"]
    if outside >= 0:
        found["with_rest_speedup"] = base["measured_s"][0] / (row["predicted_s"][0] + outside)
    found["measured_speedup"] = ratio_of_medians_ci(row["steps"], base["steps"], confidence)
    found["rest_added_s"] = _minus(row["rest_s"], base["rest_s"])
    return found


def _minus(one, other):
    """Difference of two (value, low, high), its ends as if both erred apart: wider than its interval, never narrower."""
    if one is None or other is None:
        return None
    pairs = ((one[0], other[0]), (one[1], other[2]), (one[2], other[1]))
    return tuple(None if None in pair else pair[0] - pair[1] for pair in pairs)


# --- FP4, projected -------------------------------------------------------------------------------------------------


def fp4_projection(cells, models, gpus, target, batches, context_tokens, bandwidth_shares):
    """[{...}], one per CUDA device and model: decode in NVFP4 on a device that was not measured. A projection.

        time of a product = its floor by the target's data sheet / share of the data sheet's roofline reached here

    The share is that of the same layer at the same M: of the first scheme with FP8 products, else of the products in 16
    bits. The output head stays in 16 bits. Nothing is projected where a measured device has arithmetic for FP4.

    cells             kernel_analysis.cells
    models            {model: config.json}
    gpus              {gpu: data sheet}, the study's
    target            the other device's data sheet
    batches           sequences decoded together; None: the M measured, up to MOST_SEQUENCES
    context_tokens    cached tokens of each sequence
    bandwidth_shares  {gpu: share of the data sheet's bandwidth that a copy reaches}, for reading the cache; else 1

    gpu, model, donor (scheme), computes (of its products), projection (True)
    share     (least, greatest) share of the roofline that was taken over
    rows      [{"batch_size", "baseline_s", "nvfp4_s", "speedup", "datasheet_speedup"}], the last with a share of 1 throughout.
              No intervals: the repeats' scatter is not what such numbers err by.
    """
    if any(capability(sheet) >= FP4_CAPABILITY for sheet in gpus.values()):
        return []
    found = []
    for (gpu, model), mine in _by_place(cells).items():
        if not capability(gpus.get(gpu, {})) or model not in models:
            continue
        donor, computes, shares, plain = _achieved(mine)
        shapes = _shapes(models[model])
        if not shapes or not shares or not plain:
            continue
        tokens = batches or sorted({m for _, m in plain if m <= MOST_SEQUENCES})
        kv_bandwidth = target["memory_bandwidth_bytes_per_s"] * bandwidth_shares.get(gpu, 1)
        load = {"shapes": shapes, "config": models[model], "context": context_tokens}
        steps = _projected_steps(tokens, shares, plain, target, kv_bandwidth, **load)
        ideal = dict.fromkeys({*shares, *plain}, (1, None, None))
        sheets = _projected_steps(tokens, ideal, ideal, target, target["memory_bandwidth_bytes_per_s"], **load)
        rows = [
            {
                "batch_size": batch,
                "baseline_s": base["total_s"][0],
                "nvfp4_s": fp4["total_s"][0],
                "speedup": predicted_speedup(base, fp4)["speedup"][0],
                "datasheet_speedup": predicted_speedup(*sheets[batch])["speedup"][0],
            }
            for batch, (base, fp4) in steps.items()
        ]
        if rows:
            values = [share[0] for (layer, _), share in shares.items() if layer != "lm_head"]
            result = {"gpu": gpu, "model": model, "donor": donor, "computes": computes, "projection": True}
            found.append(result | {"share": (min(values), max(values)), "rows": rows})
    return found


def capability(sheet):
    """CUDA compute capability as a number, 0 for what is no CUDA device."""
    return float(sheet.get("compute_capability") or 0)


def _by_place(cells):
    found = {}
    for cell in cells:
        if cell["kind"] == "scheme":
            found.setdefault((cell["gpu"], cell["model"]), []).append(cell)
    return found


def _achieved(cells):
    """(scheme, what its products compute, shares to take over, shares in 16 bits) of one device and model.

    Shares are {(layer, m): (value, low, high)}; empty where no such product was timed, or the data sheet has no such rate.
    """
    schemes = {}
    for cell in cells:
        schemes.setdefault(cell["entry"], []).append(cell)
    own = {entry: {c["computes"] for c in mine if c["layer"] != "lm_head"} for entry, mine in schemes.items()}
    whole = [entry for entry, computes in own.items() if computes and computes <= {"bf16", "fp16"}]
    fp8 = [entry for entry, computes in own.items() if computes and {rate_dtype(c) for c in computes} == {"fp8"}]
    donor = next(iter(fp8 + whole), None)
    if not whole or donor is None:
        return None, None, {}, {}
    return donor, sorted(own[donor])[0], _datasheet_shares(schemes[donor]), _datasheet_shares(schemes[whole[0]])


def _datasheet_shares(cells):
    """{(layer, m): (value, None, None)}: floor by the data sheet over median."""
    # Faster than the data sheet allows is a product that stays in a cache: nothing to take elsewhere.
    return {
        (cell["layer"], cell["m"]): (min(1, cell["datasheet_share"]), None, None)
        for cell in cells
        if cell["datasheet_share"] is not None
    }


def _projected_steps(batches, shares, plain, target, kv_bandwidth, shapes, config, context):
    """{batch: (decode step in 16 bits, decode step in NVFP4)} on the target, where the shares reach that batch."""
    bandwidth, rates = target["memory_bandwidth_bytes_per_s"], target["matrix_flops_per_s"]
    body, head = ([s for s in shapes if (s["layer"] == "lm_head") is is_head] for is_head in (False, True))
    base = project(shapes, plain, None, bandwidth, rates["bf16"])
    fp4 = project(body, shares, NVFP4, bandwidth, rates["fp4"])
    fp4 = Gemms(fp4.times | project(head, plain, None, bandwidth, rates["bf16"]).times, projection=True)
    found = {}
    for batch in batches:
        try:
            found[batch] = tuple(decode_step(shapes, g, batch, context, config, kv_bandwidth) for g in (base, fp4))
        except UserError:
            # Not between measured M: no share to take over.
            continue
    return found
