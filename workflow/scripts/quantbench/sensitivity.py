"""Which layers suffer: one part of a model at a time as a scheme made it, all else in 16 bits. Pure.

A part is a decoder block, or a group of linear layers that vLLM fuses and so wants in one format (qkv_proj, gate_up_proj;
o_proj and down_proj by themselves). Its tensors are those of the scheme's finished checkpoint: a part is rounded just as
the scheme rounds it, GPTQ's corrections for the layers before it included, and the scan quantizes nothing again.

Recipes that rescale before they round are function-preserving only as far as their mappings reach, so a part takes along
all that its mapping rescales, or it would be another function and not a rounded one:

    SmoothQuant   a norm and the layers that read it: qkv_proj and gate_up_proj take along the norm before them
    AWQ           these norms as well, and v_proj with o_proj, up_proj with down_proj: the parts are the whole attention
                  and the whole MLP of a block

A block holds all of them. Beside the parts stands one named ALL: all of them together, which is the scheme itself.

`spare` in a scheme names another one, the parent, whose worst parts stay in 16 bits. Which they are only the parent's points
can say; their keys are known before they are measured, and so is the key of the checkpoint.
"""

import json
import math
import re

from quantbench.errors import UserError
from quantbench.keys import key
from quantbench.model_fit import FUSED, FUSED_NAMES, linear_layers, quantized_layers
from quantbench.schemes import modifier_names

ALL = "all"
BLOCK = re.compile(r"model\.layers\.\d+(?=\.)")
# What Llama and its kin, and Gemma's, call the norm that a block's first layers read.
NORMS = {"self_attn": ("input_layernorm",), "mlp": ("post_attention_layernorm", "pre_feedforward_layernorm")}
FIRST = {"self_attn": "qkv_proj", "mlp": "gate_up_proj"}


def parts(scheme, model_config, per):
    """{name: {"layers", "modules", "parameters"}} of a scheme's parts on a model, in the model's order, and of ALL.

    layers      names of its linear layers, all of them quantized by the scheme
    modules     names of the modules that are taken from the checkpoint, with everything below them
    parameters  weights of its layers, a count
    per         linear or block

    Raises UserError for an architecture whose layers config.json does not tell.
    """
    # A model of several parts calls its layers otherwise.
    if "text_config" in model_config or not linear_layers(model_config):
        raise UserError("its layers are not known from config.json: it is no dense Llama-like decoder")
    shapes, found = quantized_layers(scheme, model_config), {}
    for layer, shape in shapes.items():
        name, modules = _part_of(layer, per, modifier_names(scheme))
        part = found.setdefault(name, {"layers": [], "modules": [], "parameters": 0})
        part["layers"].append(layer)
        part["modules"] += [module for module in (*modules, layer) if module not in part["modules"]]
        part["parameters"] += math.prod(shape)
    everything = {name: [one for part in found.values() for one in part[name]] for name in ("layers", "modules")}
    everything["parameters"] = sum(part["parameters"] for part in found.values())
    return found | {ALL: everything}


def _part_of(layer, per, modifiers):
    """(name of a layer's part, modules that it takes along)"""
    block = BLOCK.match(layer)
    if not block:
        return layer, ()
    if per == "block":
        return block[0], (block[0],)
    stem, _, own = layer.rpartition(".")
    kind = FUSED_NAMES.get(next((group[0] for group in FUSED if own in group), own), own)
    place = stem.rpartition(".")[2]
    norms = tuple(f"{block[0]}.{norm}" for norm in NORMS.get(place, ()))
    if "AWQModifier" in modifiers:
        return stem, norms
    smoothed = "SmoothQuantModifier" in modifiers and kind == FIRST.get(place)
    return f"{stem}.{kind}", norms if smoothed else ()


