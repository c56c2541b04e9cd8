"""The report's sections on hardware: what each device is and reaches, and which scheme runs on it, and how."""

from quantbench import display
from quantbench.support_table import why_of

# (badge's look, words) of a level of support.
LEVELS = {
    "native": ("good", "native"),
    "emulated": ("warn", "emulated"),
    "unsupported": ("unsupported", "unsupported"),
    "unknown": ("missing", "not known"),
}


def hardware(context):
    """[{"gpu", "heading", "facts", "notice", "table", "sources"}], one per device of the study that was probed."""
    frame = context.tables.get("gpus")
    rows = [] if frame is None else frame.to_dicts()
    found = []
    for gpu in context.study["gpus"]:
        here = [row for row in rows if row["gpu"] == gpu]
        if here:
            found.append({"gpu": gpu, **_device(gpu, here, context.manifest["gpus"].get(gpu, {}))})
    return found


def _device(gpu, rows, sheet):
    first = rows[0]
    if first["status"] != "ok":
        said = {"heading": "Not probed", "facts": first["reason"] or "", "notice": None}
        return said | {"table": _ceilings(rows, sheet), "sources": _sources(sheet)}
    return {
        "heading": _heading(rows),
        "facts": " · ".join(_facts(first)),
        "notice": _notice(first),
        "table": _ceilings(rows, sheet),
        "sources": _sources(sheet),
    }


def _heading(rows):
    """The device's name, and what it reaches: its bandwidth and its rate in 16 bits, of the data sheet where there is one."""
    first = rows[0]
    bandwidth = first["measured_bandwidth_bytes_per_s"], first["datasheet_bandwidth_bytes_per_s"]
    rates = {row["dtype"]: (row["measured_flops_per_s"], row["datasheet_flops_per_s"]) for row in rows}
    reached = [_reached(*bandwidth, "B/s")] if bandwidth[0] else []
    dtype = next((dtype for dtype in ("bf16", "fp16", "fp32") if rates.get(dtype, (None,))[0]), None)
    reached += [f"{_reached(*rates[dtype], 'FLOP/s')} in {dtype}"] if dtype else []
    name = first["device_name"] or "A device without a name"
    return f"{name} reaches {display.listed(reached)}" if reached else f"{name}: no ceiling was measured"


def _reached(measured, promised, unit):
    share = f" ({display.share(measured / promised, 0)} of its data sheet)" if promised else ""
    return display.amount(measured, unit) + share


def _facts(row):
    """What else the probe read of a device; what it could not read is left out."""
    clock, most = row["sm_clock_hz"], row["max_sm_clock_hz"]
    others, ecc = row["other_processes"], row["ecc"]
    facts = [
        row["capability"] and f"compute capability {row['capability']}",
        row["memory_bytes"] and f"{display.amount(row['memory_bytes'], 'B')} of memory",
        row["l2_bytes"] and f"last shared cache {display.amount(row['l2_bytes'], 'B')}",
        row["threads"] and f"{row['threads']} threads",
        row["isa"] and f"instructions {row['isa']}",
        clock and f"cores at {display.amount(clock, 'Hz')}" + (f" of {display.amount(most, 'Hz')}" if most else ""),
        row["memory_clock_hz"] and f"memory at {display.amount(row['memory_clock_hz'], 'Hz')}",
        row["power_limit_w"] and f"power limit {row['power_limit_w']:.0f} W",
        None if ecc is None else f"ECC {'on' if ecc else 'off'}",
        None if others is None else f"{others or 'no'} other process{'' if others == 1 else 'es'}",
        row["driver"] and f"driver {row['driver']}",
        row["cuda_version"] and f"CUDA {row['cuda_version']}",
    ]
    return [fact for fact in facts if fact]


def _notice(row):
    count = row["other_processes"]
    if not count:
        return None
    were = "another process was" if count == 1 else f"{count} other processes were"
    return f"While this device was probed, {were} on it: its ceilings may be too low, and its times too long."


