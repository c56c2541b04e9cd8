"""The report's section on whole models: how much of a decode step its matrix products explain, and what FP4 might give.

`decode_rows` sets performance_model.py's decode step, from the products timed apart, beside the one that the engine took.
`fp4_projection` takes the shares of the roofline reached here to a device that was not at hand: never a measurement.
Both are pure; what follows them chooses and words.
"""

from quantbench import display, sweeps
from quantbench.errors import UserError
from quantbench.gpus import load_gpus, source_of
from quantbench.performance_model import Gemms, account, decode_step, predicted_speedup, project
from quantbench.roofline import layer_shapes, rate_dtype
from quantbench.sections import parts
from quantbench.statistics import median_ci, ratio_of_medians_ci

POINT = ("gpu", "model", "input_tokens", "output_tokens", "batch_size", "scheme")

# What products compute that quantize nothing.
PLAIN = ("bf16", "fp16", "fp32")

# Bytes of one cached key or value, by the beginning of the engine's kv_cache_dtype; "auto" is the model's own 16 bits.
KV_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "fp8": 1}

# NVFP4 as config/schemes/nvfp4.yaml has it, and the device with arithmetic for it that it is projected to.
NVFP4 = {"weights": {"num_bits": 4, "strategy": "tensor_group", "group_size": 16, "symmetric": True}}
TARGET = "b200"
# From here on (Blackwell) a device multiplies FP4 itself, and is measured instead.
FP4_CAPABILITY = 10.0
# vLLM's own limit of sequences decoded together.
MOST_SEQUENCES = 256

REST = "attention, launches, sampling and scheduling"


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
    if any(_capability(sheet) >= FP4_CAPABILITY for sheet in gpus.values()):
        return []
    found = []
    for (gpu, model), mine in _by_place(cells).items():
        if not _capability(gpus.get(gpu, {})) or model not in models:
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


def _capability(sheet):
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


# --- the section ----------------------------------------------------------------------------------------------------


def whole_model(context, datasheets):
    """{"intro", "groups", "projections"} for the template, or None where nothing can be shown.

    datasheets   config/gpus.yaml, read where there is something to project
    """
    gemm = context.tables.get("gemm")
    # A layer's part on one of several devices is no part of the model that the engine ran on one.
    if gemm is None or context.study.get("kernels", {}).get("tensor_parallel_size", 1) != 1:
        return None
    cells = [cell for cell in context.gemm_cells if cell["kind"] == "scheme" and cell["model"] in context.models]
    models = {name: model["config"] for name, model in context.manifest["models"].items() if name in context.models}
    groups = _groups(context, cells, models)
    projections = _projections(context, cells, models, datasheets)
    if not groups and not projections:
        return None
    intro = (
        "One decode step, as it would be if it were only the layers’ matrix products at M = batch size, timed apart, and "
        f"reading the KV cache at the device’s bandwidth. Beside it the step that the engine took. The rest is {REST}. "
        "Each scheme is one start of the engine, and a difference in the rest may be that start’s own."
    )
    return {"intro": intro, "groups": groups, "projections": projections}


def _groups(context, cells, models):
    """The section's parts, one per gpu, model and length of prompts and answers."""
    latency = context.ok("latency")
    if latency is None or latency.is_empty() or not cells:
        return []
    measured = _bandwidths(context)
    bandwidths = {
        gpu: measured.get(gpu) or sheet["memory_bandwidth_bytes_per_s"]
        for gpu, sheet in context.manifest["gpus"].items()
    }
    settings = {name: value for name, value in context.study["engine"].items() if value is not None}
    recipes = context.manifest["schemes"].items()
    kv_bytes = {name: _kv_bytes(settings | recipe["engine_args"]) for name, recipe in recipes}
    rows = decode_rows(latency, cells, models, bandwidths, context.baseline, kv_bytes, context.confidence)
    found = {}
    for row in rows:
        found.setdefault((row["gpu"], row["model"], row["input_tokens"], row["output_tokens"]), []).append(row)
    names = context.study["gpus"], context.models
    places = sorted(found, key=lambda place: (names[0].index(place[0]), names[1].index(place[1]), *place[2:]))
    return [_group(context, place, context.in_order(found[place])) for place in places]


def _bandwidths(context):
    """{gpu: bandwidth that the probe measured}."""
    frame = context.ok("gpus")
    rows = [] if frame is None else frame.to_dicts()
    return {row["gpu"]: row["measured_bandwidth_bytes_per_s"] for row in rows if row["measured_bandwidth_bytes_per_s"]}


def _kv_bytes(engine_args):
    """Bytes of one cached key or value under a scheme's engine arguments; None for a type that is not known here."""
    name = engine_args.get("kv_cache_dtype", "auto")
    return next((size for start, size in KV_BYTES.items() if name.startswith(start)), None)