def place_of(part):
    """(block or None, kind) of a part's name: "model.layers.3.mlp.down_proj" -> (3, "down_proj")."""
    found = re.match(r"model\.layers\.(\d+)(?:\.(.+))?$", part)
    if not found:
        return None, part
    return int(found[1]), (found[2] or "block").rpartition(".")[2]


# --- the study's entries ----------------------------------------------------------------------------------------------


def entries(config):
    """[("sensitivity[0]", entry), ...]"""
    return [(f"sensitivity[{i}]", entry) for i, entry in enumerate(config.get("sensitivity", []))]


# --- what is spared ---------------------------------------------------------------------------------------------------


def spare_entry(config, scheme):
    """The entry of `sensitivity` that decides what a scheme spares: the first of its parent."""
    return next(entry for _, entry in entries(config) if entry["scheme"] == scheme["spare"]["worst_of"])


def spare_parts(config, schemes, name, model_config):
    """The parts that a scheme may spare: those of its parent, without ALL."""
    entry = spare_entry(config, schemes[name])
    found = parts(schemes[entry["scheme"]], model_config, entry["per"])
    return {part: found[part] for part in found if part != ALL}


def chosen(found, divergences, share):
    """Names of the parts to spare: as much divergence as fits into `share` of their weights.

    In falling order of divergence per weight, each that still fits (the greedy answer to the knapsack problem). The parts'
    divergences add up only roughly; the row ALL of the scan says how roughly.

    found        {part: {"parameters", ...}}; divergences: {part: nats per token of it alone}
    """
    room = share * sum(part["parameters"] for part in found.values())
    taken = []
    for name in sorted(found, key=lambda name: -divergences[name] / found[name]["parameters"]):
        if found[name]["parameters"] <= room:
            taken.append(name)
            room -= found[name]["parameters"]
    return [name for name in found if name in taken]


def spared_layers(spare, store):
    """Names of the linear layers that a checkpoint's `spare` leaves in 16 bits, by the points of its parent.

    spare  {"share", "parts": {part: {"layers", "parameters", "point" (its key)}}}

    Raises UserError where a point is not in the store, or not ok.
    """
    divergences = {}
    for name, part in spare["parts"].items():
        record = store.read_point(part["point"])
        if record is None or record["status"] != "ok":
            why = record["reason"] if record else "it has not been measured"
            raise UserError(f"which layers to spare is not known: no sensitivity of {name}: {why}")
        divergences[name] = divergence(record["rows"])
    taken = chosen(spare["parts"], divergences, spare["share"])
    return [layer for name in taken for layer in spare["parts"][name]["layers"]]


def recipe_of(job, store):
    """The recipe of a quantizing job: its identity's, and what its `spare` leaves in 16 bits is ignored besides."""
    recipe = job["identity"]["recipe"]
    if "spare" not in job:
        return recipe
    return {**recipe, "ignore": [*recipe["ignore"], *spared_layers(job["spare"], store)]}


def divergence(rows):
    """Nats per token of a part's rows: KL(16-bit model || model with that part quantized)."""
    return sum(row["kl_divergence"] for row in rows) / sum(row["tokens"] for row in rows)


def spare_identity(spare):
    """What of `spare` decides a checkpoint's bytes. One digest for the points: a large model has hundreds."""
    return {"share": spare["share"], "points": key({name: part["point"] for name, part in spare["parts"].items()})}


# --- the text ---------------------------------------------------------------------------------------------------------


def documents(path, count):
    """The first `count` rows of a JSONL file as text, as perplexity reads them. Raises UserError for a row without any."""
    texts = []
    with open(path) as file:
        for number, line in enumerate(line for line in file if line.strip()):
            if len(texts) == count:
                break
            row = json.loads(line)
            if isinstance(row.get("text"), str):
                texts.append(row["text"])
            elif "question" in row and "answer" in row:
                texts.append(f"Question: {row['question']}\nAnswer: {row['answer']}")
            else:
                raise UserError(f"{path}, row {number + 1}: has neither question and answer nor text")
    return texts
