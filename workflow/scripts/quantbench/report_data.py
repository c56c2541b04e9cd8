"""What the report carries besides its text: raw tables, points, runs and log excerpts, packed, for its script to look up.

Packed is gzip, then base64: browsers unpack it by themselves (DecompressionStream), without a library or a request.
"""

import base64
import csv
import gzip
import io
import json
import re
from collections import deque
from pathlib import Path

from quantbench.points import JOB_OF_STAGE
from quantbench.tables import TABLE_OF_STAGE, point_columns
from quantbench.workflow import POINTERS

# Half of a SHA-256 tells a billion billion points apart, and cannot be compressed.
KEY_DIGITS = 16
LOG_LINES, LINE_CHARACTERS = 12, 200
# Colours and cursor moves of a terminal; other controls that no reader needs.
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def packed(text):
    """The text as gzip in base64; the same text gives the same bytes."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def embedded(manifest, tables, room, logs=Path()):
    """{"study", "baseline", "tables", "points", "logs", "jobs"} for the page's script.

    tables   {name: {"rows", "packed": CSV, or null where it does not fit the `room`, in bytes}}; an empty one is left out
    points   packed CSV: one row per point, with the columns by which rows of its table are found
    logs     packed CSV: the last lines of each run's log, read below the folder `logs`
    jobs     {table: pointer of the job that measures it, with {gpu}, {model} and {scheme} to fill in}
    """
    study, runs = manifest["study"], tables.get("runs")
    found = {"study": study["study"], "baseline": study["baseline"], "jobs": _jobs(study["study"])}
    found["points"] = packed(_points(manifest))
    found["logs"] = packed(_logs([] if runs is None else runs.select("run_id", "log").rows(), Path(logs)))
    # Names and numbers of the tables, and what holds them together, take a few thousand bytes.
    return found | {"tables": _tables(tables, room - len(found["points"]) - len(found["logs"]) - 10_000)}


def _tables(tables, left):
    """Tables by size, the smallest first, while they fit."""
    texts = {name: frame.write_csv() for name, frame in tables.items() if len(frame)}
    found = {}
    for name in sorted(texts, key=lambda name: len(texts[name])):
        # Measurements pack to a sixth or so: what is larger by far needs no try, which would take seconds.
        data = packed(texts[name]) if len(texts[name]) < 10 * left else None
        data = data if data is not None and len(data) <= left else None
        left -= len(data or "")
        found[name] = {"rows": len(tables[name]), "packed": data}
    return {name: found[name] for name in tables if name in found}


def _points(manifest):
    rows = [("key", "table", "stage", "gpu", "model", "scheme", "start", "columns")]
    for point in manifest["points"]:
        # What tells the rows of one variant and table apart; nulls tell nothing.
        told = {name: value for name, value in point_columns(point).items() if value is not None}
        names = [point[name] for name in ("stage", "gpu", "model", "scheme")]
        key = point["key"][:KEY_DIGITS]
        rows.append((key, _table(point["stage"]), *names, point.get("start", 1), json.dumps(told)))
    return _csv(rows)


def _logs(runs, folder):
    return _csv([("run_id", "log"), *((run_id, excerpt(folder / log)) for run_id, log in runs if log)])


def excerpt(path):
    """The last lines of a log, shortened; an empty text where it cannot be read."""
    try:
        # A progress bar writes over its line: only the last state of it is a line.
        with open(path, errors="replace", newline="\n") as file:
            lines = deque(file, LOG_LINES)
    except (OSError, ValueError):
        return ""
    return "\n".join(CONTROLS.sub("", line.rstrip().rpartition("\r")[2])[:LINE_CHARACTERS] for line in lines)


def _jobs(study):
    found = {_table(stage): POINTERS[job] for stage, job in JOB_OF_STAGE.items()}
    found["checkpoints"] = POINTERS["quantize_model"]
    return {table: f"results/{study}/{pointer}" for table, pointer in found.items()}


def _table(stage):
    return TABLE_OF_STAGE.get(stage, stage)


def _csv(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
