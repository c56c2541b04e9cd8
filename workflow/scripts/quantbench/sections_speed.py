"""The report's sections on latency and throughput. Serving and kernels have their own."""

from quantbench import charts, display
from quantbench.crossover import CROSSES, NONE, UNDECIDED, crossovers
from quantbench.sections import panel, parts, point, rescaled
from quantbench.statistics import median_ci

# The two phases of a batch: the comparison's metric, the table's column, and what they are called.
PHASES = (
    ("prefill", "ttft_s", "Prefill, until every sequence has its first token"),
    ("decode", "tpot_s", "Decode, each further token"),
)
# More crossovers than these are in the table alone.
CROSSINGS_SAID = 3
PHASES_NOTE = (
    "Medians with their intervals. Prompts that do not fit one step of the engine are computed in several; sequences whose "
    "prompt is done then generate already, which counts as prefill."
)
CROSSOVER_NOTE = (
    "Where the faster of two schemes changes, interpolated between measured batch sizes, with a bootstrap interval. A batch "
    "size at which the interval of their ratio holds 1 is not decided, and nothing is said beyond the measured range."
)


def latency(context):
    intro = (
        "Time from handing a batch of prompts to the engine until its last token: the median of the repeats, with its "
        "{ci} % interval as a bar. Lower is better; in the gain, higher is better."
    )
    return context.section("latency", "Latency by batch size", intro, _batches(context, "latency"))


def throughput(context):
    intro = (
        "Tokens generated per second of a batch handed over at once: the median of the repeats, with its {ci} % "
        "interval as a bar. Higher is better."
    )
    return context.section("throughput", "Throughput by batch size", intro, _batches(context, "throughput"))


def _batches(context, stage):
    groups, metrics = [], [stage, *([name for name, *_ in PHASES] if stage == "latency" else [])]
    crossings = {metric: crossovers(context.tables, metric, context.confidence) for metric in metrics}
    keys = ["gpu", "model", "input_tokens", "output_tokens", *(["workload"] if stage == "throughput" else [])]
    for place, frame in context.grouped(stage, keys):
        where = dict(zip(keys, place, strict=True))
        crossed = {
            metric: [pair for pair in found if where.items() <= pair.items()] for metric, found in crossings.items()
        }
        workload = where.get("workload")
        load = (
            f"workload {workload}" if workload else f"{where['input_tokens']} tokens in, {where['output_tokens']} out"
        )
        kicker = f"{where['gpu']} · {where['model']} · {load}"
        group = _latency_group if stage == "latency" else _throughput_group
        at = {"table": stage, **where}
        groups.append({"kicker": kicker, "at": at, "x": "batch_size", **group(context, where, frame, crossed)})
    return groups


def _gains(context, metric, where):
    """Chart rows of the gain over the baseline, batch by batch: the summary's, so that page and first screen agree."""
    rows = [
        point(entry["scheme"], speed["batch_size"], (speed["gain"], speed["low"], speed["high"]), display.factor)
        for entry in context.summary
        if (entry["gpu"], entry["model"]) == (where["gpu"], where["model"])
        for speed in entry["batches"] + entry["phases"]
        if speed["metric"] == metric
        and all(speed[name] == where.get(name) for name in ("input_tokens", "output_tokens", "workload"))
    ]
    return context.in_order(rows)


def _estimates(context, frame, column, shown, work=None):
    """Chart rows of a column's median, batch by batch; of `work` over it where a column of that is named."""
    rows = []
    for (scheme, batch), part in parts(frame, ["scheme", "batch_size"]):
        values = part[column].drop_nulls().to_list()
        if values:
            estimate = median_ci(values, context.confidence)
            rows.append(point(scheme, batch, _rate(part[work][0], estimate) if work else estimate, shown))
    return context.in_order(rows)


def _latency_group(context, where, frame, crossed):
    made, gains = _estimates(context, frame, "elapsed_s", display.seconds), _gains(context, "latency", where)
    unit, size = display.time_unit(max(row["value"] for row in made))
    least, title = min(row["x"] for row in made), "Time per batch"
    at, how = (context, where["gpu"], where["model"]), "is {gain} as fast as {base}"
    group = {
        "heading": heading(*at, gains, least, f"At batch {least}", how),
        "panels": [_panel(context, title, rescaled(made, size), f"{unit}, log scale", log=True, said=made)],
        "notes": [],
        "numbers": _numbers(context, title, made, gains),
    }
    group["panels"] += _gain_panels(context, f"Gain over {context.baseline}", gains)
    columns, cells = ["scheme", "batch size"], []
    for metric, column, name in PHASES:
        gains = _gains(context, metric, where)
        group["panels"] += _gain_panels(context, f"{name}: gain over {context.baseline}", gains)
        if gains:
            group["notes"].append(f"{name}: {_lower(heading(*at, gains, least, f'At batch {least}', how))}.")
        columns += [_lower(name), f"gain over {context.baseline}"]
        cells += [_texts(_estimates(context, frame, column, display.seconds)), _texts(gains)]
    places = dict.fromkeys(place for column in cells for place in column)
    rows = [[*place, *(column.get(place, "") for column in cells)] for place in places]
    apart = {"title": "Prefill and decode apart", "note": PHASES_NOTE, "columns": columns, "rows": rows}
    return _with_crossings(group, crossed, [apart])


