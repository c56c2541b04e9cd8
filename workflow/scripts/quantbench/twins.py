"""Schemes of one number format and the same kernels do the same work: how far their speeds lie apart is chance. Pure.

Repeats within one engine start do not see what another start changes (memory layout, the state of the machine). Where a
study has two recipes for one format, such as RTN and GPTQ, it has measured that, too: an A/A comparison for nothing.
"""

from itertools import combinations

import numpy as np

from quantbench.keys import canonical_json

STAGES = ("latency", "throughput")
POINT = ("batch_size", "input_tokens", "output_tokens")


def find_twins(manifest, kernels):
    """[(gpu, model, scheme, scheme)] of schemes that have one format and in which the engine ran the same kernels.

    manifest  its schemes' formats; the study's order of schemes
    kernels   rows of table `kernels`, as dicts
    """
    ran = {}
    for row in kernels:
        if row["status"] == "ok" and row["stage"] == "engine":
            variant = (row["gpu"], row["model"], row["scheme"])
            ran.setdefault(variant, set()).add((row["layer_kind"], row["kernel"], row["computes"]))
    groups = {}
    for (gpu, model, scheme), found in ran.items():
        format = manifest["schemes"][scheme]["format"]
        if format is not None:
            groups.setdefault((gpu, model, canonical_json(format), frozenset(found)), []).append(scheme)
    return [(gpu, model, *pair) for (gpu, model, *_), names in groups.items() for pair in combinations(names, 2)]


def widest_gap(manifest, tables):
    """The point at which twins differ most: {"gpu", "model", "schemes", "stage", "batch_size", "ratio"}, or None.

    tables  {name: polars frame}; ratio is that of the longer median time to the shorter, so at least 1
    """
    if "kernels" not in tables:
        return None
    gaps = []
    for gpu, model, *schemes in find_twins(manifest, tables["kernels"].to_dicts()):
        for stage in STAGES:
            medians = [_medians(tables.get(stage), gpu, model, scheme) for scheme in schemes]
            for place in medians[0].keys() & medians[1].keys():
                times = sorted(found[place] for found in medians)
                gap = {"gpu": gpu, "model": model, "schemes": schemes, "stage": stage, "batch_size": place[0]}
                gaps.append(gap | {"ratio": times[1] / times[0]})
    return max(gaps, key=lambda gap: gap["ratio"], default=None)


def _medians(frame, gpu, model, scheme):
    """{(batch size, lengths): median seconds} of one variant."""
    times = {}
    if frame is not None:
        for row in frame.filter(gpu=gpu, model=model, scheme=scheme, status="ok").to_dicts():
            times.setdefault(tuple(row[name] for name in POINT), []).append(row["elapsed_s"])
    return {place: float(np.median(values)) for place, values in times.items()}
