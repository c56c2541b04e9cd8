"""Which scheme runs on which device, and how: by rules, by the engine's own chooser, by what the engine ran. Pure.

Three sources, put side by side in the table `support`: the rules below (known before anything runs, so they decide what
a study skips), the answer of vLLM's chooser (engine/chooser.py, asked without the device), and the kernels that an
engine reported. Where they disagree the row says so.
"""

from itertools import combinations
from typing import NamedTuple

from quantbench.engine_args import is_of_backend
from quantbench.kernel_verdict import FLOATS, promised_for, promised_of, verdict
from quantbench.model_fit import left_alone

LEVELS = ("native", "emulated", "unsupported", "unknown")


class Support(NamedTuple):
    """What a device does with a scheme.

    level     native (computes what the scheme promises), emulated (other arithmetic: weight-only, widened, simulated),
              unsupported, or unknown
    kernel    kernel class that vLLM takes; None where the rules name none
    computes  w4a16, w8a8-fp8, ...; None where that is not known
    reason    one sentence; None for what is native
    """

    level: str
    kernel: str | None
    computes: str | None
    reason: str | None


# --- rules -----------------------------------------------------------------------------------------------------------

# The pinned engine is built for CUDA 13, which dropped Volta and older (CUDA Toolkit 13.0 release notes, "Deprecated
# Architectures"); compute capability 7.5 is also the least that vLLM's quantized schemes ask for.
LEAST_CAPABILITY = "7.5"
# vLLM's CudaPlatform.check_if_supports_dtype.
LEAST_BFLOAT16 = "8.0"

FLOAT_OF_DTYPE = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

NO_FP8 = (
    "needs compute capability 8.9 for native FP8 arithmetic; the device has {has}: weights stay FP8 and are widened to "
    "16 bits ({by})"
)
NO_FP8_BLOCKS = (
    "needs compute capability 9.0 for vLLM's kernels for FP8 in blocks; the device has {has}: weights stay FP8 and are "
    "widened to 16 bits ({by})"
)
NO_FP4 = "needs compute capability 10.0 for native FP4 arithmetic; the device has {has}: weights are widened ({by})"
NO_MXFP8 = (
    "needs compute capability 10.0 for native MXFP8 arithmetic; the device has {has}: weights stay FP8 and are widened "
    "({by})"
)
NO_INT8 = (
    "vLLM's INT8 kernel (CUTLASS) is built for compute capability 7.5 to 9.0; the device has {has}, where its first "
    "product raises 'Int8 not supported on SM{sm}'"
)
HOPPER_ONLY = (
    "vLLM has a kernel for 4-bit weights with FP8 activations for compute capability 9.0 only; the device has {has}"
)
LEAST_MXFP4 = "vLLM's MXFP4 scheme needs compute capability 8.0; the device has {has}"


class Rule(NamedTuple):
    """From compute capability `least` on: this kernel, which computes this; no kernel: unsupported."""

    least: str
    kernel: str | None
    computes: str | None
    reason: str | None = None


