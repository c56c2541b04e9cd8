"""The report's section on what quantizing costs: time, memory, bits, the room it frees, and each layer's rounding error."""

from statistics import median

from quantbench import charts, display
from quantbench.keys import canonical_json
from quantbench.schemes import modifier_names
from quantbench.sections import panel

INTRO = (
    "Each quantized layer against the same layer of the 16-bit model, by itself: 20 dB is an error a tenth as large as what it "
    "is added to, and every 6 dB halve it. The point is the middle layer, the line reaches from the worst to the best. Outputs "
    "are what the next layer sees, on text that nothing was calibrated on where there is such, with inputs rounded as the "
    "scheme does; weights are what the file holds. Bits per weight count scales and zero points."
)
AS_PAPERS = (
    "This is the order that the papers give. Rounding to the nearest makes each weight's own error the least, and nothing else; "
    "GPTQ (arXiv 2210.17323) and AWQ (arXiv 2306.00978) make the error of the outputs on calibration text the least: GPTQ moves "
    "weights further to make up for the rounding of others, AWQ gives channels with large inputs finer steps."
)
BY_WEIGHTS = " So by weights alone rounding to the nearest looks best."
NOT_AS_PAPERS = (
    "By the papers GPTQ (arXiv 2210.17323) and AWQ (arXiv 2306.00978) keep the outputs closer than rounding to the nearest; here "
    "{others} {verb} not. That happens where no channel's inputs stand out, which leaves little to gain, and where the "
    "calibration text is too little or unlike the text measured on."
)
ROUNDING = "rounding"


def price(context):
    """The section, or None where the study quantizes nothing itself."""
    frame = context.tables.get("checkpoints")
    rows = [] if frame is None else [row for row in frame.to_dicts() if row["quantize_s"] is not None]
    groups = []
    for model in context.models:
        if mine := context.in_order([row for row in rows if row["model"] == model]):
            errors = _errors(context, model)
            groups.append({"kicker": model, **_group(context, model, mine, errors)})
            groups += [
                {"kicker": f"{model} · {scheme}", **group} for scheme, group in _calibrations(context, mine, errors)
            ]
    return context.section("price", "Price of quantizing", INTRO, groups, asked="schemes") if groups else None


# --- one model ----------------------------------------------------------------------------------------------------------


def _errors(context, model):
    """{scheme: {texts: {"weights" and "outputs": (median, least, most) in dB or None}}}, texts in the study's order."""
    frame, found = context.ok("layers"), {}
    for row in [] if frame is None else frame.to_dicts():
        if row["model"] == model:
            of = found.setdefault(row["scheme"], {}).setdefault(row["texts"], {"weights": [], "outputs": []})
            of["weights"].append(row["weight_sqnr_db"])
            of["outputs"].append(row["output_sqnr_db"])
    return {
        scheme: {texts: {name: _spread(values) for name, values in of.items()} for texts, of in by_texts.items()}
        for scheme, by_texts in found.items()
    }


def _spread(values):
    known = [value for value in values if value is not None]
    return (median(known), min(known), max(known)) if known else None


def _first(errors, scheme, name):
    """The spread on the first calibration's texts, or None."""
    return next((of[name] for of in errors.get(scheme, {}).values()), None)


def _group(context, model, mine, errors):
    panels, names = [], {"outputs": "Outputs of the layers", "weights": "Weights of the layers"}
    for name, title in names.items():
        rows = [
            {"scheme": r["scheme"], "value": s[0], "low": s[1], "high": s[2], "text": _decibels(s)}
            for r in mine
            if (s := _first(errors, r["scheme"], name))
        ]
        if rows:
            panels.append(panel(title, charts.intervals(rows, context.look, x_title="signal over noise, dB"), rows))
    tokens, on_gpu = _cache_tokens(context, model), any(row["peak_device_memory_bytes"] for row in mine)
    table = [
        [
            row["scheme"],
            display.seconds(row["quantize_s"]),
            display.amount(row["peak_memory_bytes"], "B"),
            *([display.amount(row["peak_device_memory_bytes"], "B")] if on_gpu else []),
            _calibrated(row),
            display.MISSING if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.3f}",
            *(_decibels(_first(errors, row["scheme"], name)) for name in names),
            *(_room(found, row["scheme"], context.baseline) for found in tokens.values()),
        ]
        for row in mine
    ]
    columns = [
        "scheme",
        "quantized in",
        "host memory",
        *(["GPU memory"] if on_gpu else []),
        "calibrated on",
        "bits per weight",
    ]
    columns += ["outputs, dB: middle layer, worst to best", "weights, dB"]
    columns += [f"KV cache on {gpu}, tokens" for gpu in tokens]
    notes = _order_notes(context, mine, errors) + _room_notes(context, tokens) + _not_compared(context, model)
    numbers = {"columns": columns, "rows": table}
    return {"heading": _heading(context, mine, errors), "panels": panels, "notes": notes, "numbers": numbers}


def _heading(context, mine, errors):
    found = [(s[0], row["scheme"]) for row in mine if (s := _first(errors, row["scheme"], "outputs"))]
    what = "Outputs"
    if not found:
        found = [(s[0], row["scheme"]) for row in mine if (s := _first(errors, row["scheme"], "weights"))]
        what = "Weights"
    if not found:
        slowest = max(mine, key=lambda row: row["quantize_s"])
        return f"{slowest['scheme']} took the longest: {display.seconds(slowest['quantize_s'])}"
    (least, furthest), (most, closest) = min(found), max(found)
    heading = f"{what} stay closest with {closest}: {most:.1f} dB in the middle layer"
    return heading + (f"; furthest off with {furthest}: {least:.1f} dB" if len(found) > 1 else "")


