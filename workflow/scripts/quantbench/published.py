"""Published figures (config/published): other people's measurements, shown beside ours as reference, never as ours.

One CSV file per source table, its source in sources.yaml; config/published/README.md says what each column is. Pure.
"""

import csv
import math
from pathlib import Path

from quantbench.errors import UserError

SOURCES = "sources.yaml"
SOURCE_KEYS = ("title", "url", "version", "measured", "hardware", "license")

COLUMNS = (
    "gpu", "device", "label", "computes", "product", "includes_quantization", "model", "phase", "m", "n", "k",
    "metric", "value", "note",
)  # fmt: skip

# What `value` is, by metric.
UNITS = {
    "latency_s": "s",
    "tflops": "TFLOPS",
    "tokens_per_s": "tokens/s",
    "speedup_over_bf16": "x",
    "speedup_over_fp16": "x",
    "expected_speedup_over_bf16": "x",
}
ALLOWED = {
    "product": ("linear", "relu_linear"),
    "phase": ("prefill", "decode"),
    "includes_quantization": ("true", "false"),
    "metric": tuple(UNITS),
}


def load_sources(folder):
    """Where the figures come from: {source: {title, url, version, measured, hardware, license}}.

    `source` is the name of a CSV file without its ending. Raises UserError: the file, the entry and what is missing.
    """
    # Workflow environment only.
    import yaml

    path = Path(folder) / SOURCES
    try:
        sources = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot read the sources of the published figures: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(sources, dict):
        raise UserError(f"{path}: must be a mapping of file names (without .csv) to their sources")
    for name, entry in sources.items():
        missing = [key for key in SOURCE_KEYS if not isinstance(entry, dict) or not entry.get(key)]
        if missing:
            raise UserError(f"{path}: {name}: {missing[0]} is missing; an entry has {', '.join(SOURCE_KEYS)}")
        unknown = sorted(set(entry) - set(SOURCE_KEYS))
        if unknown:
            raise UserError(f"{path}: {name}: unknown key {unknown[0]!r}; an entry has {', '.join(SOURCE_KEYS)}")
    return sources


def load_published(folder):
    """Every published figure: [{"source", *COLUMNS}], in order of file and row; an empty cell is None.

    m, n and k are int, value is float (in UNITS[metric]), includes_quantization is True, False or None.
    Raises UserError: file, row and column of what is wrong, a file without a source, a source without a file.
    """
    folder = Path(folder)
    sources = load_sources(folder)
    files = {path.stem: path for path in sorted(folder.glob("*.csv"))}
    for name in sorted(files.keys() - sources.keys()):
        raise UserError(f"{files[name]}: has no source: {SOURCES} has no entry {name!r}")
    for name in sorted(sources.keys() - files.keys()):
        raise UserError(f"{folder / SOURCES}: {name}: there is no file {name}.csv")
    return [{"source": name, **row} for name, path in files.items() for row in _read(path)]


def _read(path):
    """Typed rows of one file."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = tuple(reader.fieldnames or ())
        if columns != COLUMNS:
            wrong = sorted(set(columns) ^ set(COLUMNS)) or ["their order"]
            raise UserError(f"{path}: wrong columns ({', '.join(wrong)}); a file has {','.join(COLUMNS)}")
        # Line 1 is the header; no cell spans lines.
        return [_typed(row, f"{path}: row {line}") for line, row in enumerate(reader, start=2)]


def _typed(row, where):
    """One row with types instead of text."""
    if None in row or None in row.values():
        raise UserError(f"{where}: has {'more' if None in row else 'fewer'} cells than the header's {len(COLUMNS)}")
    cells = {column: cell.strip() or None for column, cell in row.items()}
    for column, allowed in ALLOWED.items():
        if cells[column] is not None and cells[column] not in allowed:
            raise UserError(f"{where}: {column} {cells[column]!r} is none of {', '.join(allowed)}")
    for column in ("device", "label", "metric", "value"):
        if cells[column] is None:
            raise UserError(f"{where}: {column} is missing")
    for column in ("m", "n", "k"):
        cells[column] = _number(cells[column], int, f"{where}: {column}")
    cells["value"] = _number(cells["value"], float, f"{where}: value")
    flag = cells["includes_quantization"]
    cells["includes_quantization"] = None if flag is None else flag == "true"
    shape = [cells[column] for column in ("m", "n", "k")]
    if cells["product"] and None in shape:
        raise UserError(f"{where}: a {cells['product']} product has m, n and k")
    if not cells["product"] and not (cells["model"] and cells["phase"]):
        raise UserError(f"{where}: has either a product with m, n and k, or a model and a phase")
    return cells


def _number(cell, kind, where):
    """A positive, finite number; None for an empty cell."""
    if cell is None:
        return None
    try:
        value = kind(cell)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{where} {cell!r} is not a positive {'whole ' if kind is int else ''}number")
    return value


def match(published, gpu=None, **where):
    """The rows that stand for a gpu (a name in config/gpus.yaml) and have these values in these columns, in order.

    match(rows, "h100", product="linear", n=8192, k=8192). A column that is left out, or None, matches everything.
    """
    wanted = {column: value for column, value in {"gpu": gpu, **where}.items() if value is not None}
    return [row for row in published if all(row[column] == value for column, value in wanted.items())]


def flops_per_s(row):
    """Operations per second of a product's row: printed, or 2 m n k over its time; None for another metric."""
    if row["metric"] == "tflops":
        return row["value"] * 1e12
    if row["metric"] == "latency_s" and row["product"]:
        return 2 * row["m"] * row["n"] * row["k"] / row["value"]
    return None


def latency_s(row):
    """Time of one product of a row: printed, or 2 m n k over its rate; None for another metric or a whole model."""
    if row["metric"] == "latency_s":
        return row["value"] if row["product"] else None
    if row["metric"] == "tflops":
        return 2 * row["m"] * row["n"] * row["k"] / (row["value"] * 1e12)
    return None


def citations(rows, sources):
    """The sources of these rows, each once, in order of first use: [{"source", title, url, version, ...}]."""
    used = dict.fromkeys(row["source"] for row in rows)
    return [{"source": name, **sources[name]} for name in used]
