"""The report's section on matrix products: each beside its roofline, and what it gains.

The study's schemes are drawn and compared; contenders (other kernels timed beside them) stand in a table of their own.
kernel_analysis.py computes, this module chooses and words.
"""

import polars as pl

from quantbench import charts, display
from quantbench import kernel_analysis as analysis
from quantbench.evidence import STATES
from quantbench.relu_linear import RECIPES, expected_speedup, recipe_of
from quantbench.roofline import rate_dtype
from quantbench.sections import panel, point, rescaled

# More charts than this of one device and model are too many to look at: the least and the greatest M, and some between.
MOST_CHARTS = 4


def kernels(context):
    intro = (
        "Each line is one layer's matrix product in one scheme, alone, timed through the engine's own layer with its "
        "weights in memory, not in the cache. The point is the time measured. The tick is its floor, the least time "
        "that this device allows: the time to move its data at its measured bandwidth, or to multiply at its measured "
        "rate, whichever is longer. The longer the line between the two, the more the kernel leaves unused."
    )
    gemm = context.tables.get("gemm")
    if gemm is None or gemm.is_empty():
        return context.section("gemm", "Kernels beside the roofline", intro, [], asked="kernels")
    cells = context.gemm_cells
    relu = analysis.relu_speedups(gemm, context.baseline, _expectation(context), context.confidence)
    groups, told = [], set()
    for gpu, model in _places(context, cells):
        here = [cell for cell in cells if (cell["gpu"], cell["model"]) == (gpu, model)]
        with_relu = [cell for cell in relu if (cell["gpu"], cell["model"]) == (gpu, model)]
        # What the device as a whole refuses is told once, below its first model.
        untimed = _untimed(context, gpu, model, with_device=gpu not in told)
        told.add(gpu)
        at = {"table": "gemm", "gpu": gpu, "model": model, "product": "linear", "cache": "cold"}
        group = _group(context, here, with_relu, untimed)
        groups.append({"kicker": f"{gpu} · {model}", "at": at, "x": "m", **group})
    return context.section("gemm", "Kernels beside the roofline", intro, groups, asked="kernels")


def _places(context, cells):
    """[(gpu, model)] in the study's order: its models, then its sets of shapes."""
    models = [*context.models, *context.study.get("kernels", {}).get("shapes", [])]
    found = dict.fromkeys((cell["gpu"], cell["model"]) for cell in cells)
    return sorted(found, key=lambda place: (_index(context.study["gpus"], place[0]), _index(models, place[1])))


def _index(names, name):
    return names.index(name) if name in names else len(names)


def _group(context, cells, relu, untimed):
    """The charts and tables of one device and model."""
    schemes = [cell for cell in cells if cell["kind"] == "scheme"]
    contenders = [cell for cell in cells if cell["kind"] == "contender"]
    # A layer that no scheme quantizes is one point of the study, drawn once.
    own = [cell for cell in schemes if cell["same_as"] != context.baseline]
    shown = sorted({cell["m"] for cell in own})
    drawn = _spread(shown, MOST_CHARTS)
    panels = [_roofline_panel(context, m, [cell for cell in own if cell["m"] == m]) for m in drawn]
    panels += _speedup_panel(context, own)
    heading, notes = _reached(own)
    if len(drawn) < len(shown):
        notes.append(f"Drawn at {len(drawn)} of the {len(shown)} values of M measured; the tables have them all.")
    notes += _shared(context, schemes)
    winners = analysis.winners(schemes, context.confidence)
    notes += _fastest_notes(winners)
    dropped = sum(cell["invalid_repeats"] for cell in cells)
    if dropped:
        notes.append(f"{dropped} repeats do not count (throttled, say): see the column “reason” of tables/gemm.csv.")
    more = [
        _speedup_table(context, own),
        _crossover_table(context, cells),
        _winner_table("The fastest scheme, by layer and M", winners),
        _contender_table(context, contenders),
        _winner_table("The fastest of all, by layer and M", analysis.winners(cells, context.confidence))
        if contenders
        else None,
        _relu_table(context, relu),
        untimed,
    ]
    return {
        "heading": heading,
        "panels": panels,
        "notes": notes,
        "numbers": _numbers(context, own),
        "more": [table for table in more if table and table["rows"]],
    }


