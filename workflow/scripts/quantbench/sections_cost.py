"""The report's section on cost: $ per million generated tokens where the SLO is met, on every device with a price."""

from itertools import groupby

from quantbench import cost, display, goodput

NO_PRICE = (
    "No device of this study has a price: say in the study's prices_usd_per_hour what an hour of each costs you, and this "
    "report is rendered anew without measuring anything."
)


def costs(context):
    """The section, or None for a study without an SLO, which leaves open at what load a token counts."""
    slo = (context.study.get("serving") or {}).get("slo")
    if not slo:
        return None
    intro = (
        f"Each scheme at the load that generates most tokens while {goodput.words(slo, display.seconds)}: never at the peak, "
        "where tokens are cheapest and too late. Lower is better."
    )
    frames = (context.ok(name) for name in ("serving", "search"))
    loads = cost.loads_of(*([] if frame is None else frame.to_dicts() for frame in frames), slo, context.confidence)
    prices = {gpu: entry.get("price_usd_per_hour") for gpu, entry in context.manifest["gpus"].items()}
    rows = cost.costs(loads, prices, context.study["engine"].get("tensor_parallel_size", 1))
    groups = [_group(context, list(part)) for _, part in groupby(rows, key=_asked)]
    section = context.section("cost", "Cost of a million tokens", intro, groups, asked="serving")
    # Measured, and yet nothing to show: the study lacks a price, not a point.
    return section | {"missing": NO_PRICE} if loads and not rows else section


def _asked(row):
    return row["model"], row["workload"], row["input_tokens_asked"], row["output_tokens_asked"]


def _group(context, rows):
    model, workload, inputs, outputs = _asked(rows[0])
    kicker = f"{model} · {f'workload {workload}' if workload else f'{inputs} tokens in, {outputs} out'}"
    base = {row["gpu"]: row["usd_per_million"] for row in rows if row["scheme"] == context.baseline}
    numbers = [
        [
            row["scheme"],
            row["gpu"],
            dollars(row["usd_per_hour"]),
            _load(row),
            display.rate(row["tokens_per_s"], "tokens/s"),
            dollars(row["usd_per_million"]),
            display.factor(_ratio(row["usd_per_million"], base.get(row["gpu"]))),
        ]
        for row in rows
    ]
    columns = ["scheme", "gpu", "an hour", "at", "generates", "a million tokens", f"over {context.baseline}’s"]
    return {
        "kicker": kicker,
        "heading": _heading(rows),
        "panels": [],
        "notes": _notes(rows),
        "numbers": {"columns": columns, "rows": numbers},
    }


def _heading(rows):
    best = rows[0]
    if best["usd_per_million"] is None:
        return "No scheme meets the SLO at any load that was sent"
    return f"Cheapest within the SLO: {best['scheme']} on {best['gpu']}, {dollars(best['usd_per_million'])} a million tokens"


def _notes(rows):
    unsure = [f"{row['scheme']} on {row['gpu']}" for row in rows if row["certain"] is False]
    if not unsure:
        return []
    return [
        f"Whether {display.listed(unsure)} {'meets' if len(unsure) == 1 else 'meet'} the SLO there is not certain: the "
        "interval of the share of requests within it reaches below what it asks. More requests would tell."
    ]


def _load(row):
    if row["load"] is None:
        return "no load met the SLO"
    if row["load"] == "all_at_once":
        return "all requests at once"
    return f"{row['level']:g} requests {'per second' if row['load'] == 'rate' else 'at once'}"


def _ratio(value, base):
    return value / base if value and base else None


def dollars(value):
    """0.1234 -> "$0.123"; 12.3 -> "$12.30"."""
    return display.MISSING if value is None else f"${value:.2f}" if value >= 1 else f"${value:.3g}"
