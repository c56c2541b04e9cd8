"""The table `support`: which scheme runs on which device, and how, by three sources side by side. Pure.

The rules (support.py), the answer of vLLM's chooser (engine/chooser.py, asked without the device), and the kernels that an
engine reported. Where they disagree the row says so.
"""

from itertools import combinations

from quantbench.engine_args import is_of_backend
from quantbench.kernel_verdict import FLOATS, promised_for, promised_of, verdict
from quantbench.model_fit import left_alone
from quantbench.support import FLOAT_OF_DTYPE, support


def support_rows(manifest, asked, kernels):
    """Rows of table `support`: one per device and scheme of a study.

    manifest  its gpus and schemes; its engine's dtype
    asked     [(point, record)] of stage "support" that the store has; the rest says what the rules alone say
    kernels   rows of table `kernels`
    """
    records = {(point["gpu"], point["scheme"]): record for point, record in asked}
    settings = manifest["study"].get("engine", {})
    dtype = settings.get("dtype")
    rows = []
    # In the order of the study: a manifest's own keys are sorted.
    names = {part: manifest["study"].get(part) or list(manifest[part]) for part in ("gpus", "schemes")}
    for gpu in names["gpus"]:
        for name in names["schemes"]:
            gpu_entry, scheme = manifest["gpus"][gpu], manifest["schemes"][name]
            arguments = {"linear_backend": settings.get("linear_backend")} | scheme["engine_args"]
            rule = support(scheme["format"], arguments, scheme["computes"], gpu_entry, dtype)
            record = records.get((gpu, name))
            ran = [row for row in kernels if (row["gpu"], row["scheme"]) == (gpu, name)]
            engine = engine_answer(scheme, ran, arguments.get("dtype") or dtype)
            chooser = chooser_answer(record)
            if arguments["linear_backend"] and scheme["format"]:
                chooser = _held_to(arguments["linear_backend"], chooser, "kernel")
                engine = _held_to(arguments["linear_backend"], engine, "kernels")
            row = {"gpu": gpu, "scheme": name, "run_id": record and record.get("run_id")}
            rows.append(row | combine(scheme["computes"], rule, chooser, engine))
    return rows


def _held_to(backend, answer, name):
    """An answer of the chooser or the engine where kernels are forced: a refusal where vLLM would take, or took, another's."""
    found = answer and answer[name]
    kernels = found if isinstance(found, list) else [found] if found else []
    other = [kernel for kernel in kernels if not is_of_backend(kernel, backend)]
    if not other:
        return answer
    reason = f"vLLM has none of {backend}'s kernels for it here, and takes {', '.join(other)} instead"
    nothing = (
        {"kernel": None, "computes": None} if name == "kernel" else {"kernels": [], "computes": [], "verdicts": []}
    )
    return answer | nothing | {"reason": reason}


def chooser_answer(record):
    """The row of a stored `support` point, or what stands in for it: {"kernel", "computes", "reason"}; None if none."""
    if record is None:
        return None
    if record["status"] != "ok" or not record["rows"]:
        return {"kernel": None, "computes": None, "reason": record["reason"]}
    return record["rows"][0]


def engine_answer(scheme, rows, dtype=None):
    """What an engine ran for a scheme's layers: {"kernels", "computes", "verdicts", "reason"}; None: it has not run.

    rows  of table `kernels`, of one device and scheme; layers that the scheme leaves alone are left out here, too
    """
    own = FLOAT_OF_DTYPE.get(dtype, "bf16")
    # An emulation says nothing about the device.
    rows = [row for row in rows if not row.get("emulated")]
    ran = [row for row in rows if row.get("run_id") and row["status"] == "ok" and row.get("kernel")]
    if scheme["computes"] not in FLOATS:
        ran = [row for row in ran if promised_for(scheme, row["layer_kind"], own) == scheme["computes"]]
    # The chooser is asked about a linear layer; the output head is of another kind.
    ran = [row for row in ran if row["layer_kind"] != "lm_head"] or ran
    if ran:
        found = {name: sorted({row[name] for row in ran if row[name]}) for name in ("kernel", "computes", "verdict")}
        return {"kernels": found["kernel"], "computes": found["computes"], "verdicts": found["verdict"], "reason": None}
    # A refusal by an engine that was started; what was skipped has no run.
    refused = [row for row in rows if row.get("run_id") and row["status"] == "unsupported"]
    if refused:
        return {"kernels": [], "computes": [], "verdicts": [], "reason": refused[0]["reason"]}
    return None


def kernels_of_load(manifest, point, record):
    """The rows of table `kernels` that support_rows wants, from one stored `load` point, before there are tables."""
    keys = {"gpu": point["gpu"], "scheme": point["scheme"]}
    keys |= {name: record[name] for name in ("run_id", "status", "reason")}
    if record["status"] != "ok":
        return [keys]
    scheme = manifest["schemes"][point["scheme"]]
    own = FLOAT_OF_DTYPE.get(manifest["study"].get("engine", {}).get("dtype"), "bf16")
    rows = []
    for found in record["rows"][0]["kernels"]:
        promised = promised_of(scheme, found, own, left_alone(scheme, manifest["models"][point["model"]]["config"]))
        judged = verdict(promised, found["computes"], found["quantized"])
        rows.append(keys | {name: found[name] for name in ("layer_kind", "kernel", "computes")} | {"verdict": judged})
    return rows


