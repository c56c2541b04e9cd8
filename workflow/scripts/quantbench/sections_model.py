"""The report's section on whole models, in words: how much of a decode step its products explain, and what FP4 might give.

model_step.py computes; this module chooses and words.
"""

from quantbench import display, sweeps
from quantbench.gpus import load_gpus, source_of
from quantbench.model_step import TARGET, capability, decode_rows, fp4_projection
from quantbench.roofline import rate_dtype

# Bytes of one cached key or value, by the beginning of the engine's kv_cache_dtype; "auto" is the model's own 16 bits.
KV_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "fp8": 1}

REST = "attention, launches, sampling and scheduling"


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
    if not cells or not any(capability(sheet) for sheet in gpus.values()):
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
