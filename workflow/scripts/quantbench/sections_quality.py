"""The report's sections on quality and size: accuracy, perplexity, checkpoints."""

from quantbench import charts, display
from quantbench.sections import panel, point

TINY = (
    "“{names}” is a small synthetic model, trained by this workflow on made-up arithmetic, with outlier channels "
    "planted in its weights. Its accuracy shows that a loss is seen where there is one, not how much a real model "
    "would lose; its speed is that of a toy."
)
TINY_SHORT = (
    "The tiny model is synthetic, with planted outlier channels: its losses show that the method sees them, not what a "
    "real model loses."
)


def tiny_notice(manifest):
    """What has to be said beside every accuracy of the synthetic model; None when the study has real models only."""
    names = [model["name"] for model in manifest["study"]["models"] if model["source"] == "tiny"]
    return TINY.format(names="”, “".join(names)) if names else None


def notices(context):
    """The same in short, for the sections further down."""
    return [TINY_SHORT] if tiny_notice(context.manifest) else []


def accuracy(context):
    intro = (
        "Share of questions answered right, with its {ci} % Wilson interval; the dashed line is {baseline}. These "
        "intervals are each scheme's own. Whether a scheme differs is told by the comparison question by question, in "
        "the heading and in the numbers: exact McNemar test, Holm-adjusted over the schemes."
    )
    groups, keys = [], ("task", "dataset", "shots")
    for gpu, model, entries in _variants(context):
        tasks = dict.fromkeys(tuple(found[k] for k in keys) for entry in entries for found in entry["accuracy"])
        for task in tasks:
            mine = [(e["scheme"], f) for e in entries for f in e["accuracy"] if tuple(f[k] for k in keys) == task]
            kicker = f"{gpu} · {model} · {task[0]} on {task[1]}, {task[2]} solved examples in the prompt"
            groups.append({"kicker": kicker, **_accuracy_group(context, mine)})
    return context.section("accuracy", "Accuracy", intro, groups, notices=notices(context))


def _accuracy_group(context, mine):
    panels, table = [], []
    deciding = [found["filter"] for _, found in mine if found["decides"]]
    filters = sorted(dict.fromkeys(found["filter"] for _, found in mine), key=lambda name: name not in deciding)
    for name in filters:
        read = [(scheme, found) for scheme, found in mine if found["filter"] == name]
        rows = []
        for scheme, found in read:
            rows.append(point(scheme, None, (found["share"], found["low"], found["high"]), display.share))
            beside = ["", "", ""]
            if "difference" in found:
                estimate = (found["difference"], found["difference_low"], found["difference_high"])
                unseen = found["smallest_detectable"]
                beside = [display.with_interval(estimate, display.points), found["words"]]
                beside.append(display.MISSING if unseen is None else f"{100 * unseen:.1f}")
            right = f"{round(found['share'] * found['n'])} of {found['n']}"
            table.append([scheme, name, right, rows[-1]["text"], *beside])
        reference = next((row["value"] for row in rows if row["scheme"] == context.baseline), None)
        chart = charts.intervals(rows, context.look, x_title="answered right", reference=reference, percent=True)
        panels.append(panel(f"Answers read by {name}", chart, rows))
    columns = ["scheme", "answer read by", "right", "share", f"against {context.baseline}, points", "verdict"]
    columns.append("smallest loss it could show, points")
    compared = [(scheme, found) for scheme, found in mine if found["decides"] and "words" in found]
    heading = _loss_heading(context, compared)
    return {"heading": heading, "panels": panels, "notes": [], "numbers": {"columns": columns, "rows": table}}


def _loss_heading(context, compared):
    if not compared:
        return f"Nothing stands beside {context.baseline} to compare"
    changed = sorted((f["difference"], scheme) for scheme, f in compared if f["words"].startswith(("better", "worse")))
    unclear = [scheme for scheme, found in compared if found["words"].startswith("cannot tell")]
    asked = compared[0][1]["n"]
    losses = display.listed(f"{scheme} {display.points(difference)}" for difference, scheme in changed)
    said = [f"in percentage points against {context.baseline}, {losses}"]
    if not changed:
        said = [f"no scheme is shown to differ from {context.baseline} on {asked} questions"]
    if unclear:
        said.append(f"too few questions to tell for {display.listed(unclear)}")
    if changed and len(changed) + len(unclear) < len(compared):
        said.append("no significant difference for the others")
    heading = "; ".join(said)
    return heading[0].upper() + heading[1:]