def _decibels(spread):
    return display.MISSING if spread is None else "{:.1f}, {:.1f} to {:.1f}".format(*spread)


def _calibrated(row):
    if row["calibration"] is None:
        return display.MISSING
    if row["calibration_rows"] is None:
        return row["calibration"]
    return f"{row['calibration']}: {row['calibration_rows']:,} rows, {row['calibration_tokens']:,} tokens"


def _not_compared(context, model):
    frame = context.tables.get("layers")
    rows = [] if frame is None else frame.to_dicts()
    failed = {row["scheme"]: row["reason"] for row in rows if row["model"] == model and row["status"] != "ok"}
    return [f"The layers of {scheme} were not compared: {reason}." for scheme, reason in failed.items()]


# --- RTN, GPTQ, AWQ -------------------------------------------------------------------------------------------------------


def method(scheme):
    """What rounds: "rounding" to the nearest, or the names of the modifiers that see data."""
    names = [name.removesuffix("Modifier") for name in modifier_names(scheme)]
    return " + ".join(name for name in names if name != "Quantization") or ROUNDING


def _order_notes(context, mine, errors):
    """For each number format that several methods reached: their order by outputs and by weights, and whether it is the papers'."""
    by_format = {}
    for row in mine:
        scheme, name = context.manifest["schemes"][row["scheme"]], row["scheme"]
        # One that spares layers is judged by fewer of them.
        if _first(errors, name, "outputs") and "spare" not in scheme:
            by_format.setdefault(canonical_json(scheme["format"]), {}).setdefault(method(scheme), name)
    notes = []
    for methods in by_format.values():
        if ROUNDING not in methods or len(methods) < 2:
            continue
        said = []
        for what in ("outputs", "weights"):
            order = sorted(((_first(errors, name, what)[0], name) for name in methods.values()), reverse=True)
            said.append(f"{what} {', '.join(f'{name} {value:.1f} dB' for value, name in order)}")
        reached = {name: _first(errors, name, "outputs")[0] for name in methods.values()}
        base = reached.pop(methods[ROUNDING])
        others = [name for name, value in reached.items() if value <= base]
        why = NOT_AS_PAPERS.format(others=display.listed(others), verb="does" if len(others) == 1 else "do")
        weights = {name: _first(errors, name, "weights")[0] for name in methods.values()}
        nearest = max(weights, key=weights.get) == methods[ROUNDING]
        why = why if others else AS_PAPERS + (BY_WEIGHTS if nearest else "")
        # The reason is the same for each format: said once.
        why = "" if any(note.endswith(why) for note in notes) else f" {why}"
        notes.append(f"In one and the same format, best first: {'; '.join(said)}.{why}")
    return notes


# --- calibrations of one scheme -------------------------------------------------------------------------------------------


def _calibrations(context, mine, errors):
    """(scheme, group) of each scheme that the study quantizes with several calibrations: each on the texts of all."""
    variants = {}
    for row in mine:
        variants.setdefault(row["scheme"].partition(".")[0], []).append(row)
    for scheme, rows in variants.items():
        texts = list(dict.fromkeys(t for row in rows for t in errors.get(row["scheme"], {}) if t is not None))
        if len(rows) < 2 or not texts:
            continue
        table, best = [], {}
        for row in rows:
            found = {t: errors.get(row["scheme"], {}).get(t, {}).get("outputs") for t in texts}
            table.append([row["scheme"], _calibrated(row), *(_decibels(found[t]) for t in texts)])
            for t in texts:
                if found[t] and found[t][0] > best.get(t, (0, None))[0]:
                    best[t] = found[t][0], row["calibration"]
        said = [f"on texts of {t} calibrated on {name}, {value:.1f} dB" for t, (value, name) in best.items()]
        columns = ["scheme", "calibrated on", *(f"outputs on texts of {t}, dB" for t in texts)]
        notes = [
            "What this does to answers and perplexity is in the sections above, where each is a scheme of its own."
        ]
        heading = f"{scheme} keeps most of its outputs {'; '.join(said)}"
        yield scheme, {"heading": heading, "panels": [], "notes": notes, "numbers": {"columns": columns, "rows": table}}


# --- room for the cache ---------------------------------------------------------------------------------------------------


def _cache_tokens(context, model):
    """{gpu: {scheme: tokens}} by the engine's own count, first starts; gpus without any are left out."""
    frame, found = context.ok("memory"), {}
    for row in [] if frame is None else frame.to_dicts():
        if row["model"] == model and row["start"] == 1 and row["kv_cache_tokens"] is not None:
            found.setdefault(row["gpu"], {})[row["scheme"]] = row["kv_cache_tokens"]
    return found


def _room(tokens, scheme, baseline):
    """ "120,000 (+20,000)": the cache, and how much more than the baseline's."""
    if scheme not in tokens:
        return display.MISSING
    more = tokens[scheme] - tokens[baseline] if baseline in tokens else 0
    return f"{tokens[scheme]:,}" + (f" ({more:+,})".replace("-", "−") if more else "")


def _room_notes(context, tokens):
    notes = []
    for gpu, found in tokens.items():
        if len(found) > 1 and len(set(found.values())) == 1:
            fixed = context.study["engine"].get("kv_cache_memory_bytes")
            why = (
                "the study fixes it (engine.kv_cache_memory_bytes)"
                if fixed
                else "the engine sizes it without the weights"
            )
            notes.append(
                f"The KV cache on {gpu} is the same for every scheme, {next(iter(found.values())):,} tokens: {why}."
            )
    return notes