def _group(context, place, rows):
    gpu, model, inputs, outputs = place
    # Where schemes have different batches, the smallest that most have.
    batches = [row["batch_size"] for row in rows]
    batch = min(batches, key=lambda size: (-batches.count(size), size))
    here = [row for row in rows if row["batch_size"] == batch]
    heading, notes = _explained(context, batch, here)
    between = sorted({row["batch_size"] for row in rows if row["interpolated"]})
    if between:
        sizes = f"Batch size{'' if len(between) == 1 else 's'} {display.listed(map(str, between))}"
        notes.append(f"{sizes}: products interpolated between the M measured, in logarithms.")
    return {
        "kicker": f"{gpu} · {model} · {inputs} tokens in, {outputs} out",
        "at": {"table": "latency", "gpu": gpu, "model": model, "input_tokens": inputs, "output_tokens": outputs},
        "heading": heading,
        "table": _short_table(context, here),
        "notes": notes,
        "more": [_whole_table(context, rows)],
    }


def _explained(context, batch, rows):
    """(heading, notes): which part of the baseline's step its products explain, and which speedup follows from them."""
    base = next((row for row in rows if row["scheme"] == context.baseline and row["measured_s"]), None)
    notes = []
    if base is None:
        return f"At batch {batch}, the decode step from its products", notes
    shares, name = base["shares"], context.baseline
    if shares["rest"] < 0:
        heading = f"At batch {batch}, {name}’s products timed apart take longer than its whole decode step"
    else:
        heading = f"At batch {batch}, matrix products explain {_share(shares['gemm'])} of {name}’s decode step"
        notes.append(
            f"Reading the KV cache explains another {_share(shares['kv'])}; what is left of the step, "
            f"{_share(shares['rest'])}, is {REST}."
        )
    over = [row["scheme"] for row in rows if row["shares"]["rest"] is not None and row["shares"]["rest"] < 0]
    if over:
        notes.append(
            f"Products of {display.listed(over)} take longer timed apart than the whole step, which cannot be a sum of "
            "them: apart, weights come from memory each time, and in the engine a small model’s stay in the cache. No "
            "share is given there."
        )
    compared = [row for row in rows if row["with_rest_speedup"] is not None and row["scheme"] != name]
    if compared:
        notes.append(_best_words(name, max(compared, key=lambda row: row["predicted_speedup"][0])))
    return heading, notes


def _share(value):
    return display.share(value, 0 if value >= 0.1 else 1)


def _best_words(baseline, row):
    """What the products promise of the scheme that they promise most of, what can be left of it, and what there was."""
    _, low, high = row["rest_added_s"]
    if low is None:
        end = "one repeat cannot tell whether that is more or less"
    elif low > 0:
        end = "less than the products give: the rest takes longer"
    elif high < 0:
        end = "more than the products give: the rest is shorter too"
    else:
        end = "as the products explain it"
    return (
        f"By its products, {row['scheme']} gains most: {display.factor(row['predicted_speedup'][0])} if a step were only "
        f"products and KV reads, {display.factor(row['with_rest_speedup'])} with {baseline}’s rest on top. Measured: "
        f"{display.factor(row['measured_speedup'][0])}, {end}."
    )


def _where_it_went(row):
    """The difference to the baseline's step in words: what the products save, what the rest takes."""
    if row["predicted_speedup"] is None:
        return ""
    words = [_change("products", row["gemm_saved_s"], "save", "cost", "{} more")]
    if row["rest_added_s"] is not None:
        words.append(_change("rest", tuple(_negative(row["rest_added_s"])), "saves", "takes", "{} more"))
    return "; ".join(words)


def _negative(time):
    value, low, high = time
    return -value, None if high is None else -high, None if low is None else -low


def _change(what, saved, less, more, much):
    value, low, high = saved
    if low is None:
        unsure = " (cannot tell)"
    elif low <= 0 <= high:
        return f"{what}: no clear change"
    else:
        unsure = ""
    amount = display.seconds(abs(value))
    return f"{what} {less} {amount}{unsure}" if value >= 0 else f"{what} {more} {much.format(amount)}{unsure}"


def _short_table(context, rows):
    lines = []
    for row in rows:
        is_base = row["scheme"] == context.baseline
        line = [row["scheme"], _time(row["measured_s"]), *_share_cells(row)]
        line += ["1×", "1×", "1×"] if is_base else [_factor(row[n]) for n in ("predicted_speedup", "measured_speedup")]
        if not is_base:
            line.insert(-1, display.factor(row["with_rest_speedup"]))
        lines.append([*line, "" if is_base else _where_it_went(row)])
    columns = ["scheme", "decode step", "products", "KV reads", "rest", "speedup by products"]
    columns += [f"with {context.baseline}’s rest", "measured", f"beside {context.baseline}"]
    return {"columns": columns, "rows": lines, "at": {0: "scheme"}}


def _share_cells(row):
    if row["shares"]["rest"] is None or row["shares"]["rest"] < 0:
        return [display.MISSING] * 3
    return [_share(row["shares"][name]) for name in ("gemm", "kv", "rest")]


