"""The report's sections on quality and size: accuracy, perplexity, checkpoints."""

from quantbench import charts, display
from quantbench.sections import panel, parts, point
from quantbench.statistics import paired_bootstrap_ci, perplexity_ratio_ci, wilson

TINY = (
    "“{names}” is a small synthetic model that this workflow trains on made-up arithmetic, with outlier channels planted "
    "in its weights so that quantization has something to break. Its accuracy shows that a loss is seen when there is "
    "one; it says nothing about how much a real model would lose. Its speed is that of a toy."
)


def tiny_notice(manifest):
    """What has to be said beside every accuracy of the synthetic model; None when the study has real models only."""
    names = [model["name"] for model in manifest["study"]["models"] if model["source"] == "tiny"]
    return TINY.format(names="”, “".join(names)) if names else None


def notices(context):
    return list(filter(None, [tiny_notice(context.manifest)]))


def accuracy(context):
    intro = (
        "Share of questions answered right, with its {ci} % Wilson interval; the dashed line is {baseline}. The intervals "
        "are each scheme's own: whether two schemes differ is told by the paired comparison on the same questions, in "
        "the numbers below and in the first table."
    ).replace("{baseline}", context.baseline)
    groups, keys = [], ["gpu", "model", "task", "dataset", "shots"]
    for (gpu, model, task, dataset, shots), frame in context.grouped("accuracy", keys):
        kicker = f"{gpu} · {model} · {task} on {dataset}, {shots} examples in the prompt"
        groups.append({"kicker": kicker, **_accuracy_group(context, frame)})
    return context.section("accuracy", "Accuracy", intro, groups, notices=notices(context))


def _accuracy_group(context, frame):
    panels, table, losses, asked = [], [], {}, 0
    for (name,), filtered in parts(frame, ["filter"]):
        answers = {
            scheme: dict(part.select("question", "correct").iter_rows()) for (scheme,), part in parts(filtered, ["scheme"])
        }
        base, rows = answers.get(context.baseline), []
        for scheme, correct in answers.items():
            n, right = len(correct), sum(correct.values())
            asked = max(asked, n)
            estimate = (right / n, *wilson(right, n, context.confidence))
            row = point(scheme, None, estimate, display.share)
            rows.append(row)
            difference = ""
            both = sorted(set(correct) & set(base or ()))
            if both and scheme != context.baseline:
                pairs = [base[q] for q in both], [correct[q] for q in both]
                estimate = paired_bootstrap_ci(*pairs, context.confidence)
                difference = display.with_interval(estimate, display.points)
                losses.setdefault(name, []).append((scheme, *estimate))
            table.append([scheme, name, f"{right} of {n}", row["text"], difference])
        rows = context.in_order(rows)
        reference = next((row["value"] for row in rows if row["scheme"] == context.baseline), None)
        chart = charts.intervals(rows, context.look, x_title="answered right", reference=reference, percent=True)
        panels.append(panel(f"Read by {name}", chart, rows))
    columns = ["scheme", "answer read by", "right", "share", f"against {context.baseline}, percentage points"]
    table.sort(key=lambda row: (list(context.look).index(row[0]) if row[0] in context.look else len(context.look)))
    return {
        "heading": _loss_heading(context, next(iter(losses.values()), []), asked),
        "panels": panels,
        "notes": [],
        "numbers": {"columns": columns, "rows": table},
    }


def _loss_heading(context, differences, asked):
    """What the paired differences of the first filter say. An interval that spans zero is no difference."""
    if not differences:
        return f"Nothing stands beside {context.baseline} to compare"
    changed = [(d, scheme) for scheme, d, low, high in differences if low is not None and (low > 0 or high < 0)]
    if not changed:
        return f"No scheme differs significantly from {context.baseline} on {asked} questions"
    said = display.listed(f"{scheme} {display.points(d)}" for d, scheme in sorted(changed))
    rest = "" if len(changed) == len(differences) else "; the others show no significant difference"
    return f"Against {context.baseline}, in percentage points: {said}{rest}"


def perplexity(context):
    intro = (
        "Perplexity over that of {baseline} on the same documents, with its {ci} % interval, documents resampled. Above 1 "
        "is worse: the text surprises the quantized model more."
    ).replace("{baseline}", context.baseline)
    groups = []
    for (gpu, model, dataset), frame in context.grouped("perplexity", ["gpu", "model", "dataset"]):
        groups.append({"kicker": f"{gpu} · {model} · {dataset}", **_perplexity_group(context, frame)})
    return context.section("perplexity", "Perplexity", intro, groups, notices=notices(context))


def _perplexity_group(context, frame):
    documents = {
        scheme: {row[0]: row[1:] for row in part.select("document", "negative_log_likelihood", "tokens").iter_rows()}
        for (scheme,), part in parts(frame, ["scheme"])
    }
    base, rows, table = documents.get(context.baseline, {}), [], []
    for scheme, mine in documents.items():
        both = sorted(set(mine) & set(base))
        tokens = sum(tokens for _, tokens in mine.values())
        # Against a text that surprises nobody, the ratio is the perplexity itself.
        value, low, high = perplexity_ratio_ci([0.0] * len(mine), [nll for nll, _ in mine.values()], [t for _, t in mine.values()], context.confidence)
        text = ""
        if both and scheme != context.baseline:
            sums = [base[d][0] for d in both], [mine[d][0] for d in both], [mine[d][1] for d in both]
            row = point(scheme, None, perplexity_ratio_ci(*sums, context.confidence), lambda ratio: f"{ratio:.4g}")
            rows.append(row)
            text = row["text"]
        table.append([scheme, f"{value:.4g} [{low:.4g}, {high:.4g}]" if low is not None else f"{value:.4g}", len(mine), tokens, text])
    rows = context.in_order(rows)
    columns = ["scheme", "perplexity", "documents", "tokens", f"over {context.baseline}"]
    worse = [row for row in rows if row["low"] is not None and row["low"] > 1]
    if not rows:
        heading = f"Nothing stands beside {context.baseline} to compare"
    elif not worse:
        heading = f"No scheme's perplexity is measurably above that of {context.baseline}"
    else:
        worst = max(worse, key=lambda row: row["value"])
        heading = f"{worst['scheme']} loses most: {worst['value']:.3g} times the perplexity of {context.baseline}"
    title = f"Perplexity over {context.baseline}"
    panels = []
    if rows:
        panels = [panel(title, charts.intervals(rows, context.look, x_title=f"× {context.baseline}", reference=1), rows)]
    return {"heading": heading, "panels": panels, "notes": [], "numbers": {"columns": columns, "rows": table}}


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
    rows = []
    for row in mine:
        bits = "" if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.1f} bits per weight"
        text = ", ".join(filter(None, (display.amount(row["bytes"], "B"), bits)))
        rows.append({"scheme": row["scheme"], "x": None, "value": row["bytes"] / size, "label": text, "text": text})
    least, base = (
        min(mine, key=lambda row: row["bytes"]),
        next((row for row in mine if row["scheme"] == context.baseline), None),
    )
    heading = f"{least['scheme']} is the smallest: {display.amount(least['bytes'], 'B')}"
    if base and least is not base:
        heading += f", {display.share(least['bytes'] / base['bytes'], 0)} of {context.baseline}"
    table = [[row["scheme"], *(row["text"].split(", ") + [""])[:2]] for row in rows]
    numbers = {"columns": ["scheme", "size", "bits per weight"], "rows": table}
    panels = [panel("Size on disk", charts.bars(rows, context.look, x_title=unit), rows)]
    return {"heading": heading, "panels": panels, "notes": [], "numbers": numbers}