def _spread(values, most):
    """At most `most` of sorted values, the first and the last among them, the others evenly between."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


# --- charts ---------------------------------------------------------------------------------------------------------


def _roofline_panel(context, m, cells):
    rows = context.in_order([{**_row(cell), "layer": cell["layer"], "floor": cell["floor_s"]} for cell in cells])
    unit, size = display.time_unit(max(row["value"] for row in rows))
    chart = charts.roofline(rescaled(rows, size), context.look, x_title=f"{unit}, log scale")
    said = [{**row, "scheme": f"{row['scheme']}, {row['layer']}"} for row in rows]
    return panel(f"M = {m} {'token' if m == 1 else 'tokens'} at once", chart, said)


def _row(cell):
    return point(cell["entry"], cell["m"], (cell["median_s"], cell["low_s"], cell["high_s"]), display.seconds)


def _speedup_panel(context, cells):
    """Predicted and observed speedups over M of the layer with the largest weight; none for fewer than two M."""
    compared = [c for c in cells if c["observed_speedup"] is not None and c["entry"] != context.baseline]
    if not compared:
        return []
    n, k, layer = max((cell["n"] * cell["k"], cell["n"], cell["k"], cell["layer"]) for cell in compared)[1:]
    compared = [cell for cell in compared if (cell["layer"], cell["n"], cell["k"]) == (layer, n, k)]
    if len({cell["m"] for cell in compared}) < 2:
        return []
    rows = []
    for cell in compared:
        row = point(cell["entry"], cell["m"], _observed(cell), display.factor)
        said = f"{row['text']}, predicted {display.factor(cell['predicted_speedup'])}"
        rows.append({**row, "predicted": cell["predicted_speedup"], "text": said})
    rows = context.in_order(rows)
    chart = charts.speedups(rows, context.look, x_title="M, tokens at once", y_title=f"× {context.baseline}, log scale")
    title = f"Speedup on {layer}, its weight being the largest: points observed, dashes predicted by the floors"
    return [panel(title, chart, rows, "M")]


def _observed(cell):
    return cell["observed_speedup"], cell["observed_low"], cell["observed_high"]


# --- sentences ------------------------------------------------------------------------------------------------------


def _reached(cells):
    """What the shares of the roofline say. One above 1 is no achievement but a fault of the floor or of the timing."""
    known = [(cell["share"], f"{cell['entry']}, {cell['layer']}, M = {cell['m']}") for cell in cells if cell["share"]]
    possible, beyond = [k for k in known if k[0] <= 1], [what for used, what in known if used > 1]
    notes = []
    if len(known) < len(cells):
        notes.append("No tick: no ceiling of this device was measured for what that kernel computes.")
    if beyond:
        more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
        notes.append(
            f"Faster than the floor, left of the tick, which cannot be: {'; '.join(beyond[:3])}{more}. There "
            "the measured ceilings are too low for this shape (a product that stays in cache, say), so its floor says "
            "nothing."
        )
    if not possible:
        return "Time of each layer's matrix product", notes
    used, what = max(possible)
    return f"At best, a kernel reaches {display.share(used, 0)} of what the device allows ({what})", notes


def _shared(context, cells):
    """Which measurements stand for several schemes."""
    left = dict.fromkeys(cell["layer"] for cell in cells if cell["same_as"] == context.baseline)
    notes = []
    if left:
        notes.append(
            f"{display.listed(left)}: left in 16 bits by the other schemes too, so measured once and shown for "
            f"{context.baseline}."
        )
    twins = {}
    for cell in cells:
        if cell["same_as"] not in (None, context.baseline):
            twins.setdefault(cell["same_as"], {})[cell["entry"]] = True
    notes += [
        f"{display.listed([first, *others])} have one format, so one kernel: measured once."
        for first, others in twins.items()
    ]
    return notes


def _fastest_notes(winners):
    """Which scheme wins at the least and at the greatest M, in a sentence each."""
    found = [winner for winner in winners if winner["verdict"] != "alone"]
    tokens = sorted({winner["m"] for winner in found})
    notes = []
    for m in dict.fromkeys(tokens[:1] + tokens[-1:]):
        at_m = [winner for winner in found if winner["m"] == m]
        wins = [winner["best"] for winner in at_m if winner["verdict"] == "wins"]
        best = max(dict.fromkeys(wins), key=wins.count, default=None)
        of = "the one layer compared" if len(at_m) == 1 else f"{wins.count(best)} of {len(at_m)} layers"
        said = f"{best} is the fastest scheme on {of}" if best else "no scheme is measurably the fastest on any layer"
        notes.append(f"At M = {m}, {said}.")
    return [" ".join(notes)] if notes else []


def crossover_words(crossover):
    """Between which M a scheme pays: "pays up to M = 180 [150, 210]"."""
    tokens, at = crossover["tokens"], crossover["at"]
    across = f"measured, {tokens[0]} to {tokens[-1]}"
    unclear = f"M = {display.listed(map(str, crossover['unclear']))}" if crossover["unclear"] else ""
    if crossover["outcome"] == "always":
        return f"pays at every M {across}" + (f"; not significantly at {unclear}" if unclear else "")
    if crossover["outcome"] == "never":
        return f"pays at no M {across}" + (f"; no significant difference at {unclear}" if unclear else "")
    ends = ""
    if crossover["interval"]:
        low = f"< {tokens[0]}" if crossover["low_open"] else _tokens(crossover["low"])
        high = f"> {tokens[-1]}" if crossover["high_open"] else _tokens(crossover["high"])
        ends = f" [{low}, {high}]"
    stops = crossover["outcome"] == "stops"
    said = f"pays up to M = {_tokens(at)}{ends}" if stops else f"pays from M = {_tokens(at)}{ends} on"
    turns = {"starts": "again from", "stops": "no longer from"}
    return said + "".join(f"; {turns[kind]} M = {_tokens(m)}" for kind, m in crossover["then"])


def _tokens(m):
    return f"{m:.0f}" if m >= 10 else f"{m:.1f}"


# --- tables ---------------------------------------------------------------------------------------------------------


def _table(title, columns, rows, note=None):
    return {"title": title, "note": note, "columns": columns, "rows": rows}


def _numbers(context, cells):
    with_sheet = any(cell["datasheet_floor_s"] for cell in cells)
    rows = []
    for cell in sorted(cells, key=lambda cell: cell["m"]):
        row = [cell["entry"], cell["layer"], cell["m"], cell["kernel"] or display.MISSING, _row(cell)["text"]]
        row += [display.seconds(cell["floor_s"]), display.share(cell["share"], 0)]
        rows.append(row + ([display.share(cell["datasheet_share"], 0)] if with_sheet else []))
    columns = ["scheme", "layer", "M", "kernel", "measured", "floor", "of the roofline"]
    columns += ["of the data sheet’s"] if with_sheet else []
    return {"columns": columns, "rows": rows, "at": {0: "scheme", 1: "layer", 2: "m"}}


def _speedup_table(context, cells):
    compared = [c for c in cells if c["observed_speedup"] is not None and c["entry"] != context.baseline]
    with_sheet = any(cell["datasheet_predicted_speedup"] for cell in compared)
    rows = []
    for cell in sorted(compared, key=lambda cell: cell["m"]):
        row = [cell["entry"], cell["layer"], cell["m"], display.factor(cell["predicted_speedup"])]
        row += [display.factor(cell["datasheet_predicted_speedup"])] if with_sheet else []
        rows.append([*row, display.with_interval(_observed(cell), display.factor)])
    columns = ["scheme", "layer", "M", "predicted", *(["by the data sheet"] if with_sheet else []), "observed"]
    note = f"Predicted: the floor of {context.baseline} over the scheme's own. Observed: the one time over the other."
    table = _table(f"Speedup over {context.baseline}: predicted and observed", columns, rows, note)
    return table | {"at": {0: "scheme", 1: "layer", 2: "m"}}


def _crossover_table(context, cells):
    found = analysis.crossovers(cells, context.baseline, context.confidence)
    order = {scheme: place for place, scheme in enumerate(context.look)}
    found.sort(key=lambda one: (one["kind"] != "scheme", order.get(one["entry"], len(order))))
    rows = [[one["entry"], one["layer"], f"{one['n']} × {one['k']}", crossover_words(one)] for one in found]
    note = (
        f"It pays where it is faster than {context.baseline}. M where it stops is interpolated between the measured "
        "ones, in logarithms; in brackets the interval from the repeats."
    )
    return _table("Up to which M it pays", ["scheme or kernel", "layer", "N × K", ""], rows, note)


def _winner_table(title, winners):
    """Layers by M: the fastest, or those that cannot be told from it."""
    found = [winner for winner in winners if winner["verdict"] != "alone"]
    tokens = sorted({winner["m"] for winner in found})
    layers = {}
    for winner in found:
        layers.setdefault((winner["layer"], winner["n"], winner["k"]), {})[winner["m"]] = _winner_words(winner)
    rows = [[layer, *(by_m.get(m, display.MISSING) for m in tokens)] for (layer, *_), by_m in layers.items()]
    note = (
        "“a ≈ b” is no significant difference: the interval of the ratio of their times, adjusted for the number of "
        "rivals (Holm), holds 1. Kernels that leave quantizing the activations out do not compete."
    )
    return _table(title, ["layer", *(f"M = {m}" for m in tokens)], rows, note)


def _winner_words(winner):
    if winner["verdict"] == "wins":
        times = display.with_interval((winner["ratio"], winner["low"], winner["high"]), display.factor)
        return f"{winner['best']}, by {times}"
    if winner["verdict"] == analysis.CANNOT_TELL:
        return "cannot tell (needs more repeats)"
    others = winner["undecided"]
    return f"{winner['best']} ≈ " + (others[0] if len(others) == 1 else f"{others[0]} and {len(others) - 1} more")


def _contender_table(context, cells):
    rows = []
    for cell in sorted(cells, key=lambda cell: (cell["n"] * cell["k"], cell["m"], cell["median_s"])):
        remarks = ["quantizing left out"] if cell["includes_quantization"] is False else []
        remarks += ["launched call by call"] if _lacks_graph(cell, cells) else []
        speedup = (
            display.with_interval(_observed(cell), display.factor) if cell["observed_speedup"] else display.MISSING
        )
        row = [cell["entry"], cell["kernel"] or display.MISSING, cell["layer"], cell["m"], cell["computes"]]
        row += [_row(cell)["text"], display.share(cell["share"], 0), speedup, ", ".join(remarks)]
        rows.append([display.MISSING if value is None else value for value in row])
    names = len({cell["entry"] for cell in cells})
    columns = [
        "kernel",
        "class",
        "layer",
        "M",
        "computes",
        "measured",
        "of the roofline",
        f"over {context.baseline}",
        "",
    ]
    note = "Kernels that the study names besides its schemes: timed the same way, and no part of its recommendation."
    return _table(f"Also timed: {names} other kernel{'' if names == 1 else 's'}", columns, rows, note)


def _lacks_graph(cell, cells):
    return cell["launch"] == "eager" and any(other["launch"] == "graph" for other in cells)


def _relu_table(context, cells):
    rows = [
        [
            cell["entry"],
            cell["kernel"] or display.MISSING,
            cell["layer"],
            cell["m"],
            display.factor(cell["expected_speedup"]),
            display.with_interval(_observed(cell), display.factor) if cell["observed_speedup"] else display.MISSING,
        ]
        for cell in sorted(cells, key=lambda cell: cell["m"])
    ]
    note = (
        "As torchao's roofline reports it: a ReLU on the activations, then the product, quantizing included. Expected: "
        "from the measured ceilings, with the ReLU fused into the kernel that quantizes and no kernel below 2 µs; a dash "
        "where that definition does not apply (weight-only formats, calibrated scales)."
    )
    columns = ["scheme or kernel", "class", "layer", "M", "expected", "observed"]
    return _table(f"ReLU, then the product: speedup over {context.baseline}", columns, rows, note)


def _expectation(context):
    """A function of a ReLU cell: the speedup that torchao's definition gives it with this device's measured ceilings."""
    devices = context.ok("gpus")
    ceilings = {} if devices is None else {gpu: frame for (gpu,), frame in _by(devices, "gpu")}
    formats = {("scheme", name): recipe["format"] for name, recipe in context.manifest["schemes"].items()}
    contenders = context.manifest.get("contenders", {})
    formats |= {("contender", name): spec["format"] for name, spec in contenders.items()}

    def expected(cell):
        recipe, device = recipe_of(formats.get((cell["kind"], cell["entry"]))), ceilings.get(cell["gpu"])
        # Quantizing is part of the definition, and an emulated format has another product.
        counts = recipe and cell["includes_quantization"] and rate_dtype(cell["computes"]) == RECIPES[recipe]["rate"]
        if not counts or device is None:
            return None
        rates = dict(zip(device["dtype"], device["measured_flops_per_s"], strict=True))
        bandwidth = device["measured_bandwidth_bytes_per_s"][0]
        shares = {"bandwidth_share": 1, "rate_share": 1}
        return expected_speedup(cell["m"], cell["k"], cell["n"], recipe, bandwidth, rates, **shares)

    return expected


def _by(frame, key):
    return frame.partition_by([key], as_dict=True, maintain_order=True).items()


def _untimed(context, gpu, model, with_device):
    """What was not timed, and why: contenders and sets of shapes. What is missing of a scheme is in its own section."""
    frame = context.tables["gemm"].filter(pl.col("status") != "ok", pl.col("gpu") == gpu, pl.col("repeat").is_null())
    counts = {}
    for row in frame.to_dicts():
        beside = row["contender"] is not None or row["model"] not in context.models
        if beside and (row["model"] == model or (with_device and row["model"] is None)):
            what = row["contender"] or row["scheme"], row["status"], row["reason"], row["model"] is None
            counts[what] = counts.get(what, 0) + 1
    rows = [
        [entry, STATES.get(status, status), "all" if everywhere else count, reason or ""]
        for (entry, status, reason, everywhere), count in counts.items()
    ]
    return _table("Not timed, and why", ["scheme or kernel", "state", "products", "reason"], rows)