def _ceilings(rows, sheet):
    """Data sheet beside measurement: bandwidth, then a rate per number format."""
    first, sparse = rows[0], sheet.get("sparse_flops_per_s") or {}
    pairs = [
        ("memory bandwidth", "B/s", first["datasheet_bandwidth_bytes_per_s"], first["measured_bandwidth_bytes_per_s"])
    ]
    pairs += [
        (f"matrix product, {row['dtype']}", "FLOP/s", row["datasheet_flops_per_s"], row["measured_flops_per_s"])
        for row in rows
        if row["dtype"]
    ]
    sparse_of = {f"matrix product, {dtype}": rate for dtype, rate in sparse.items() if rate}
    lines = []
    for what, unit, promised, measured in pairs:
        reached = measured / promised if measured and promised else None
        line = [what, display.amount(promised, unit), display.amount(measured, unit), display.share(reached, 0)]
        lines.append([*line, *([display.amount(sparse_of.get(what), unit)] if sparse_of else [])])
    columns = ["ceiling", "data sheet", "measured here", "reached"]
    return {"columns": columns + (["data sheet, 2:4 sparse"] if sparse_of else []), "rows": lines}


def _sources(sheet):
    """Where the data sheet's numbers come from."""
    used = dict.fromkeys(sheet.get("source_of", {}).values())
    return [" ".join(sheet["sources"][name].split()) for name in used if name in sheet.get("sources", {})]


def support(context):
    """The matrix of schemes and devices, {"gpus", "rows", "table"}; None where there is no such table.

    rows: {"scheme", "cells": [{"tone", "level", "kernel", "mismatch"} or None per gpu]}; `table` has the reasons.
    """
    frame = context.tables.get("support")
    found = [] if frame is None else frame.to_dicts()
    rows = {(row["scheme"], row["gpu"]): row for row in found}
    if not rows:
        return None
    gpus, schemes = context.study["gpus"], context.study["schemes"]
    matrix = [{"scheme": scheme, "cells": [_cell(rows.get((scheme, gpu))) for gpu in gpus]} for scheme in schemes]
    lines = []
    for scheme in schemes:
        for gpu in gpus:
            row = rows.get((scheme, gpu))
            if row is None:
                continue
            lines.append(
                [
                    scheme,
                    gpu,
                    LEVELS[_level(row)][1],
                    _answers(row) or display.MISSING,
                    why_of(row) or "",
                    row["mismatch"] or "",
                ]
            )
    columns = ["scheme", "gpu", "level", "kernel, and who names it", "why", "disagreement"]
    return {"gpus": gpus, "rows": matrix, "table": {"columns": columns, "rows": lines}}


def _level(row):
    return row["level"] or ("unsupported" if row["status"] == "unsupported" else "unknown")


def _cell(row):
    if row is None:
        return None
    tone, level = LEVELS[_level(row)]
    kernel = row["engine_kernels"] or row["chooser_kernel"] or row["rule_kernel"]
    computes = row["engine_computes"] if row["engine_kernels"] else row["chooser_computes"]
    said = (_kernel(kernel, computes) or "") if _level(row) != "unsupported" else ""
    reason = display.in_short(row["reason"]) if _level(row) == "unsupported" and row["reason"] else said
    return {"tone": tone, "level": level, "kernel": reason, "mismatch": row["mismatch"]}


def _answers(row):
    """Which kernel the rules, the engine's chooser and the engine itself name, those that agree together."""
    answers = [("rules", row["rule_kernel"], None)]
    answers.append(("vLLM’s chooser", row["chooser_kernel"], row["chooser_computes"]))
    answers.append(("what ran", row["engine_kernels"], row["engine_computes"]))
    who, computes = {}, {}
    for name, kernel, said in answers:
        if kernel:
            who.setdefault(kernel, []).append(name)
            computes[kernel] = said or computes.get(kernel)
    return "; ".join(f"{_kernel(kernel, computes[kernel])}: {', '.join(names)}" for kernel, names in who.items())


def _kernel(kernel, computes):
    return f"{kernel} ({computes})" if kernel and computes else kernel
