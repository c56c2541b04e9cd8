"""The report's sections on quality and size: accuracy, perplexity, fidelity, checkpoints."""

from quantbench import charts, display
from quantbench.dummy import is_dummy
from quantbench.sections import panel, point
from quantbench.verdict import BETTER, EQUAL, UNCLEAR, WORSE

TINY = (
    "“{names}” is a small synthetic model, trained by this workflow on made-up arithmetic, with outlier channels "
    "planted in its weights. Its accuracy shows that a loss is seen where there is one, not how much a real model "
    "would lose; its speed is that of a toy."
)
DUMMY = (
    "“{names}” has dummy weights: random numbers in the layers that its config.json describes. Its speed is that of the "
    "architecture; what it answers means nothing, and accuracy is not measured."
)
TINY_SHORT = (
    "The tiny model is synthetic, with planted outlier channels: its losses show that the method sees them, not what a "
    "real model loses."
)


def tiny_notice(manifest):
    """What has to be said beside every accuracy of the synthetic model; None when the study has real models only."""
    names = [model["name"] for model in manifest["study"]["models"] if model["source"] == "tiny"]
    return TINY.format(names="”, “".join(names)) if names else None


def dummy_notice(manifest):
    """What has to be said of models with dummy weights; None when the study has none."""
    names = [model["name"] for model in manifest["study"]["models"] if is_dummy(model)]
    return DUMMY.format(names="”, “".join(names)) if names else None


def notices(context):
    """The same in short, for the sections further down."""
    return [TINY_SHORT] if tiny_notice(context.manifest) else []


def _point(scheme, found, estimate, shown):
    """A chart's row of a scheme, which says where its numbers are emulated."""
    return point(scheme, None, estimate, shown) | {"label": display.called(scheme, found["emulated"])}


def _emulated_notes(mine):
    """What it means that some schemes' numbers are emulated."""
    names = [scheme for scheme, found in mine if found["emulated"]]
    if not names:
        return []
    has, its = ("has", "its") if len(names) == 1 else ("have", "their")
    return [
        f"{display.listed(names)} {has} no kernel on this device and {'is' if len(names) == 1 else 'are'} emulated: {its} "
        f"dequantized weights, multiplied in 16 bits with activations rounded as {its} format says. The numbers of the "
        "scheme, without its speed."
    ]


def accuracy(context):
    intro = (
        "Share of questions answered right, with its {ci} % Wilson interval; the dashed line is {baseline}. These "
        "intervals are each scheme's own. Whether a scheme differs is told question by question, in the heading and in the "
        "numbers: worse or better by the exact McNemar test, Holm-adjusted over the schemes; equal where the whole interval "
        "of the difference (Tango's score interval) lies within the margin."
    )
    groups, keys = [], ("task", "dataset", "shots", "chat_template")
    for gpu, model, entries in _variants(context):
        tasks = dict.fromkeys(tuple(found[k] for k in keys) for entry in entries for found in entry["accuracy"])
        for task in tasks:
            mine = [(e["scheme"], f) for e in entries for f in e["accuracy"] if tuple(f[k] for k in keys) == task]
            kicker = f"{gpu} · {model} · {_task_words(*task)}"
            at = {"table": "accuracy", "gpu": gpu, "model": model, **dict(zip(keys, task, strict=True))}
            groups.append({"kicker": kicker, "at": at, **_accuracy_group(context, mine)})
    return context.section("accuracy", "Accuracy", intro, groups, notices=notices(context))


def _task_words(task, dataset, shots, chat_template):
    """The task as a heading says it: "gsm8k on arithmetic, 3 solved examples in the prompt"."""
    said = f"{task} on {dataset}" if dataset else task
    said += "" if shots is None else f", {shots} solved example{'' if shots == 1 else 's'} in the prompt"
    return said + (", through the chat template" if chat_template else "")


def _accuracy_group(context, mine):
    panels, table = [], []
    deciding = [found["filter"] for _, found in mine if found["decides"]]
    filters = sorted(dict.fromkeys(found["filter"] for _, found in mine), key=lambda name: name not in deciding)
    for name in filters:
        read = [(scheme, found) for scheme, found in mine if found["filter"] == name]
        rows = []
        for scheme, found in read:
            rows.append(_point(scheme, found, (found["share"], found["low"], found["high"]), display.share))
            right = f"{round(found['share'] * found['n'])} of {found['n']}"
            table.append([rows[-1]["label"], name, right, rows[-1]["text"], *_beside(found)])
        reference = next((row["value"] for row in rows if row["scheme"] == context.baseline), None)
        chart = charts.intervals(rows, context.look, x_title="answered right", reference=reference, percent=True)
        panels.append(panel(f"Answers read by {name}", chart, rows))
    columns = ["scheme", "answer read by", "right", "share", f"against {context.baseline}, points", "verdict"]
    columns += [f"recovery, of {context.baseline}’s share", "lost and won", "p, Holm", "paired bootstrap, points"]
    columns.append("smallest loss it could show, points")
    compared = [(scheme, found) for scheme, found in mine if found["decides"] and "words" in found]
    heading, notes = _loss_heading(context, compared), _noise_notes(context, mine) + _length_notes(mine)
    notes += _emulated_notes(compared)
    numbers = {"columns": columns, "rows": table, "at": {0: "scheme", 1: "filter"}}
    return {"heading": heading, "panels": panels, "notes": notes, "numbers": numbers}


