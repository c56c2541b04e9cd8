"""The report's section on what others have published for the study's devices, beside its own products of that shape."""

import polars as pl

from quantbench import display, published
from quantbench import kernel_analysis as analysis


def published_figures(context, folder):
    """[{"gpu", "title", "url", "said", "columns", "rows"}]: other people's figures for the study's devices, by source."""
    sources = published.load_sources(folder)
    figures = [row for row in published.load_published(folder) if row["gpu"] in context.study["gpus"]]
    ours = _same_products(context, figures)
    found = []
    for gpu in context.study["gpus"]:
        rows = published.match(figures, gpu)
        for source in published.citations(rows, sources):
            here = [row for row in rows if row["source"] == source["source"]]
            found.append(
                {"gpu": gpu, "title": source["title"], "url": source["url"], **_figures(gpu, source, here, ours)}
            )
    return found


def _same_products(context, figures):
    """{(gpu, product, m, n, k, computes): cells}: this study's own measurements of published products."""
    gemm, ours = context.tables.get("gemm"), {}
    shapes = {(row["n"], row["k"]) for row in figures if row["product"]}
    if gemm is None or not shapes:
        return ours
    frame = pl.DataFrame(sorted(shapes), schema={"n": pl.Int64, "k": pl.Int64}, orient="row")
    for product in ("linear", "relu_linear"):
        cells = analysis.cells(
            gemm.join(frame, on=["n", "k"], how="semi"), context.baseline, product, context.confidence
        )
        for cell in cells:
            place = (cell["gpu"], product, cell["m"], cell["n"], cell["k"], cell["computes"])
            ours.setdefault(place, []).append(cell)
    return ours


def _figures(gpu, source, rows, ours):
    beside = [_ours(gpu, row, ours) for row in rows]
    cells = []
    for row, mine in zip(rows, beside, strict=True):
        shape = f"{row['m']} × {row['n']} × {row['k']}" if row["product"] else f"{row['model']}, {row['phase']}"
        shape += ", ReLU before it" if row["product"] == "relu_linear" else ""
        quantizing = {True: "included", False: "left out", None: display.MISSING}[row["includes_quantization"]]
        cell = [row["label"], row["computes"] or display.MISSING, shape, *_metric(row["metric"], row["value"])]
        cells.append([*cell, quantizing, row["device"], row["note"] or "", *([mine] if any(beside) else [])])
    columns = ["kernel, in its words", "computes", "M × N × K", "figure", "published", "quantizing", "device", "remark"]
    columns += ["measured here, same product"] if any(beside) else []
    parts = [f"Measured by them: {source['measured']}", f"On: {source['hardware']}", str(source["version"])]
    said = " ".join(f"{' '.join(part.split()).removesuffix('.')}." for part in parts)
    if not any(row["note"] for row in rows):
        at = columns.index("remark")
        columns, cells = [c for c in columns if c != "remark"], [cell[:at] + cell[at + 1 :] for cell in cells]
    return {"said": said, "columns": columns, "rows": cells}


def _metric(metric, value):
    shown = {"latency_s": ("time", display.seconds), "tokens_per_s": ("tokens", lambda v: display.rate(v, "tokens/s"))}
    shown["tflops"] = ("rate", lambda v: display.amount(v * 1e12, "FLOP/s"))
    over = {"speedup_over_bf16": "over bf16", "speedup_over_fp16": "over fp16"}
    over["expected_speedup_over_bf16"] = "over bf16, expected"
    name, show = shown.get(metric) or (over[metric], display.factor)
    return name, show(value)


def _ours(gpu, row, ours):
    """The fastest of this study's cells for a published figure's very product, in the figure's own unit; else ""."""
    place = (gpu, row["product"], row["m"], row["n"], row["k"], row["computes"])
    cells = ours.get(place, [])
    if row["includes_quantization"] is not None:
        cells = [cell for cell in cells if cell["includes_quantization"] == row["includes_quantization"]]
    if not cells or published.latency_s(row) is None:
        return ""
    best = min(cells, key=lambda cell: cell["median_s"])
    value = (
        best["median_s"] if row["metric"] == "latency_s" else 2e-12 * row["m"] * row["n"] * row["k"] / best["median_s"]
    )
    return f"{_metric(row['metric'], value)[1]} ({best['entry']})"
