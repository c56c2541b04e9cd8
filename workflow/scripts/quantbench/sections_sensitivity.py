"""The report's section on sensitivity: which layers suffer, and what sparing the worst of them gives."""

import polars as pl

from quantbench import charts, display, statistics
from quantbench.sections import panel, parts, point
from quantbench.sections_quality import notices
from quantbench.sensitivity import ALL, place_of, spare_entry

# Blocks whose spared layers a sentence names.
MOST_NAMED = 8

INTRO = (
    "One part of the model at a time as the scheme’s checkpoint has it, all else in 16 bits: how far the next-token "
    "distribution moves (Kullback-Leibler divergence from the 16-bit model’s, over the whole vocabulary, in nats per token), "
    "and perplexity over that of the 16-bit model on the same documents. {ci} % intervals, documents resampled, each of one "
    "part alone. Weights are the checkpoint’s and inputs are rounded as the scheme rounds them, in PyTorch on the node that "
    "quantizes: the scheme’s numbers, not a device’s kernels."
)


def sensitivity(context):
    groups, kinds = [], {}
    for model in context.models:
        for entry in context.study["sensitivity"]:
            wanted = [pl.col(name) == entry[name] for name in ("scheme", "per", "dataset")]
            found = _estimates(context, context.ok("sensitivity").filter(pl.col("model") == model, *wanted))
            if not found.keys() - {ALL}:
                continue
            kinds |= {part["kind"]: None for part in found.values()}
            how = "block by block" if entry["per"] == "block" else "layer by layer"
            groups.append((f"{model} · {entry['scheme']} · {how} · {entry['dataset']}", model, entry, found))
    look = charts.looks([kind for kind in kinds if kind != ALL], None)
    made = [{"kicker": kicker, **_group(context, look, *rest)} for kicker, *rest in groups]
    section = context.section("sensitivity", "Which layers suffer", INTRO, made, notices=notices(context))
    # What is told apart here are kinds of layers.
    section["legend"] = [{"scheme": kind, "promise": None, **shown} for kind, shown in look.items()]
    return section


def _estimates(context, frame):
    """{part: {"block", "kind", "kl": (value, low, high), "ratio": (value, low, high), "top1", "tokens", "nats"}} of one scan;
    the last two are each document's."""
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
        found[name] |= {"tokens": tokens, "nats": columns["kl_divergence"]}
    return found


def _group(context, look, model, asked, found):
    alone = {name: entry for name, entry in found.items() if name != ALL}
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
            # A logarithm knows no 0: such an interval runs to the end of the axis.
            least = min((row[end] for row in rows for end in ("value", "low") if row[end]), default=1.0)
            drawn = [row | {"low": least} if row["low"] == 0 else row for row in rows]
            chart = charts.lines(drawn, look, x_title="block", y_title=None, of="layer", **options)
            panels.append(panel(title, chart, rows, "block"))
    numbers = {"columns": ["part", "of the scheme’s weights", "divergence, nats per token", "perplexity, ratio"]}
    numbers["columns"].append("same likeliest token")
    weights = _weights(context, model, asked)
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
    spared = _spared(context, model, asked)
    notes += [note for note, _ in spared]
    more = [table for _, table in spared if table]
    return {"heading": _heading(context, alone), "panels": panels, "notes": notes, "numbers": numbers, "more": more}


def _heading(context, alone):
    """Which part moves the distribution most, if the documents can tell it from the next one."""
    worst, *others = sorted(alone, key=lambda name: -alone[name]["kl"][0])
    said = f"{in_words(worst)} suffers most: {nats(alone[worst]['kl'][0])} nats per token"
    if not others:
        return said
    first, second = alone[worst], alone[others[0]]
    apart = [a - b for a, b in zip(first["nats"], second["nats"], strict=True)]
    _, low, _ = statistics.mean_per_token_ci(apart, first["tokens"], context.confidence)
    if low is not None and low > 0:
        return said
    return f"{said}, though {len(apart)} documents cannot tell it from {in_words(others[0])}"


def _weights(context, model, asked):
    """{part: weights of its layers}"""
    wanted = (model, asked["scheme"], asked["per"])
    return {
        entry["part"]["name"]: entry["part"]["parameters"]
        for entry in context.manifest["points"]
        if entry["stage"] == "sensitivity" and (entry["model"], entry["scheme"], entry["per"]) == wanted
    }


def _spared(context, model, asked):
    """[(note, table)] of the study's schemes that spare the worst layers by this scan."""
    parent, found = asked["scheme"], []
    frame = context.tables["checkpoints"]
    spared = {(row["model"], row["scheme"]): row["spared"] for row in frame.to_dicts() if row["spared"]}
    for scheme in context.study["schemes"]:
        spare = context.manifest["schemes"][scheme].get("spare")
        if not spare or (model, scheme) not in spared:
            continue
        if spare_entry(context.study, context.manifest["schemes"][scheme]) != asked:
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
        columns = ["gpu", "scheme", "size", f"perplexity over {context.baseline}"]
        columns += [f"divergence from {context.baseline}, nats per token", "answered right"]
        table = {"title": f"{scheme} beside {parent}", "note": "As the engine measured them.", "columns": columns}
        found.append((note, rows and table | {"rows": rows}))
    return found


def _cells(entry):
    """One scheme's size and quality on one device; of several data sets or tasks each by name."""
    decided = [found for found in entry["accuracy"] if found["decides"]]
    estimates = [
        [(f["dataset"], (f["ratio"], f["low"], f["high"]), ratio) for f in entry["perplexity"] if f["ratio"]],
        [(f["dataset"], (f["kl"], f["kl_low"], f["kl_high"]), nats) for f in entry["fidelity"]],
        [(f["task"], (f["share"], f["low"], f["high"]), display.share) for f in decided],
    ]
    cells = [display.amount(entry["size"] and entry["size"]["bytes"], "B")]
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
    said = [f"{', '.join(found)}{'' if block is None else f' of block {block}'}" for block, found in kinds.items()]
    rest = len(said) - MOST_NAMED
    return said if rest <= 0 else [*said[:MOST_NAMED], f"layers of {rest} more (table checkpoints)"]


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
