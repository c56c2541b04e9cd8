"""The report's sections on speed: latency, throughput and serving. Kernels have their own, sections_kernels.py."""

from quantbench import charts, display
from quantbench.comparison import P99_REQUESTS
from quantbench.sections import panel, parts, point, rescaled
from quantbench.statistics import median_ci, quantile_ci

SERVING_TIMES = (
    ("Time to first token, median", "first_token_s", 0.5),
    ("Time to first token, p99", "first_token_s", 0.99),
    ("Whole answer, median", "finished_s", 0.5),
    ("Whole answer, p99", "finished_s", 0.99),
)
SERVING_LOADS = {
    "rate": ("rate_per_s", "requests per second", "At {x:g} requests per second"),
    "concurrency": ("concurrency", "requests at once", "With {x:g} requests at once"),
}


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
    groups, keys = [], ["gpu", "model", "input_tokens", "output_tokens"]
    for (gpu, model, inputs, outputs), frame in context.grouped(stage, keys):
        times = {place: part["elapsed_s"].to_list() for place, part in parts(frame, ["scheme", "batch_size"])}
        shown = display.seconds if stage == "latency" else lambda value: display.rate(value, "tokens/s")
        made, gains = [], []
        compared = _gains(context, gpu, model, stage, inputs, outputs)
        for (scheme, batch), values in times.items():
            estimate = median_ci(values, context.confidence)
            if stage == "throughput":
                estimate = _rate(batch * outputs, estimate)
            made.append(point(scheme, batch, estimate, shown))
            if (scheme, batch) in compared:
                gains.append(point(scheme, batch, compared[scheme, batch], display.factor))
        kicker = f"{gpu} · {model} · {inputs} tokens in, {outputs} out"
        groups.append(
            {
                "kicker": kicker,
                **_batch_group(context, stage, gpu, model, context.in_order(made), context.in_order(gains)),
            }
        )
    return groups


def _gains(context, gpu, model, metric, inputs, outputs, load=None):
    """{(scheme, batch size or load level): (gain, low, high)}: the summary's, so that page and first screen agree."""
    entries = [entry for entry in context.summary if (entry["gpu"], entry["model"]) == (gpu, model)]
    return {
        (entry["scheme"], speed.get("batch_size", speed.get("level"))): (speed["gain"], speed["low"], speed["high"])
        for entry in entries
        for speed in (entry["speed"] if load else entry["batches"])
        if (speed["metric"], speed["input_tokens"], speed["output_tokens"]) == (metric, inputs, outputs)
        and speed.get("load") == load
    }


def _batch_group(context, stage, gpu, model, made, gains):
    batches = [row["x"] for row in made]
    if stage == "latency":
        (unit, size), title = display.time_unit(max(row["value"] for row in made)), "Time per batch"
        batch, how = min(batches), "is {gain} as fast as {base}"
    else:
        (unit, size), title = ("tokens/s", 1), "Tokens per second"
        batch, how = max(batches), "has {gain} the throughput of {base}"
    heading = _heading(context, gpu, model, gains, batch, f"At batch {batch}", how)
    chart = charts.lines(
        rescaled(made, size), context.look, x_title="batch size", y_title=f"{unit}, log scale", log=True
    )
    panels = [panel(title, chart, made, "batch")]
    gain_title = f"Gain over {context.baseline}"
    if gains:
        chart = charts.lines(gains, context.look, x_title="batch size", y_title=f"× {context.baseline}", reference=1)
        panels.append(panel(gain_title, chart, gains, "batch"))
    ratios = {(row["scheme"], row["x"]): row["text"] for row in gains}
    table = [[row["scheme"], row["x"], row["text"], ratios.get((row["scheme"], row["x"]), "")] for row in made]
    numbers = {"columns": ["scheme", "batch size", title.lower(), gain_title.lower()], "rows": table}
    return {"heading": heading, "panels": panels, "notes": [], "numbers": numbers}


def _heading(context, gpu, model, gains, x, where, how):
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


def serving(context):
    intro = (
        "A server under load. Times count from the moment a request was due, so waiting before the server counts. "
        "{ci} % intervals as bars; lower is better."
    )
    groups, keys = [], ["gpu", "model", "input_tokens_asked", "output_tokens_asked", "load"]
    for (gpu, model, inputs, outputs, load), frame in context.grouped("serving", keys):
        kicker = f"{gpu} · {model} · {inputs} tokens in, {outputs} out · by {SERVING_LOADS[load][1]}"
        groups.append({"kicker": kicker, **_load_group(context, gpu, model, load, inputs, outputs, frame)})
    return context.section("serving", "Serving", intro, groups)


def _load_group(context, gpu, model, load, inputs, outputs, frame):
    column, x_title, where = SERVING_LOADS[load]
    samples = {
        (scheme, x, name): (part[name] - part["scheduled_s"]).drop_nulls().to_list()
        for (scheme, x), part in parts(frame, ["scheme", column])
        for name in ("first_token_s", "finished_s")
    }
    panels, texts = [], {}
    for title, name, q in SERVING_TIMES:
        rows = [
            point(scheme, x, quantile_ci(values, q, context.confidence), display.seconds)
            for (scheme, x, which), values in samples.items()
            if which == name and values
        ]
        rows = context.in_order(rows)
        if not rows:
            continue
        unit, size = display.time_unit(max(row["value"] for row in rows))
        chart = charts.lines(
            rescaled(rows, size), context.look, x_title=x_title, y_title=f"{unit}, log scale", log=True
        )
        panels.append(panel(title, chart, rows, x_title))
        for row in rows:
            texts.setdefault((row["scheme"], row["x"]), {})[title] = row["text"]
    most = max(x for _, x, _ in samples)
    gains = [
        point(scheme, x, gain, display.factor)
        for (scheme, x), gain in _gains(context, gpu, model, "e2e_p50", inputs, outputs, load).items()
        if x == most
    ]
    how = "gives the median answer {gain} as fast as {base}"
    heading = _heading(context, gpu, model, gains, most, where.format(x=most), how)
    fewest = min(len(values) for values in samples.values())
    caveat = f"The p99 of {fewest} requests is little more than the slowest one, and has no interval: that takes {P99_REQUESTS}."
    titles = [shown["title"] for shown in panels]
    table = [[s, f"{x:g}", *(cells.get(title, "") for title in titles)] for (s, x), cells in texts.items()]
    return {
        "heading": heading,
        "panels": panels,
        "notes": [caveat] if fewest < P99_REQUESTS else [],
        "numbers": {"columns": ["scheme", x_title, *(title.lower() for title in titles)], "rows": table},
    }