# What vLLM 0.32 takes on CUDA with the packages that envs/engine-cuda.txt pins (FlashInfer, Humming, the wheel's own
# DeepGEMM), for everyday shapes. Least capabilities: get_min_capability of each scheme in
# vllm/model_executor/layers/quantization/compressed_tensors/schemes. Order of kernels: _POSSIBLE_*_KERNELS in
# vllm/model_executor/kernels/linear/__init__.py; on 9.0 Humming goes before Marlin (utils/humming/priority.py). What
# the compiled kernels take: csrc/libtorch_stable/quantization/{w8a8/cutlass/scaled_mm_entry.cu,
# w8a8/cutlass/c3x/scaled_mm_helper.hpp, fp4/nvfp4_scaled_mm_entry.cu}. A kernel of which vLLM does not tell what it
# computes (Humming) has None there, and a reason where it cannot be native.
RULES = {
    "w4a16": (
        Rule("7.5", "MarlinLinearKernel", "w4a16"),
        Rule("9.0", "MacheteLinearKernel", "w4a16"),
        Rule("10.0", "MarlinLinearKernel", "w4a16"),
    ),
    # Machete takes groups of 64 and 128 and whole channels, Marlin groups of 32, too.
    "w4a16-group32": (
        Rule("7.5", "MarlinLinearKernel", "w4a16"),
        Rule("9.0", "HummingLinearKernel", "w4a16"),
        Rule("10.0", "MarlinLinearKernel", "w4a16"),
    ),
    "w8a16-int8": (
        Rule("7.5", "MarlinLinearKernel", "w8a16-int8"),
        Rule("9.0", "MacheteLinearKernel", "w8a16-int8"),
        Rule("10.0", "MarlinLinearKernel", "w8a16-int8"),
    ),
    "w8a8-int8": (
        Rule("7.5", "CutlassInt8ScaledMMLinearKernel", "w8a8-int8"),
        Rule("10.0", None, None, NO_INT8),
    ),
    "w8a8-fp8": (
        Rule("7.5", "HummingFP8ScaledMMLinearKernel", "w8a16-fp8", NO_FP8),
        Rule("8.9", "CutlassFP8ScaledMMLinearKernel", "w8a8-fp8"),
    ),
    "w8a8-fp8-tensor": (
        Rule("7.5", "HummingFP8ScaledMMLinearKernel", "w8a16-fp8", NO_FP8),
        Rule("8.9", "CutlassFP8ScaledMMLinearKernel", "w8a8-fp8"),
        Rule("10.0", "FlashInferFP8ScaledMMLinearKernel", "w8a8-fp8"),
    ),
    "w8a8-fp8-block": (
        Rule("7.5", "HummingFP8ScaledMMLinearKernel", "w8a16-fp8", NO_FP8),
        # The arithmetic is there, but the kernels for blocks are Hopper's: Marlin is the first that takes them.
        Rule("8.9", "MarlinFP8ScaledMMLinearKernel", "w8a16-fp8", NO_FP8_BLOCKS),
        Rule("9.0", "FlashInferFp8DeepGEMMDynamicBlockScaledKernel", "w8a8-fp8"),
        Rule("10.0", "DeepGemmFp8BlockScaledMMKernel", "w8a8-fp8"),
    ),
    "w8a16-fp8": (Rule("7.5", "HummingFP8ScaledMMLinearKernel", "w8a16-fp8"),),
    "w4a4-fp4": (
        Rule("7.5", "MarlinNvFp4LinearKernel", "w4a16-fp4", NO_FP4),
        Rule("9.0", "HummingNvFp4LinearKernel", None, NO_FP4),
        Rule("10.0", "FlashInferCuteDslNvFp4LinearKernel", "w4a4-fp4"),
        Rule("12.0", "FlashInferCutlassNvFp4LinearKernel", "w4a4-fp4"),
    ),
    "w4a16-fp4": (
        Rule("7.5", "MarlinNvFp4LinearKernel", "w4a16-fp4"),
        Rule("9.0", "HummingNvFp4LinearKernel", "w4a16-fp4"),
        Rule("10.0", "FlashInferCuteDslNvFp4W4A16LinearKernel", "w4a16-fp4"),
        Rule("12.0", "MarlinNvFp4LinearKernel", "w4a16-fp4"),
    ),
    "mxfp4": (
        Rule("7.5", None, None, LEAST_MXFP4),
        Rule("8.0", "MarlinMxFp4LinearKernel", "w4a16-mxfp4", NO_FP4),
        Rule("9.0", "HummingMxFp4LinearKernel", None, NO_FP4),
        Rule("10.0", "FlashInferMxFp4LinearKernel", "w4a4-mxfp4"),
    ),
    "mxfp8": (
        Rule("7.5", "MarlinMxfp8LinearKernel", "w8a16-mxfp8", NO_MXFP8),
        Rule("9.0", "HummingMxfp8LinearKernel", None, NO_MXFP8),
        Rule("10.0", "FlashInferCutedslMxfp8LinearKernel", "w8a8-mxfp8"),
        Rule("12.0", "FlashInferCutlassMxfp8LinearKernel", "w8a8-mxfp8"),
    ),
    "w4a8-fp8": (
        Rule("7.5", None, None, HOPPER_ONLY),
        Rule("9.0", "CutlassW4A8LinearKernel", "w4a8-fp8"),
        Rule("10.0", None, None, HOPPER_ONLY),
    ),
}  # fmt: skip

# The engine argument `quantization` for weights quantized while they load (vllm/config/quantization.py).
ONLINE = {
    "fp8": "w8a8-fp8-tensor",
    "fp8_per_tensor": "w8a8-fp8-tensor",
    "fp8_per_channel": "w8a8-fp8",
    "fp8_per_block": "w8a8-fp8-block",
    "mxfp4": "mxfp4",
    "mxfp8": "mxfp8",
}
# Of these vLLM gives nothing to dense layers, so what they do hangs on the model.
EXPERTS_ONLY = ("int8_per_channel_weight_only", "nvfp4_per_token")

# By running it: facts that hold on CPUs with AMX. Others take other kernels, or none.
CPU_KERNELS = {
    "w4a16": "CPUWNA16LinearKernel",
    "w4a16-group32": "CPUWNA16LinearKernel",
    "w8a8-int8": "CPUInt8ScaledMMLinearKernel",
    "w8a8-fp8-block": "CPUFp8BlockScaledMMKernel",
}


