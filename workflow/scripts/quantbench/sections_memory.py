"""The report's section on memory: what each variant leaves for cached keys and values, expected and as the engine took it."""

from quantbench import charts, display
from quantbench.sections import panel

INTRO = (
    "Tokens whose keys and values the engine has room for, of all requests together: what is left of the device after weights, "
    "activations and graphs, or what the study set aside. Expected figures are arithmetic on the model’s sizes, made before "
    "anything ran (snakemake plan); bytes are of one device."
)
NONE = "No engine said what it took."
COLUMNS = (
    "scheme", "weights", "expected", "cache", "cached tokens", "expected", "longest sequences at once", "graphs", "peak",
    "on the device", "expected and found",
)  # fmt: skip


def memory(context):
    frame = context.tables.get("memory")
    found = [] if frame is None else [row for row in frame.to_dicts() if row["start"] == 1]
    groups = []
    for gpu in context.study["gpus"]:
        for model in context.models:
            mine = context.in_order([row for row in found if (row["gpu"], row["model"]) == (gpu, model)])
            if any(row["kv_cache_tokens"] or row["status"] == "out_of_memory" for row in mine):
                groups.append({"kicker": f"{gpu} · {model}", **_group(mine, context.look)})
    section = context.section("memory", "Memory", INTRO, groups)
    # No config section asks for it: it comes with every engine's start.
    return section if groups else {**section, "missing": NONE}


def _group(mine, look):
    measured = [row for row in mine if row["kv_cache_tokens"]]
    table = [_line(row) for row in mine if row["kv_cache_tokens"] or row["status"] == "out_of_memory"]
    rows = [{"scheme": row["scheme"], "value": row["kv_cache_tokens"], **_said(row)} for row in measured]
    panels = []
    # Bars of one length say nothing that the heading does not.
    if len({row["value"] for row in rows}) > 1:
        chart = charts.bars(rows, look, x_title="tokens")
        panels = [panel("Tokens that the cache has room for", chart, rows)]
    wrong = [row["scheme"] for row in mine if _verdict(row).startswith("expected ")]
    notes = [f"Not as expected: {display.listed(wrong)}."] if wrong else []
    numbers = {"columns": list(COLUMNS), "rows": table}
    return {"heading": _heading(mine, measured), "panels": panels, "notes": notes, "numbers": numbers}


def _said(row):
    text = f"{row['kv_cache_tokens']:,}"
    return {"label": text, "text": f"{text} tokens"}


def _heading(mine, measured):
    out = [row["scheme"] for row in mine if row["status"] == "out_of_memory"]
    said = [f"no memory for {display.listed(out)}"] if out else []
    if measured:
        most, least = (pick(measured, key=lambda row: row["kv_cache_tokens"]) for pick in (max, min))
        said.append(f"room for {most['kv_cache_tokens']:,} cached tokens with {most['scheme']}")
        if most["kv_cache_tokens"] > least["kv_cache_tokens"]:
            said[-1] += f", {least['kv_cache_tokens']:,} with {least['scheme']}"
        else:
            said[-1] = f"room for {most['kv_cache_tokens']:,} cached tokens with every scheme"
    heading = "; ".join(said)
    return heading[0].upper() + heading[1:]


def _line(row):
    tokens, longest = row["kv_cache_tokens"], row["longest_tokens"]
    expected = row["predicted_kv_cache_tokens"]
    used = display.amount(row["device_used_bytes"], "B")
    if row["device_bytes"]:
        used += f" of {display.amount(row['device_bytes'], 'B')}"
    return [
        row["scheme"],
        display.amount(row["weight_bytes"], "B"),
        display.amount(row["predicted_weight_bytes"], "B"),
        display.amount(row["kv_cache_bytes"], "B"),
        display.MISSING if tokens is None else f"{tokens:,}",
        display.MISSING if expected is None else f"{expected:,}",
        display.MISSING if tokens is None or not longest else f"{tokens / longest:.1f}",
        display.amount(row["graph_bytes"], "B"),
        display.amount(row["peak_bytes"], "B"),
        used,
        _verdict(row),
    ]


def _verdict(row):
    """Whether the longest sequence fits the cache, as expected and as found."""
    expected, out = row["predicted_fits"], row["status"] == "out_of_memory"
    if row["status"] != "ok" and not out:
        return row["status"].replace("_", " ")
    if expected is None:
        return "ran out of memory" if out else "fits"
    if expected != out:
        return "does not fit, as expected" if out else "fits, as expected"
    return "expected to fit, but ran out of memory" if out else "expected not to fit, but it does"
