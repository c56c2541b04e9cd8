"""What a scheme needs before it can be served, and what it yields: by arithmetic, before anything is paid for. Pure.

Memory to quantize is llm-compressor's sequential way: the 16-bit model lies in host memory, and one decoder block at a time
is on the device, with GPTQ's Hessians, a float32 k x k for each of its layers. Its documents say the same of an 8B model:
about 16 GB of host memory and 1 GB on the GPU.
"""

import math
import re

from quantbench.model_fit import linear_layers, quantized_layers
from quantbench.schemes import layout_of, modifier_names
from quantbench.support import LEAST_BFLOAT16, RULES, rule_family

# Bits of a scale in the checkpoint: FP8 and power-of-two scales by their format, else the model's own 16-bit type.
SCALE_BITS = {"torch.float8_e4m3fn": 8, "torch.uint8": 8}


def needs(scheme, model_config=None):
    """{"calibration", "toolkit", "engine_packages", "host_memory_bytes", "device_memory_bytes"} to make a checkpoint.

    calibration            whether calibration rows have to be run
    toolkit                llmcompressor, none or prequantized
    engine_packages        optional packages that the engine needs
    host_memory_bytes      least host memory to quantize a model; None without one, or where nothing is quantized here
    device_memory_bytes    least device memory to quantize on a GPU; without a GPU it is taken from the host as well
    model_config           the model's HF config.json; None: leave the memory out
    """
    found = {"calibration": scheme["calibrated"], "toolkit": scheme["toolkit"]}
    found |= {"engine_packages": scheme.get("engine_packages", [])}
    host = device = None
    layers = linear_layers(model_config) if model_config else {}
    if layers and scheme["toolkit"] == "llmcompressor":
        host = 2 * parameters(model_config)
        block = [shape for name, shape in layers.items() if re.match(r"model\.layers\.0\.", name)]
        device = sum(2 * n * k for n, k in block)
        if "GPTQModifier" in modifier_names(scheme):
            device += sum(4 * k * k for _, k in block)
    return {**found, "host_memory_bytes": host, "device_memory_bytes": device}


def yields(scheme, model_config=None):
    """{"bits_per_weight", "checkpoint_bytes", "layout"} of what a scheme makes.

    bits_per_weight    of the quantized layers, with scales and zero points; None where the engine quantizes
    checkpoint_bytes   of all safetensors files; None without a model
    """
    if scheme["format"] is None:
        return {"bits_per_weight": None, "checkpoint_bytes": None, "layout": None}
    size = None
    layers = quantized_layers(scheme, model_config) if model_config else {}
    if layers:
        left = parameters(model_config) - sum(math.prod(shape) for shape in layers.values())
        size = 2 * left + sum(n * k * bits_per_weight(scheme, k) for n, k in layers.values()) / 8
    return {"bits_per_weight": bits_per_weight(scheme), "checkpoint_bytes": size, "layout": layout_of(scheme)}


def bits_per_weight(scheme, inputs=4096):
    """Stored bits per weight: the number, and its share of a scale and a zero point. `inputs`: features a row of weights has.

    4 bits, and one 16-bit scale and one 4-bit zero point per 128: 4 + 20 / 128 = 4.15625. The one scale of a whole tensor
    adds nothing to speak of.
    """
    weights = scheme["format"]["weights"]
    bits, strategy = weights["num_bits"], weights["strategy"]
    shared = {"tensor": math.inf, "channel": inputs, "block": math.prod(weights.get("block_structure", [1, 1]))}
    per_scale = shared.get(strategy) or weights["group_size"]
    # Native layouts store a zero point for symmetric numbers, too.
    zero = 0 if weights["symmetric"] and layout_of(scheme) not in ("gptq", "awq") else bits
    return bits + (SCALE_BITS.get(weights.get("scale_dtype"), 16) + zero) / per_scale


def parameters(model_config):
    """Numbers that a dense Llama-like model has, without biases and norms; tied embeddings count once."""
    config = model_config.get("text_config", model_config)
    embedding = 0 if config.get("tie_word_embeddings") else config["vocab_size"] * config["hidden_size"]
    return embedding + sum(math.prod(shape) for shape in linear_layers(model_config).values())


# --- for readers ----------------------------------------------------------------------------------------------------

PAGE = """# Schemes

Every scheme that comes along (`config/schemes`). `snakemake schemes` says the same of a study's schemes, with the memory that
quantizing takes and the size of the checkpoint for each of its models; `snakemake support` says which device runs them.
Written by `python workflow/scripts/show_schemes.py > docs/schemes.md`; a test holds it to the schemes.

*needs*: calibration rows, a checkpoint that others made, the study's section `sensitivity` with another scheme, or a package in
the engine's environment; nothing where it is empty.
No scheme needs a GPU to quantize. *bits*: per weight of the quantized layers with scales and zero points, at 4096 input
features; empty where the engine quantizes as it loads. *native on*: compute capabilities on which vLLM computes just that,
by the rules of `support.py`; empty where none does, or where there is no rule and the engine is asked.

"""


def schemes_page(schemes):
    """docs/schemes.md: what it is, what it needs, what it yields, one line per scheme."""
    lines = ["| scheme | what it is | needs | bits | computes | native on |", "|---|---|---|---|---|---|"]
    for name, scheme in schemes.items():
        made = yields(scheme)
        bits = "" if made["bits_per_weight"] is None else f"{made['bits_per_weight']:.3f}".rstrip("0").rstrip(".")
        cells = [f"`{name}`", scheme["description"], ", ".join(needs_words(scheme)), bits, scheme["computes"]]
        lines.append("| " + " | ".join([*cells, native_on(scheme) or ""]) + " |")
    return PAGE + "\n".join(lines) + "\n"


def needs_words(scheme):
    words = ["calibration"] if scheme["calibrated"] else []
    words += ["a checkpoint"] if scheme["toolkit"] == "prequantized" else []
    words += [f"sensitivity of {scheme['spare']['worst_of']}"] if "spare" in scheme else []
    return words + scheme.get("engine_packages", [])


def native_on(scheme):
    """Compute capabilities on which vLLM computes what the scheme promises: "8.9 up", "7.5 to below 10.0"; None: no rule."""
    if scheme["engine_args"].get("linear_backend"):
        return None
    family = rule_family(scheme["format"], scheme["engine_args"].get("quantization"))
    if family == "float":
        return f"{LEAST_BFLOAT16} up"
    rules = RULES.get(family, ())
    native = [rule.reason is None and rule.computes == scheme["computes"] for rule in rules]
    if not any(native):
        return None
    # Rules are in rising order, and what stops being native does not start again.
    first, last = native.index(True), len(native) - native[::-1].index(True)
    return f"{rules[first].least} up" if last == len(rules) else f"{rules[first].least} to below {rules[last].least}"


def needs_text(schemes, model_configs):
    """Lines for a terminal: one per scheme and model."""
    lines = [["scheme", "model", "needs", "bits", "checkpoint", "host memory", "device memory"]]
    for name, scheme in schemes.items():
        for model, config in model_configs.items():
            needed, made = needs(scheme, config), yields(scheme, config)
            bits = made["bits_per_weight"]
            sizes = (made["checkpoint_bytes"], needed["host_memory_bytes"], needed["device_memory_bytes"])
            cells = [", ".join(needs_words(scheme)) or "-", "-" if bits is None else f"{bits:.3f}"]
            lines.append([name, model, *cells, *(_amount(size) for size in sizes)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(
        [*text, "", "memory: the least that quantizing takes; without a GPU the device's is taken from the host"]
    )


def _amount(size):
    if size is None:
        return "-"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