def _beside(found):
    """What stands beside the baseline, cell by cell; nothing of the baseline itself."""
    if "difference" not in found:
        return [""] * 7
    estimate = (found["difference"], found["difference_low"], found["difference_high"])
    recovery = (found["recovery"], found["recovery_low"], found["recovery_high"])
    unseen = found["smallest_detectable"]
    return [
        display.with_interval(estimate, display.points),
        found["words"],
        display.with_interval(recovery, display.share),
        f"{found['lost']} lost, {found['won']} won",
        f"{found['p_holm']:.2g}",
        display.interval(*found["bootstrap"], display.points),
        display.MISSING if unseen is None else f"{100 * unseen:.1f}",
    ]


def _noise_notes(context, mine):
    """What the baseline changed from one start of its own to the next."""
    noise = next((found["noise"] for _, found in mine if found["decides"] and found.get("noise")), None)
    if noise is None:
        return []
    estimate = tuple(noise[name] for name in ("difference", "difference_low", "difference_high"))
    changed = f"{noise['lost'] + noise['won']} of {noise['pairs']} answers"
    return [
        f"Noise floor: started again, {context.baseline} itself changed from right to wrong or back in {changed} "
        f"({display.with_interval(estimate, display.points)} points). A scheme is called better or worse only where it is "
        f"beside every one of the {noise['starts']} starts."
    ]


def _length_notes(mine):
    """Schemes whose answers ramble, or end early."""
    lengths = [(scheme, found["length"]) for scheme, found in mine if found.get("length")]
    return [f"{scheme}, {length['words']}." for scheme, length in lengths if length["words"]]


def _loss_heading(context, compared):
    if not compared:
        return f"Nothing stands beside {context.baseline} to compare"
    compared = [(display.called(scheme, found["emulated"]), found) for scheme, found in compared]
    kinds = {kind: [scheme for scheme, found in compared if found["kind"] == kind] for kind in (EQUAL, UNCLEAR)}
    changed = sorted((f["difference"], scheme) for scheme, f in compared if f["kind"] in (BETTER, WORSE))
    said = []
    if changed:
        losses = display.listed(f"{scheme} {display.points(difference)}" for difference, scheme in changed)
        said.append(f"in percentage points against {context.baseline}, {losses}")
    if kinds[EQUAL]:
        words = next(found["words"] for _, found in compared if found["kind"] == EQUAL)
        said.append(f"{words}: {display.listed(kinds[EQUAL])}")
    if kinds[UNCLEAR]:
        asked = compared[0][1]["n"]
        said.append(f"{asked} questions cannot tell of {display.listed(kinds[UNCLEAR])}")
    heading = "; ".join(said)
    return heading[0].upper() + heading[1:]


def _by_dataset(context, name, group):
    """A group of the section per gpu, model and data set: group(context, [(scheme, its entry of `name`)])."""
    groups = []
    for gpu, model, entries in _variants(context):
        for dataset in dict.fromkeys(found["dataset"] for entry in entries for found in entry[name]):
            mine = [(e["scheme"], f) for e in entries for f in e[name] if f["dataset"] == dataset]
            at = {"table": name, "gpu": gpu, "model": model, "dataset": dataset}
            groups.append({"kicker": f"{gpu} · {model} · {dataset}", "at": at, **group(context, mine)})
    return groups


def perplexity(context):
    intro = (
        "Perplexity over that of {baseline} on the same documents, with its {ci} % interval, documents resampled. "
        "Above 1 is worse: the text surprises the quantized model more."
    )
    groups = _by_dataset(context, "perplexity", _perplexity_group)
    return context.section("perplexity", "Perplexity", intro, groups, notices=notices(context))


