"""Batch sizes and lengths of a study's `latency` and `throughput`: a grid or a list becomes points. Pure."""

LENGTHS = ("input_tokens", "output_tokens")
# Of the lengths that a workload draws: the same for every scheme.
SEED = 0


def listed(lengths):
    """`lengths` of a study as its list; of a grid, {"input_tokens": [..], "output_tokens": [..]}, every combination."""
    if isinstance(lengths, list):
        return lengths
    inputs, outputs = (lengths[name] for name in LENGTHS)
    return [dict(zip(LENGTHS, (i, o), strict=True)) for i in inputs for o in outputs]


def batches(sweep, length):
    """Batch sizes of one of a sweep's lengths: its own, or those of all."""
    return length.get("batch_sizes", sweep.get("batch_sizes", []))


def points(sweep, workloads=None):
    """[{"batch_size", "input_tokens", "output_tokens"}] of a `latency` or `throughput` section; None is an empty one.

    workloads  {name: what goes into the identity}: of one there is {"batch_size", "workload", "seed"}; see workloads.py
    """
    sweep = sweep or {}
    found = [
        {"batch_size": batch, **{name: length[name] for name in LENGTHS}}
        for length in sweep.get("lengths", [])
        for batch in batches(sweep, length)
    ]
    named = [(workloads or {})[name] for name in sweep.get("workloads", [])]
    return found + [
        {"batch_size": batch, "workload": workload, "seed": SEED}
        for workload in named
        for batch in sweep["batch_sizes"]
    ]


def faults(stage, sweep):
    """Sentences on lengths that stand twice, have no batch size, or one twice."""
    found = []
    if sweep.get("workloads") and "batch_sizes" not in sweep:
        found.append(f"{stage}.batch_sizes: is missing; workloads need it")
    lengths = sweep.get("lengths", [])
    asked = [tuple(length[name] for name in LENGTHS) for length in lengths]
    for i, (length, size) in enumerate(zip(lengths, asked, strict=True)):
        place = f"{stage}.lengths[{i}]"
        if size in asked[:i]:
            found.append(f"{place}: {size[0]} tokens in and {size[1]} out stand twice")
        if not batches(sweep, length):
            found.append(f"{place}: no batch_sizes here, and none for all lengths in {stage}.batch_sizes")
        own = length.get("batch_sizes", [])
        found += [f"{place}.batch_sizes: {size!r} stands twice" for j, size in enumerate(own) if size in own[:j]]
    return found