def combine(promised, rule, chooser, engine):
    """A row of table `support`, without its keys, from the three answers; chooser and engine may be None."""
    level, reason = _level(promised, rule, chooser, engine)
    asked = chooser or {"kernel": None, "computes": None, "reason": None}
    return {
        "status": "unsupported" if level == "unsupported" else "ok",
        "reason": reason if level == "unsupported" else None,
        "level": level,
        "rule_level": rule.level,
        "rule_kernel": rule.kernel,
        "rule_reason": rule.reason,
        "chooser_kernel": asked["kernel"],
        "chooser_computes": asked["computes"],
        "chooser_reason": asked["reason"],
        "engine_kernels": ", ".join(engine["kernels"]) or None if engine else None,
        "engine_computes": ", ".join(engine["computes"]) or None if engine else None,
        "mismatch": mismatch(promised, rule, chooser, engine),
    }


def _level(promised, rule, chooser, engine):
    """(level, why not): what ran counts most, then the rules' refusals, then the chooser, then the rules."""
    if engine:
        if engine["reason"]:
            return "unsupported", engine["reason"]
        if "unquantized" in engine["verdicts"]:
            return "unsupported", f"the engine ran it unquantized, by {', '.join(engine['kernels'])}"
        if "computes_other" in engine["verdicts"]:
            return "emulated", None
        if engine["verdicts"]:
            return "native", None
    if rule.level == "unsupported":
        return rule.level, rule.reason
    if chooser:
        if chooser["kernel"] is None:
            return "unsupported", chooser["reason"]
        if rule.level == "emulated" and rule.computes is None and chooser["kernel"] == rule.kernel:
            # What it computes hangs on the device, whatever its name says.
            return rule.level, None
        if chooser["computes"] == promised:
            return "native", None
        if chooser["computes"] in FLOATS and promised not in FLOATS:
            return "unsupported", chooser["reason"] or f"vLLM leaves the layer unquantized ({chooser['kernel']})"
        if chooser["computes"]:
            return "emulated", None
    return rule.level, None


def mismatch(promised, rule, chooser, engine):
    """One sentence per disagreement between the answers, or None. What one of them does not know is no disagreement."""
    answers = []
    if rule.level != "unknown":
        native = {"native": True, "emulated": False}.get(rule.level)
        answers.append(_answer("the rules", [rule.kernel], [rule.computes], rule.level == "unsupported", native))
    if chooser:
        kernel, computes = chooser["kernel"], chooser["computes"]
        native = computes == promised if computes else None
        answers.append(_answer("the chooser", [kernel], [computes], kernel is None, native))
    if engine:
        native = set(engine["verdicts"]) == {"as_promised"} if engine["verdicts"] else None
        answers.append(_answer("the engine", engine["kernels"], engine["computes"], bool(engine["reason"]), native))
    found = [
        f"{first['who']}: {_short(first)}; {second['who']}: {_short(second)}"
        for first, second in combinations(answers, 2)
        if _disagree(first, second)
    ]
    return "; ".join(found) or None


def _answer(who, kernels, computes, refuses, native):
    # "UnquantizedLinearMethod (onednn_mm)": which library runs hangs on the shape.
    kernels = {kernel.split(" (")[0] for kernel in kernels if kernel}
    return {
        "who": who,
        "kernels": kernels,
        "computes": {c for c in computes if c},
        "refuses": refuses,
        "native": native,
    }


def _disagree(first, second):
    """Whether two answers differ: on running at all, on the kernels, on what they compute, on keeping the promise."""
    if first["refuses"] or second["refuses"]:
        return first["refuses"] != second["refuses"]
    if None not in (first["native"], second["native"]) and first["native"] != second["native"]:
        return True
    return any(first[name] and second[name] and not second[name] <= first[name] for name in ("kernels", "computes"))


def _short(answer):
    if answer["refuses"]:
        return "unsupported"
    computes = ", ".join(sorted(answer["computes"])) or {True: "native", False: "emulated"}.get(answer["native"])
    return (", ".join(sorted(answer["kernels"])) or "some kernel") + (f" ({computes})" if computes else "")


# --- for a terminal --------------------------------------------------------------------------------------------------


def support_text(rows):
    """The matrix, then every reason and mismatch, as lines for a terminal: devices down, schemes across."""
    gpus = list(dict.fromkeys(row["gpu"] for row in rows))
    schemes = list(dict.fromkeys(row["scheme"] for row in rows))
    cells = {(row["gpu"], row["scheme"]): row["level"] + ("*" if row["mismatch"] else "") for row in rows}
    lines = [["", *schemes]] + [[gpu, *[cells[gpu, scheme] for scheme in schemes]] for gpu in gpus]
    text = ["support: devices by schemes", *_aligned(lines), ""]
    details = [["device", "scheme", "kernel", "computes", "said by", "why"]]
    for row in rows:
        details.append([row["gpu"], row["scheme"], *_said(row), why_of(row) or ""])
    text += _aligned(details)
    differing = [row for row in rows if row["mismatch"]]
    if differing:
        text += ["", "* where rules, chooser and engine disagree"]
        text += [f"  {row['gpu']} {row['scheme']}: {row['mismatch']}" for row in differing]
    return "\n".join(line.rstrip() for line in text)


def why_of(row):
    """The reason for a row's level, if it is not native: that of the answer which decided it."""
    if row["level"] == "native":
        return None
    if row["level"] == "unsupported":
        return row["reason"]
    return row["rule_reason"] if row["rule_level"] == row["level"] else row["chooser_reason"]


def _said(row):
    """(kernel, computes, who says so) of the answer that counts most."""
    if row["engine_kernels"]:
        return row["engine_kernels"], row["engine_computes"] or "", "engine"
    if row["status"] == "unsupported":
        return "-", "", "rules" if row["rule_level"] == "unsupported" else "chooser"
    if row["chooser_kernel"]:
        return row["chooser_kernel"], row["chooser_computes"] or "", "chooser"
    return row["rule_kernel"] or "-", "", "rules"


def _aligned(lines):
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