def _whole_table(context, rows):
    """Every batch size, with intervals."""
    lines = []
    for row in sorted(rows, key=lambda row: row["batch_size"]):
        line = [row["scheme"], row["batch_size"], _interval(row["predicted_s"], display.seconds)]
        line.append(_interval(row["measured_s"], display.seconds))
        line.append(" · ".join(_share_cells(row)))
        speedups = [row[name] for name in ("predicted_speedup", "measured_speedup", "speedup")]
        is_base = row["scheme"] == context.baseline
        predicted, measured, batch = (None if is_base else _interval(s, display.factor) for s in speedups)
        expected = display.factor(row["with_rest_speedup"])
        lines.append([*line, *(["1×"] * 4 if is_base else [predicted, expected, measured, batch])])
    columns = ["scheme", "batch size", "decode step, predicted", "measured", "products · KV reads · rest"]
    columns += ["speedup by products", f"with {context.baseline}’s rest", "of the step, measured"]
    columns += ["of the whole batch, measured"]
    note = (
        "Predicted: products and KV reads alone, and so the speedup by products. Measured step: time after the first token "
        "over the tokens that follow. The whole batch has its prefill too, as in the section on latency. Intervals of "
        "sums add low ends to low ends: wider than they need to be."
    )
    at = {0: "scheme", 1: "batch_size"}
    return {"title": "Every batch size, with intervals", "note": note, "columns": columns, "rows": lines, "at": at}


def _time(estimate):
    return display.MISSING if estimate is None else display.seconds(estimate[0])


def _factor(estimate):
    return display.MISSING if estimate is None else display.factor(estimate[0])


def _interval(estimate, shown):
    return display.MISSING if estimate is None else display.with_interval(estimate, shown)


def _projections(context, cells, models, datasheets):
    """The projections as the template shows them; every one says in its title, its text and its table that it is one."""
    gpus = {gpu: context.manifest["gpus"][gpu] for gpu in context.study["gpus"]}
    if not cells or not any(_capability(sheet) for sheet in gpus.values()):
        return []
    target = load_gpus(datasheets).get(TARGET)
    if target is None or target["matrix_flops_per_s"]["fp4"] is None:
        return []
    batches, tokens = _loads(context.study)
    sheets = {gpu: sheet["memory_bandwidth_bytes_per_s"] for gpu, sheet in gpus.items()}
    shares = {gpu: min(1, value / sheets[gpu]) for gpu, value in _bandwidths(context).items() if sheets.get(gpu)}
    found = fp4_projection(cells, models, gpus, target, batches, tokens, shares)
    return [_projection(one, target, tokens, shares.get(one["gpu"], 1)) for one in found]


def _loads(study):
    """(batch sizes that the study runs, cached tokens of its first length); (None, 0) where it runs no batches."""
    asked = [study[stage] for stage in ("latency", "throughput") if study.get(stage)]
    fixed = [point for sweep in asked for point in sweeps.points({**sweep, "workloads": []})]
    if not fixed:
        return None, 0
    return sorted({point["batch_size"] for point in fixed}), fixed[0]["input_tokens"] + fixed[0]["output_tokens"] / 2


def _projection(found, target, tokens, kv_share):
    gpu, low, high = found["gpu"], *found["share"]
    reached = display.share(low, 0) + (
        f" to {display.share(high, 0)}" if display.share(low, 0) != display.share(high, 0) else ""
    )
    donor = found["donor"] + ("" if found["donor"] == found["computes"] else f" ({found['computes']})")
    if rate_dtype(found["computes"]) != "fp8":
        donor += ", no FP8 product having been timed,"
    count = len(found["rows"])
    rows = [
        [
            f"nvfp4 on {TARGET}, projection",
            row["batch_size"],
            display.seconds(row["baseline_s"]),
            display.seconds(row["nvfp4_s"]),
            display.factor(row["speedup"]),
            display.factor(row["datasheet_speedup"]),
        ]
        for row in found["rows"]
    ]
    return {
        "title": (
            f"nvfp4 on {TARGET}, {found['model']}: projected from {gpu}, not measured "
            f"({count} batch size{'' if count == 1 else 's'})"
        ),
        "said": (
            f"Assumes that on {TARGET} each layer’s FP4 product reaches the share of the data sheet’s roofline that "
            f"{donor} reaches on {gpu} at the same M ({reached}), that products in 16 bits reach the share that they reach "
            f"on {gpu}, and that the KV cache of {tokens:g} tokens per sequence is read at {display.share(kv_share, 0)} of "
            "the data sheet’s bandwidth. Everything else of a step is left out. What takes the same time on every device "
            "(launches, the ends of short kernels) is scaled like the rest, so small layers will gain less than this says."
        ),
        "source": f"Data sheet: {' '.join(source_of(target, 'matrix_flops_per_s').split())}",
        "columns": [
            "projection, not measured",
            "batch size",
            "decode step in 16 bits",
            "decode step in nvfp4",
            "speedup, projected",
            "by data sheet alone",
        ],
        "rows": rows,
    }
