"""A report taken apart: its sections, tables and charts as data. And the study it is made of, cut down."""

import base64
import gzip
import json
import re
from html import unescape

import polars as pl

SECTIONS = ("latency", "throughput", "serving", "accuracy", "perplexity", "kernels")


def copied(manifest):
    return json.loads(json.dumps(manifest))


def only(study, *, gpus=None, schemes=None, sections=SECTIONS):
    """The study cut down: fewer gpus or schemes, or stages that its config leaves out."""
    manifest, tables = copied(study[0]), dict(study[1])
    config = manifest["study"]
    config["gpus"], config["schemes"] = gpus or config["gpus"], schemes or config["schemes"]
    stages = {"probe", "load", *("gemm" if section == "kernels" else section for section in sections)}
    for part in ("points", "skips"):
        manifest[part] = [
            entry
            for entry in manifest[part]
            if (entry["stage"] in stages and entry["gpu"] in config["gpus"])
            and entry["scheme"] in (None, *config["schemes"])
        ]
    for section in set(SECTIONS) - set(sections):
        del config[section]
        table = "gemm" if section == "kernels" else section
        tables[table] = tables[table].clear()
    for name, frame in tables.items():
        if "scheme" in frame.columns:
            # Contenders have none.
            frame = frame.filter(pl.col("scheme").is_in(config["schemes"]) | pl.col("scheme").is_null())
        if "gpu" in frame.columns:
            frame = frame.filter(pl.col("gpu").is_in(config["gpus"]))
        tables[name] = frame
    return manifest, tables


def hostile_study(study, text):
    """The study with `text` wherever a string can come from outside: title, names, reasons, answers, kernels, versions, hosts."""
    manifest, tables = copied(study[0]), dict(study[1])
    manifest["study"]["title"] = text
    manifest["models"]["tiny"]["source"] = text
    outside = (
        "reason",
        "answer",
        "target",
        "sample",
        "kernel",
        "filter",
        "task",
        "dataset",
        "layer",
        "layer_kind",
        "host",
    )
    outside += (
        "driver",
        "device_name",
        "log",
        "error",
        "computes",
        "isa",
        "cuda_version",
        "mismatch",
        "chooser_kernel",
    )
    outside += ("chooser_computes", "chooser_reason", "rule_kernel", "rule_reason", "engine_kernels")
    for name, frame in tables.items():
        # The ends stay what they were, so that groups stay apart.
        changed = [(pl.col(c).fill_null("") + text).alias(c) for c in outside if c in frame.columns]
        frame = frame.with_columns(changed)
        if "scheme" in frame.columns:
            frame = frame.with_columns(pl.col("scheme").replace({"rtn-int4": text}))
        tables[name] = frame
    return json.loads(json.dumps(manifest).replace('"rtn-int4"', json.dumps(text))), tables


def written(html):
    """The page without scripts and style: what is said."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)


def specifications(html):
    """{name: Vega-Lite specification} of the charts that are not packed."""
    kinds = embedded(html, "page-charts")["kinds"]
    found = re.findall(r'data-chart="([^"]+)"></div><script type="application/json">(.*?)</script>', html, re.DOTALL)
    charts = {name: json.loads(text) for name, text in found}
    return {name: {**kinds[kind], "datasets": datasets} for name, (kind, datasets) in charts.items()}


def embedded(html, name):
    """What the page carries for its script under that name."""
    text = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', html, re.DOTALL).group(1)
    return json.loads(text)


def unpacked(text):
    return gzip.decompress(base64.b64decode(text)).decode()


def row_of(html, gpu, scheme):
    """The scheme's row of the first table, below the gpu's heading."""
    first = written(html).split('class="scroll first')[1].split("</table>")[0]
    body = next(body for body in first.split("<tbody")[1:] if f"<span>{gpu} " in body)
    return next(row for row in body.split("<tr ") if f'<th scope="row">{scheme}<' in row)


def section_of(html, name):
    return html.split(f'<section id="{name}"')[1].split("</section>")[0]


def folded(html, summary):
    """The first folded part of that name."""
    return html.split(f"<summary>{summary}</summary>")[1].split("</details>")[0]


def cells_of(part):
    """[[cell, ...]] of a table, without its head, as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", part.split("<tbody>")[1], re.DOTALL)
    return [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]