def support(format, engine_args, computes, gpu_entry, dtype=None):
    """What the rules say of a scheme on a device: Support.

    format       {"weights", "input_activations"} as in config/schemes, or None
    engine_args  the scheme's own engine arguments: `quantization`, `linear_backend` and `dtype` count
    computes     what the scheme promises
    gpu_entry    the device's entry in config/gpus.yaml
    dtype        "bfloat16", ...: the engine's type where the scheme has none of its own; None leaves it out
    """
    quantization = (engine_args or {}).get("quantization")
    dtype = (engine_args or {}).get("dtype") or dtype
    family = rule_family(format, quantization)
    if gpu_entry["environment"].endswith("-cpu"):
        reason = "what a CPU runs hangs on its instruction set: the engine is asked"
        return Support("unknown", CPU_KERNELS.get(family), None, reason)
    has = gpu_entry["compute_capability"]
    if below(has, LEAST_CAPABILITY):
        reason = f"the engine needs compute capability {LEAST_CAPABILITY} (CUDA 13); the device has {has}"
        return Support("unsupported", None, None, reason)
    if dtype == "bfloat16" and below(has, LEAST_BFLOAT16):
        reason = (
            f"bfloat16 needs compute capability {LEAST_BFLOAT16}; the device has {has}: set engine.dtype to float16"
        )
        return Support("unsupported", None, None, reason)
    if family == "float":
        found = FLOAT_OF_DTYPE.get(dtype, computes)
        reason = None if found == computes else f"the engine's dtype is {dtype}, so it computes {found}, not {computes}"
        return Support("emulated" if reason else "native", "UnquantizedLinearMethod", found, reason)
    if (engine_args or {}).get("linear_backend"):
        return Support("unknown", None, None, "its kernels are forced: the engine's chooser is asked")
    if quantization in EXPERTS_ONLY:
        return Support("unknown", None, None, f"vLLM gives {quantization} to expert layers only: dense ones stay as is")
    if family not in RULES:
        return Support("unknown", None, None, "there are no rules for this format: the engine's chooser is asked")
    return _apply(RULES[family], computes, has)


def _apply(rules, computes, has):
    """The last rule that the device is not below, as Support."""
    rule = [rule for rule in rules if not below(has, rule.least)][-1]
    if rule.kernel is None:
        return Support("unsupported", None, None, rule.reason.format(has=has, sm=has.replace(".", "")))
    native = rule.reason is None and rule.computes in (computes, None)
    if native:
        return Support("native", rule.kernel, rule.computes, None)
    reason = rule.reason or "the kernel computes {computes}, the scheme promises {promised}"
    by = rule.kernel.removesuffix("Kernel").removesuffix("Linear").removesuffix("ScaledMM")
    reason = reason.format(has=has, by=by, computes=rule.computes, promised=computes)
    return Support("emulated", rule.kernel, rule.computes, reason)


def rule_family(format, quantization=None):
    """Name of the rules (a key of RULES, or "float") for a format or an online quantization; else None."""
    if format is None:
        return ONLINE.get(quantization) if quantization else "float"
    weights, inputs = format["weights"], format["input_activations"]
    if weights["type"] == "int":
        return _integer_family(weights, inputs)
    if weights["num_bits"] == 4:
        if weights.get("group_size") == 32:
            return "mxfp4"
        return "w4a4-fp4" if inputs else "w4a16-fp4"
    if weights.get("group_size") == 32:
        return "mxfp8"
    if not inputs:
        return "w8a16-fp8"
    if weights["strategy"] == "block":
        return "w8a8-fp8-block"
    return "w8a8-fp8-tensor" if weights["strategy"] == inputs["strategy"] == "tensor" else "w8a8-fp8"


def _integer_family(weights, inputs):
    bits, group = weights["num_bits"], weights.get("group_size")
    if inputs is None:
        # Marlin has no 8-bit weights with zero points.
        if bits == 8:
            return "w8a16-int8" if weights["symmetric"] and group in (None, -1, 64, 128) else None
        return (
            {None: "w4a16", -1: "w4a16", 64: "w4a16", 128: "w4a16", 32: "w4a16-group32"}.get(group)
            if bits == 4
            else None
        )
    if bits == 8 and inputs["type"] == "int":
        # Zero points of activations take another kernel, of which the compiled library has a Hopper and a Turing form.
        return "w8a8-int8" if inputs["symmetric"] else None
    return "w4a8-fp8" if bits == 4 and inputs["type"] == "float" and group == 128 else None


def below(capability, least):
    """Whether compute capability "8.6" is below "8.9"; numbers, not text: "10.0" is above "9.0"."""
    return _version(capability) < _version(least)


def _version(capability):
    return tuple(int(part) for part in capability.split("."))


# --- the table -------------------------------------------------------------------------------------------------------


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
