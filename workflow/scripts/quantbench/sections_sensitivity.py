"""The report's section on sensitivity: which layers suffer, and what sparing the worst of them gives."""

from quantbench import charts, display, statistics
from quantbench.sections import panel, parts, point
from quantbench.sections_quality import notices
from quantbench.sensitivity import ALL, place_of

INTRO = (
    "One part of the model at a time as the scheme’s checkpoint has it, all else in 16 bits: how far the next-token "
    "distribution moves (Kullback-Leibler divergence from the 16-bit model’s, over the whole vocabulary, in nats per token), "
    "and perplexity over that of the 16-bit model on the same documents. {ci} % intervals, documents resampled, each of one "
    "part alone. Weights are the checkpoint’s and inputs are rounded as the scheme rounds them, in PyTorch on the node that "
    "quantizes: the scheme’s numbers, not a device’s kernels."
)


def sensitivity(context):
    groups, kinds = [], {}
    for (model, scheme, per, dataset), frame in context.grouped("sensitivity", ["model", "scheme", "per", "dataset"]):
        found = _estimates(context, frame)
        for entry in found.values():
            kinds[entry["kind"]] = None
        kicker = f"{model} · {scheme} · {'block by block' if per == 'block' else 'layer by layer'} · {dataset}"
        groups.append((kicker, model, scheme, per, found))
    look = charts.looks([kind for kind in kinds if kind != ALL], None)
    made = [{"kicker": kicker, **_group(context, look, *rest)} for kicker, *rest in groups]
    section = context.section("sensitivity", "Which layers suffer", INTRO, made, notices=notices(context))
    # What is told apart here are kinds of layers.
    section["legend"] = [{"scheme": kind, "promise": None, **shown} for kind, shown in look.items()]
    return section


def _estimates(context, frame):
    """{part: {"block", "kind", "kl": (value, low, high), "ratio": (value, low, high), "top1"}} of one scan."""
    found = {}
    for (name,), mine in parts(frame, ["part"]):
        columns = {column: mine[column].to_list() for column in mine.columns}
        tokens = columns["tokens"]
        kl = statistics.mean_per_token_ci(columns["kl_divergence"], tokens, context.confidence)
        if kl[1] is not None:
            # A divergence is never negative; an interval of few documents may be.
            kl = (kl[0], max(kl[1], 0.0), kl[2])
        nlls = (columns[f"{whose}negative_log_likelihood"] for whose in ("baseline_", ""))
        ratio = statistics.perplexity_ratio_ci(*nlls, tokens, context.confidence)
        block, kind = place_of(name)
        top1 = sum(columns["top1_agreement"]) / sum(tokens)
        found[name] = {"block": block, "kind": kind, "kl": kl, "ratio": ratio, "top1": top1}
    return found


def _group(context, look, model, scheme, per, found):
    alone = {name: entry for name, entry in found.items() if name != ALL}
    worst = max(alone, key=lambda name: alone[name]["kl"][0])
    heading = f"{in_words(worst)} suffers most: {nats(alone[worst]['kl'][0])} nats per token"
    panels = []
    for column, title, shown, options in (
        ("kl", "Divergence, nats per token", nats, {"log": True}),
        ("ratio", "Perplexity over that of the 16-bit model", ratio, {"reference": 1}),
    ):
        rows = [
            point(entry["kind"], entry["block"], entry[column], shown)
            for entry in alone.values()
            if entry["block"] is not None
        ]
        if rows:
            chart = charts.lines(rows, look, x_title="block", y_title=None, of="layer", **options)
            panels.append(panel(title, chart, rows, "block"))
    numbers = {"columns": ["part", "of the scheme’s weights", "divergence, nats per token", "perplexity, ratio"]}
    numbers["columns"].append("same likeliest token")
    weights = _weights(context, model, scheme, per)
    numbers["rows"] = [
        [
            in_words(name),
            display.share(weights[name] / weights[ALL]),
            display.with_interval(entry["kl"], nats),
            display.with_interval(entry["ratio"], ratio),
            display.share(entry["top1"]),
        ]
        for name, entry in sorted(found.items(), key=lambda item: -item[1]["kl"][0])
    ]
    notes = []
    if ALL in found:
        total = sum(entry["kl"][0] for entry in alone.values())
        notes.append(
            f"All parts together, which is the scheme itself: {display.with_interval(found[ALL]['kl'], nats)} nats per "
            f"token; one by one they add up to {nats(total)}."
        )
    spared = _spared(context, model, scheme)
    notes += [note for note, _ in spared]
    return {"heading": heading, "panels": panels, "notes": notes, "numbers": numbers, "more": [t for _, t in spared if t]}