def _throughput_group(context, where, frame, crossed):
    def shown(value):
        return display.rate(value, "tokens/s")

    made = _estimates(context, frame, "elapsed_s", shown, "total_output_tokens")
    gains = _gains(context, "throughput", where)
    most, title = max(row["x"] for row in made), "Tokens per second"
    how = "has {gain} the throughput of {base}"
    group = {
        "heading": heading(context, where["gpu"], where["model"], gains, most, f"At batch {most}", how),
        "panels": [_panel(context, title, made, "tokens/s, log scale", log=True)],
        "notes": [],
        "numbers": _numbers(context, title, made, gains),
    }
    group["panels"] += _gain_panels(context, f"Gain over {context.baseline}", gains)
    return _with_crossings(group, crossed, [])


def _panel(context, title, rows, y_title, said=None, **options):
    chart = charts.lines(rows, context.look, x_title="batch size", y_title=y_title, **options)
    return panel(title, chart, said or rows, "batch")


def _gain_panels(context, title, gains):
    return [_panel(context, title, gains, f"× {context.baseline}", reference=1)] if gains else []


def _numbers(context, title, made, gains):
    ratios = _texts(gains)
    rows = [[*place, text, ratios.get(place, "")] for place, text in _texts(made).items()]
    columns = ["scheme", "batch size", _lower(title), f"gain over {context.baseline}"]
    return {"columns": columns, "rows": rows, "at": {0: "scheme", 1: "batch_size"}}


def _texts(rows):
    """{(scheme, batch size): text} of chart rows."""
    return {(row["scheme"], row["x"]): row["text"] for row in rows}


def _lower(text):
    return f"{text[0].lower()}{text[1:]}"


# --- crossovers -------------------------------------------------------------------------------------------------------


def _with_crossings(group, crossed, more):
    """The group with a table of its pairs' crossovers, and a sentence on those of the first metric, if there are pairs."""
    first = next(iter(crossed.values()))
    if first:
        group["notes"] += _crossing_notes(first)
        rows = [row for metric, pairs in crossed.items() for row in _crossing_rows(metric, pairs)]
        columns = ["pair", "of", "faster at small batches", "crossover, batch size", "faster at large batches"]
        more = [*more, {"title": "Crossover batch sizes", "note": CROSSOVER_NOTE, "columns": columns, "rows": rows}]
    return group | {"more": more}


def _crossing_notes(pairs):
    crossing = [(pair, one) for pair in pairs if pair["kind"] == CROSSES for one in pair["crossings"]]
    batches = [batch for pair in pairs for batch in pair["batch_sizes"]]
    if not crossing:
        undecided = sum(pair["kind"] == UNDECIDED for pair in pairs)
        open_ = f"; of {undecided} of {len(pairs)} pairs the intervals do not tell" if undecided else ""
        return [f"No two schemes are seen to cross between batch {min(batches)} and {max(batches)}{open_}."]
    said = [
        f"{one['faster_below']} is faster than {one['faster_above']} up to batch {_batch(one)}, slower beyond"
        for _, one in crossing[:CROSSINGS_SAID]
    ]
    left = len(crossing) - len(said)
    return [f"{'; '.join(said)}{f'; {left} more crossovers are in the table' if left else ''}."]


def _crossing_rows(metric, pairs):
    rows = []
    for pair in sorted(pairs, key=lambda pair: (CROSSES, UNDECIDED, NONE).index(pair["kind"])):
        names, batches = " / ".join(pair["schemes"]), pair["batch_sizes"]
        for one in pair.get("crossings", []):
            rows.append([names, metric, one["faster_below"], _batch(one), one["faster_above"]])
        if pair["kind"] == NONE:
            rows.append(
                [names, metric, pair["faster"], f"none in the range, {min(batches)} to {max(batches)}", pair["faster"]]
            )
        if pair["kind"] == UNDECIDED:
            where = f"not decided at {display.listed(map(str, pair['open']))}"
            rows.append(
                [
                    names,
                    metric,
                    display.MISSING,
                    f"{where}; elsewhere {pair['faster']}" if pair["faster"] else where,
                    display.MISSING,
                ]
            )
    return rows


def _batch(crossing):
    """6.2 [4.1, 9.0]"""
    return display.with_interval(
        (crossing["batch"], crossing["low"], crossing["high"]),
        lambda value: f"{value:.2g}" if value < 10 else f"{value:.0f}",
    )


def heading(context, gpu, model, gains, x, where, how):
    """What a comparison at one x says: the best gain whose interval leaves 1 behind, or that there is none.

    Where the best one loses accuracy it says so, and which is the best of those that do not.
    """
    here = [row for row in gains if row["x"] == x]
    if not here:
        return f"{where}, nothing stands beside {context.baseline} to compare"
    better = [row for row in here if row["low"] is not None and row["low"] > 1]
    if not better:
        return f"{where}, no scheme is measurably better than {context.baseline}"
    best = max(better, key=lambda row: row["value"])
    said = f"{where}, {best['scheme']} " + how.format(gain=display.factor(best["value"]), base=context.baseline)
    if not context.loses(gpu, model, best["scheme"]):
        return said
    kept = [row for row in better if not context.loses(gpu, model, row["scheme"])]
    best = max(kept, key=lambda row: row["value"], default=None)
    without = f"without one {best['scheme']}, {display.factor(best['value'])}" if best else "no other is better"
    return f"{said} with a loss of accuracy, {without}"


def _rate(work, estimate):
    """Work over time. The median and the ends of an interval turn around with it."""
    value, low, high = estimate
    return work / value, None if high is None else work / high, None if low is None else work / low