def _perplexity_group(context, mine):
    rows, table, worse = [], [], []
    for scheme, found in mine:
        cells = ["", ""]
        if found["ratio"] is not None:
            rows.append(
                _point(scheme, found, (found["ratio"], found["low"], found["high"]), lambda ratio: f"{ratio:.4f}")
            )
            cells = [rows[-1]["text"], found["words"]]
        elif found.get("noise"):
            noise = tuple(found["noise"][name] for name in ("ratio", "low", "high"))
            cells = [display.with_interval(noise, lambda ratio: f"{ratio:.4f}"), "noise floor: started again"]
        name = display.called(scheme, found["emulated"])
        table.append([name, f"{found['perplexity']:.4g}", *cells])
        worse += [(found["ratio"], name)] if found.get("kind") == WORSE else []
    if not rows:
        heading = f"Nothing stands beside {context.baseline} to compare"
    elif not worse:
        heading = f"No scheme's perplexity is called worse than that of {context.baseline}"
    else:
        heading = f"{max(worse)[1]} loses most: {max(worse)[0]:.3g} times the perplexity of {context.baseline}"
    chart = rows and charts.intervals(rows, context.look, x_title=f"× {context.baseline}", reference=1)
    panels = [panel(f"Perplexity over {context.baseline}", chart, rows)] if rows else []
    columns = ["scheme", "perplexity", f"over {context.baseline}", "verdict"]
    numbers = {"columns": columns, "rows": table, "at": {0: "scheme"}}
    return {"heading": heading, "panels": panels, "notes": _emulated_notes(mine), "numbers": numbers}


def fidelity(context):
    intro = (
        "How far the next-token distribution is from that of {baseline} on the same text: Kullback-Leibler divergence in "
        "nats per token, and the share of tokens at which the likeliest one is the same. {ci} % intervals, documents "
        "resampled. Divergence is summed over the likeliest tokens and all others as one, a bound from below. It sees what "
        "accuracy cannot: answers may stay right by chance, and perplexity may even improve."
    )
    groups = _by_dataset(context, "fidelity", _fidelity_group)
    return context.section("fidelity", "Fidelity to the baseline", intro, groups, notices=notices(context))


# Divergences further apart than this are drawn on a logarithmic axis: else all but the largest lie on zero.
LOGARITHMIC = 30
FIDELITY = (("kl", "Divergence, nats per token", lambda v: f"{v:.3g}"), ("top1", "Same likeliest token", display.share))


def _fidelity_group(context, mine):
    rows = {
        name: [
            _point(scheme, f, tuple(f[n] for n in (name, f"{name}_low", f"{name}_high")), shown) for scheme, f in mine
        ]
        for name, _, shown in FIDELITY
    }
    noise = next((found for scheme, found in mine if scheme == context.baseline), None)
    panels = []
    for name, title, _ in FIDELITY:
        drawn = [row for row in rows[name] if row["scheme"] != context.baseline]
        if drawn:
            options = {"reference": noise and noise[name], "percent": name == "top1"}
            values = [row["value"] for row in drawn]
            options["log"] = name == "kl" and min(values) > 0 and max(values) > LOGARITHMIC * min(values)
            axis = "of tokens" if name == "top1" else "nats per token"
            chart = charts.intervals(drawn, context.look, x_title=axis, **options)
            panels.append(panel(title, chart, drawn))
    others = [
        (found["kl"], display.called(scheme, found["emulated"])) for scheme, found in mine if scheme != context.baseline
    ]
    heading = f"Nothing stands beside {context.baseline} to compare"
    if others:
        (least, closest), (most, furthest) = min(others), max(others)
        heading = f"{closest} stays closest to {context.baseline}: {least:.2g} nats per token"
        heading += f"; furthest is {furthest}: {most:.2g}" if len(others) > 1 else ""
    notes = []
    if noise:
        floor = f"{rows['kl'][[s for s, _ in mine].index(context.baseline)]['text']} nats per token"
        notes.append(f"Noise floor (dashed): {context.baseline} started again is {floor} from its own first start.")
    notes += _emulated_notes(mine)
    table = [
        [kl["label"], kl["text"], top1["text"], f"{found['tokens']:,} in {found['documents']}", found["words"]]
        for (scheme, found), kl, top1 in zip(mine, rows["kl"], rows["top1"], strict=True)
    ]
    columns = ["scheme", "divergence, nats per token", "same likeliest token", "tokens in documents", "noise"]
    numbers = {"columns": columns, "rows": table, "at": {0: "scheme"}}
    return {"heading": heading, "panels": panels, "notes": notes, "numbers": numbers}


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
            groups.append(
                {"kicker": model, "at": {"table": "checkpoints", "model": model}, **_size_group(context, mine)}
            )
    intro = "Safetensors on disk. Bits per weight count scales, zero points and the layers left unquantized."
    section = context.section("size", "Checkpoint size", intro, groups)
    # No config section asks for sizes: they come with every checkpoint.
    none = "No checkpoint: dummy weights." if all(map(is_dummy, context.study["models"])) else "No checkpoint was made."
    return section if groups else {**section, "missing": none}


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
    numbers = {"columns": ["scheme", "size", "bits per weight"], "rows": table, "at": {0: "scheme"}}
    panels = [panel("Size on disk, and bits per weight", charts.bars(rows, context.look, x_title=unit), rows)]
    return {"heading": heading, "panels": panels, "notes": [], "numbers": numbers}
