"""Workloads: requests of different lengths, by a distribution of config/workloads.yaml or a file of the study's own."""

import re
from pathlib import Path

from quantbench.errors import UserError

SCHEMA = Path(__file__).parents[2] / "schemas" / "workloads.schema.json"
# What a file may be: ShareGPT's JSON, or rows of prompt and output_tokens.
SUFFIXES = (".json", ".jsonl")
# Of an entry, what decides the requests.
PARTS = ("input_tokens", "output_tokens")


def load_workloads(path):
    """{name: entry} of a file of distributions. Raises UserError listing every fault."""
    # Workflow environment only.
    from quantbench.validation import check, read_yaml

    entries = read_yaml(path)
    check(entries, SCHEMA, str(path))
    for name, entry in entries.items():
        for part in PARTS:
            lengths = entry[part]
            if not lengths["least"] <= lengths["mean"] <= lengths["most"]:
                raise UserError(f"{path}: {name}.{part}: mean {lengths['mean']} is not between least and most")
    return entries


def is_file(name):
    return name.endswith(SUFFIXES)


def label(name):
    """What tables call a workload: a distribution's name, of a file its stem."""
    return re.sub(r"[^a-z0-9._-]+", "-", Path(name).stem.lower()).strip("-._") if is_file(name) else name


def identities(names, shipped, digest):
    """{name: what goes into a point's identity}: a distribution's numbers, or a file's digest.

    shipped  entries of config/workloads.yaml
    digest   function of a path
    """
    return {
        name: {"sha256": digest(Path(name).expanduser())}
        if is_file(name)
        else {part: shipped[name][part] for part in PARTS}
        for name in names
    }


def faults(place, names, shipped, nearest):
    """Sentences on names that are no workload, files that are not there, and two that tables could not tell apart."""
    found = []
    for i, name in enumerate(names):
        if is_file(name):
            if not Path(name).expanduser().is_file():
                found.append(f"{place}[{i}]: there is no file {name!r}")
        elif name not in shipped:
            hint = nearest(name, shipped)
            found.append(f"{place}[{i}]: unknown workload {name!r}{hint}; a file of your own ends in .json or .jsonl")
        twin = next((other for other in names[:i] if label(other) == label(name) and other != name), None)
        if twin:
            found.append(f"{place}[{i}]: {name!r} and {twin!r} are both called {label(name)!r}; rename one")
    return found


def context_faults(place, names, shipped, context):
    """Sentences on distributions whose shortest requests are longer than a model's context."""
    return [
        f"{place}: the shortest request of {name!r} has {least} tokens, more than the context, {context},"
        for name in names
        if not is_file(name) and (least := sum(shipped[name][part]["least"] for part in PARTS)) > context
    ]


def workload_files(found):
    """{sha256: path} of the workloads that are files, for the jobs that read them; `found` as `identities` made it."""
    return {identity["sha256"]: str(Path(name).expanduser()) for name, identity in found.items() if is_file(name)}


def described(entry):
    """A distribution in words: "161 tokens in and 338 out on average"."""
    return f"{entry['input_tokens']['mean']:g} tokens in and {entry['output_tokens']['mean']:g} out on average"


def label_of(parameters, found):
    """What tables call a point's workload, None for fixed lengths; `found` as `identities` made it."""
    return next((label(name) for name, identity in found.items() if identity == parameters.get("workload")), None)
