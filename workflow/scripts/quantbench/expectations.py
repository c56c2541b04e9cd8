"""What somebody expected, beside what was measured: met, missed or undecided, by the interval of the measurement.

An expectation says between which ends a figure of a scheme over the baseline lies. It is met where the whole interval
measured lies between them, missed where none of it does, and undecided where it reaches over an end. Pure, but for
`load_expectations`.
"""

from pathlib import Path

from quantbench.errors import UserError
from quantbench.validation import check, nearest, read_yaml

SCHEMA = Path(__file__).parents[2] / "schemas" / "expectations.schema.json"
MET, MISSED, UNDECIDED, NOT_MEASURED = "met", "missed", "undecided", "not measured"

# Where a measurement lies, as an expectation may say it: all that it does not say is left open.
PLACES = ("batch_size", "load", "level", "input_tokens", "output_tokens", "task", "dataset")
# Figures over the baseline that are not in the summary's speeds: {metric: (list of the entry, value, low, high)}.
RATIOS = {
    "recovery": ("accuracy", "recovery", "recovery_low", "recovery_high"),
    "perplexity": ("perplexity", "ratio", "low", "high"),
}


def load_expectations(asked, folder, schemes):
    """The study's expectations, those of the files that it names by name written out; [{"claim", "source", ...}].

    asked    the config's list: names of files in `folder`, and expectations written there
    schemes  the study's; a file may speak of others, the study's own lines may not
    Raises UserError: an unknown file or scheme, an expectation without ends.
    """
    found, known = [], sorted(path.stem for path in Path(folder).glob("*.yaml"))
    for i, entry in enumerate(asked):
        if isinstance(entry, str):
            if entry not in known:
                raise UserError(f"expectations[{i}]: there is no file {entry!r} in {folder}{nearest(entry, known)}")
            path = Path(folder, f"{entry}.yaml")
            entries = read_yaml(path)
            check(entries, SCHEMA, str(path))
            found += [_checked(each, f"{path}: {each['claim']!r}") for each in entries]
            continue
        check([entry], SCHEMA, f"expectations[{i}]")
        unknown = [name for name in entry["schemes"] if name not in schemes]
        if unknown:
            raise UserError(f"expectations[{i}].schemes: unknown scheme {unknown[0]!r}{nearest(unknown[0], schemes)}")
        found.append(_checked(entry, f"expectations[{i}]"))
    return found


def _checked(entry, where):
    low, high = entry["between"]
    if (low is None and high is None) or (None not in (low, high) and low > high):
        raise UserError(f"{where}.between: {[low, high]} has to be a least and a greatest value; one may be null")
    return entry


def judge(expectations, summary):
    """[{"claim", "source", "gpu", "model", "scheme", "metric", "between", "at", "value", "low", "high", "verdict"}].

    summary  comparison.summarize's entries. One row per measurement that an expectation speaks of; one that speaks of the
             study's devices and schemes, and of no measurement, has one row "not measured". Others are left out.
    """
    found = []
    for expected in expectations:
        entries = [e for e in summary if not e["is_baseline"] and _speaks_of(expected, e)]
        rows = [
            _row(expected, entry, place, estimate)
            for entry in entries
            for place, estimate in _figures(entry, expected["metric"])
            if all(place.get(key) == value for key, value in expected.get("at", {}).items())
        ]
        if entries and not rows:
            rows = [_row(expected, entries[0], expected.get("at", {}), None)]
        found += rows
    return found


def _speaks_of(expected, entry):
    return entry["scheme"] in expected["schemes"] and all(
        name not in expected or entry[key] in expected[name] for name, key in (("gpus", "gpu"), ("models", "model"))
    )


def _figures(entry, metric):
    """[(where, (value, low, high))] of an entry over the baseline."""
    if metric == "size":
        ratio = (entry["size"] or {}).get("ratio")
        # Bytes are counted, not sampled.
        return [({}, (ratio, ratio, ratio))] if ratio else []
    if metric in RATIOS:
        name, *columns = RATIOS[metric]
        rows = [row for row in entry[name] if row.get("decides", True) and columns[0] in row]
    else:
        rows, columns = [r for r in _speeds(entry) if r["metric"] == metric], ("gain", "low", "high")
    return [({key: row[key] for key in PLACES if key in row}, tuple(row[c] for c in columns)) for row in rows]


def _speeds(entry):
    """Batches one by one, then loads: an entry's `speed` repeats some of its batches."""
    return [*entry["batches"], *(row for row in entry["speed"] if "batch_size" not in row)]


def _row(expected, entry, place, estimate):
    value, low, high = estimate or (None, None, None)
    row = {name: entry[name] for name in ("gpu", "model", "scheme")}
    row |= {"claim": expected["claim"], "source": expected.get("source"), "metric": expected["metric"], "at": place}
    row |= {"between": expected["between"], "value": value, "low": low, "high": high}
    return row | {"verdict": NOT_MEASURED if value is None else verdict(expected["between"], low, high)}


def verdict(between, low, high):
    """met, missed or undecided: an interval against its expected ends, of which one may be None."""
    least, most = between
    if low is None or high is None:
        return UNDECIDED
    if (least is not None and high < least) or (most is not None and low > most):
        return MISSED
    inside = (least is None or low >= least) and (most is None or high <= most)
    return MET if inside else UNDECIDED