def perplexity(context):
    intro = (
        "Perplexity over that of {baseline} on the same documents, with its {ci} % interval, documents resampled. "
        "Above 1 is worse: the text surprises the quantized model more."
    )
    groups = []
    for gpu, model, entries in _variants(context):
        for dataset in dict.fromkeys(found["dataset"] for entry in entries for found in entry["perplexity"]):
            mine = [(e["scheme"], f) for e in entries for f in e["perplexity"] if f["dataset"] == dataset]
            groups.append({"kicker": f"{gpu} · {model} · {dataset}", **_perplexity_group(context, mine)})
    return context.section("perplexity", "Perplexity", intro, groups, notices=notices(context))


def _perplexity_group(context, mine):
    rows, table = [], []
    for scheme, found in mine:
        cells = ["", ""]
        if found["ratio"] is not None:
            rows.append(
                point(scheme, None, (found["ratio"], found["low"], found["high"]), lambda ratio: f"{ratio:.4f}")
            )
            cells = [rows[-1]["text"], found["words"]]
        table.append([scheme, f"{found['perplexity']:.4g}", *cells])
    worse = [(found["ratio"], scheme) for scheme, found in mine if found.get("words", "").startswith("worse")]
    if not rows:
        heading = f"Nothing stands beside {context.baseline} to compare"
    elif not worse:
        heading = f"No scheme's perplexity is measurably above that of {context.baseline}"
    else:
        heading = f"{max(worse)[1]} loses most: {max(worse)[0]:.3g} times the perplexity of {context.baseline}"
    chart = rows and charts.intervals(rows, context.look, x_title=f"× {context.baseline}", reference=1)
    panels = [panel(f"Perplexity over {context.baseline}", chart, rows)] if rows else []
    columns = ["scheme", "perplexity", f"over {context.baseline}", "verdict"]
    return {"heading": heading, "panels": panels, "notes": [], "numbers": {"columns": columns, "rows": table}}


def _variants(context):
    """[(gpu, model, entries of the summary in the study's order of schemes)]."""
    for gpu in context.study["gpus"]:
        for model in context.models:
            entries = [entry for entry in context.summary if (entry["gpu"], entry["model"]) == (gpu, model)]
            yield gpu, model, context.in_order(entries)


def size(context):
    frame = context.tables.get("checkpoints")
    rows = [] if frame is None else [row for row in frame.to_dicts() if row["bytes"] is not None]
    groups = []
    for model in context.models:
        mine = context.in_order([row for row in rows if row["model"] == model])
        if mine:
            groups.append({"kicker": model, **_size_group(context, mine)})
    intro = "Safetensors on disk. Bits per weight count scales, zero points and the layers left unquantized."
    section = context.section("size", "Checkpoint size", intro, groups)
    # No config section asks for sizes: they come with every checkpoint.
    return section if groups else {**section, "missing": "No checkpoint was made."}


def _size_group(context, mine):
    most = max(row["bytes"] for row in mine)
    unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if most >= s), ("B", 1))
    rows, table = [], []
    for row in mine:
        text, bits = display.amount(row["bytes"], "B"), row["bits_per_weight"]
        table.append([row["scheme"], text, display.MISSING if bits is None else f"{bits:.2f}"])
        # Short, for it has to fit beside the longest bar on a phone.
        label = text if bits is None else f"{text}, {bits:.1f} bits"
        rows.append({"scheme": row["scheme"], "value": row["bytes"] / size, "label": label, "text": label})
    least = min(mine, key=lambda row: row["bytes"])
    base = next((row for row in mine if row["scheme"] == context.baseline), None)
    heading = f"{least['scheme']} is the smallest: {display.amount(least['bytes'], 'B')}"
    if base and base["bytes"] > least["bytes"]:
        heading += f", {display.share(least['bytes'] / base['bytes'], 0)} of {context.baseline}"
    numbers = {"columns": ["scheme", "size", "bits per weight"], "rows": table}
    panels = [panel("Size on disk, and bits per weight", charts.bars(rows, context.look, x_title=unit), rows)]
    return {"heading": heading, "panels": panels, "notes": [], "numbers": numbers}
