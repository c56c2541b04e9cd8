"""The report's section on energy: joules per generated token, wherever a device's power could be read."""

from quantbench import display
from quantbench.energy import LEAST_WINDOW_S, LONGEST_GAP_S
from quantbench.serving_points import POISSON


def energy(context):
    """The section, or None where no device of the study has a power meter."""
    frame = context.ok("energy")
    if frame is None or frame.is_empty():
        return None
    intro = (
        "Energy of the devices over the measured window, divided by the tokens generated in it: NVML's power readings on "
        "NVIDIA devices, the packages' energy counters on a CPU. A window with more than "
        f"{LONGEST_GAP_S:g} s between two readings has no figure, nor has one of less than {LEAST_WINDOW_S:g} s whose power was "
        "sampled. Lower is better."
    )
    groups = [
        {"kicker": f"{gpu} · {model}", **_group(context, rows.filter(start=1).to_dicts())}
        for (gpu, model), rows in context.grouped("energy", ["gpu", "model"])
    ]
    return context.section("energy", "Energy per token", intro, groups)


def _group(context, rows):
    base = {_where(row): row["joules_per_token"] for row in rows if row["scheme"] == context.baseline}
    numbers = []
    for row in context.in_order(rows):
        here = base.get(_where(row))
        ratio = row["joules_per_token"] / here if row["joules_per_token"] and here else None
        said = [row["scheme"], _where(row), joules(row["joules_per_token"]), display.factor(ratio)]
        numbers.append([*said, display.amount(row["mean_power_w"], "W")])
    columns = ["scheme", "at", "a token", f"over {context.baseline}’s", "mean power"]
    return {
        "heading": _heading(rows),
        "panels": [],
        "notes": [],
        "numbers": {"columns": columns, "rows": numbers},
    }


def _heading(rows):
    known = [row for row in rows if row["joules_per_token"]]
    if not known:
        return "No window was read often enough to say"
    best = min(known, key=lambda row: row["joules_per_token"])
    return f"Least: {joules(best['joules_per_token'])} a token, {best['scheme']} at {_where(best)}"


def _where(row):
    size = row["workload"] or f"{row['input_tokens_asked']} in, {row['output_tokens_asked']} out"
    if row["batch_size"]:
        return f"{row['stage']}, batch {row['batch_size']}, {size}"
    level = row["concurrency"] or row["rate_per_s"]
    shape = f", burstiness {row['burstiness']:g}" if row["burstiness"] not in (None, POISSON) else ""
    return f"serving, {row['load']}{f' {level:g}' if level else ''}{shape}, {size}"


def joules(value):
    return display.scaled(value, "J", ((1, ""), (1e-3, "m"), (1e-6, "µ")))