def _weights(context, model, scheme, per):
    """{part: weights of its layers}"""
    return {
        entry["part"]["name"]: entry["part"]["parameters"]
        for entry in context.manifest["points"]
        if entry["stage"] == "sensitivity" and (entry["model"], entry["scheme"], entry["per"]) == (model, scheme, per)
    }


def _spared(context, model, parent):
    """[(note, table)] of the study's schemes that spare the worst of this one."""
    found = []
    frame = context.tables["checkpoints"]
    spared = {(row["model"], row["scheme"]): row["spared"] for row in frame.to_dicts() if row["spared"]}
    for scheme in context.study["schemes"]:
        spare = context.manifest["schemes"][scheme].get("spare", {})
        if spare.get("worst_of") != parent or (model, scheme) not in spared:
            continue
        layers = spared[model, scheme].split(", ")
        note = f"{scheme} leaves {display.listed(_shortened(layers))} in 16 bits, at most {display.share(spare['share'], 0)} "
        note += f"of {parent}’s weights: what moves the distribution most per weight."
        rows = [
            [gpu, name, *_cells(entry)]
            for gpu in context.study["gpus"]
            for name in (parent, scheme)
            for entry in context.summary
            if (entry["gpu"], entry["model"], entry["scheme"]) == (gpu, model, name)
        ]
        columns = ["gpu", "scheme", "size", "bits per weight", f"perplexity over {context.baseline}"]
        columns += [f"divergence from {context.baseline}, nats per token", "answered right"]
        table = {"title": f"{scheme} beside {parent}", "note": "As the engine measured them.", "columns": columns}
        found.append((note, rows and table | {"rows": rows}))
    return found


def _cells(entry):
    """One scheme's size and quality on one device; of several data sets or tasks each by name."""
    size = entry["size"] or {"bytes": None, "bits_per_weight": None}
    bits = size["bits_per_weight"]
    decided = [found for found in entry["accuracy"] if found["decides"]]
    estimates = [
        [(f["dataset"], (f["ratio"], f["low"], f["high"]), ratio) for f in entry["perplexity"] if f["ratio"]],
        [(f["dataset"], (f["kl"], f["kl_low"], f["kl_high"]), nats) for f in entry["fidelity"]],
        [(f["task"], (f["share"], f["low"], f["high"]), display.share) for f in decided],
    ]
    cells = [display.amount(size["bytes"], "B"), display.MISSING if bits is None else f"{bits:.2f}"]
    for found in estimates:
        said = [f"{name}: {display.with_interval(value, shown)}" for name, value, shown in found]
        cells.append("; ".join(said) or display.MISSING)
    return cells


def _shortened(layers):
    """Layers by block: ["model.layers.0.self_attn.o_proj", ...] -> ["o_proj of block 0", ...]."""
    kinds = {}
    for layer in layers:
        block, kind = place_of(layer)
        kinds.setdefault(block, []).append(kind)
    return [f"{', '.join(found)}{'' if block is None else f' of block {block}'}" for block, found in kinds.items()]


def in_words(part):
    """ "model.layers.3.mlp.down_proj" -> "down_proj of block 3"."""
    block, kind = place_of(part)
    if part == ALL:
        return "all parts together"
    return kind if block is None else f"block {block}" if kind == "block" else f"{kind} of block {block}"


def nats(value):
    return f"{value:.3g}"


def ratio(value):
    return f"{value:.4f}"
