"""Does a scheme fit a model? Told from config.json alone, before anything is paid for. Pure.

What the toolkits make of a misfit, as tried: a group that does not divide is a ValueError after the model has been
loaded, a pattern that matches nothing and a part of a fused layer are no error until the engine loads the checkpoint.
"""

import difflib
import math
import re

from quantbench.errors import UserError
from quantbench.schemes import NATIVE_LAYOUTS, layout_of

# vLLM computes these together and wants them in one format ("need all fused layers to have same quantization").
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
FUSED_NAMES = {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj"}
# Group sizes that some kernel of vLLM's takes (Marlin, Machete, NVFP4's 16, MX's 32).
GROUP_SIZES = (16, 32, 64, 128, 256)
# Native layouts pack the zero points of eight output features into one number.
PACKED = 8


def linear_layers(model_config):
    """{layer name: (output features, input features)} of a dense Llama-like decoder, from its HF config.json.

    Empty for another architecture, which the toolkit checks itself, later.
    """
    config = model_config.get("text_config", model_config)
    if any(config.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
        return {}
    try:
        hidden, heads, mlp = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
        layers, vocabulary = config["num_hidden_layers"], config["vocab_size"]
    except KeyError:
        return {}
    head = config.get("head_dim") or hidden // heads
    kv_heads = config.get("num_key_value_heads") or heads
    of_layer = {
        "self_attn.q_proj": (heads * head, hidden),
        "self_attn.k_proj": (kv_heads * head, hidden),
        "self_attn.v_proj": (kv_heads * head, hidden),
        "self_attn.o_proj": (hidden, heads * head),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }
    shapes = {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in of_layer.items()}
    return {**shapes, "lm_head": (vocabulary, hidden)}


def names_layer(name, patterns):
    """Whether a linear layer is meant by targets or ignore, as compressed-tensors matches them (utils/match.py)."""
    return any(
        pattern == "Linear"
        or (re.match(pattern.removeprefix("re:"), name) if pattern.startswith("re:") else pattern == name)
        for pattern in patterns
    )


def quantized_layers(scheme, model_config):
    """{layer name: (output features, input features)} that targets and ignore leave; as linear_layers."""
    return {
        name: shape
        for name, shape in linear_layers(model_config).items()
        if names_layer(name, scheme["targets"]) and not names_layer(name, scheme["ignore"])
    }


def left_alone(scheme, model_config):
    """{kind of layer as the engine names it: how many of them targets and ignore leave 16-bit}, without those at zero.

    Empty for a scheme without a format of its own, and for an architecture that is not known. Of one that spares layers
    which only a measurement names: as many of each kind, at most, as its share of the weights holds.
    """
    if not scheme["format"]:
        return {}
    quantized, counts = quantized_layers(scheme, model_config), {}
    for name in linear_layers(model_config):
        part = name.rpartition(".")[2]
        # All parts of a fused layer are left, or none: the first one counts.
        if name not in quantized and not any(part in group[1:] for group in FUSED):
            kind = FUSED_NAMES.get(part, part)
            counts[kind] = counts.get(kind, 0) + 1
    if "spare" not in scheme:
        return counts
    room = scheme["spare"]["share"] * sum(math.prod(shape) for shape in quantized.values())
    sizes = {}
    for name, shape in quantized.items():
        stem, _, part = name.rpartition(".")
        first = next((group[0] for group in FUSED if part in group), part)
        sizes.setdefault(FUSED_NAMES.get(first, part), {}).setdefault(stem, []).append(math.prod(shape))
    for kind, layers in sizes.items():
        spared = min(len(layers), int(room // min(sum(parts) for parts in layers.values())))
        if spared or kind in counts:
            counts[kind] = counts.get(kind, 0) + spared
    return counts


def check_scheme_fits(scheme, model_config):
    """Raise UserError in the user's words where a scheme does not fit a model.

    Patterns that match nothing, parts of a fused layer, sizes that groups or blocks do not divide, with those that do.

    scheme: the scheme, or its recipe; model_config: the model's HF config.json.
    """
    if not scheme["format"]:
        return
    already = model_config.get("quantization_config")
    if already:
        method = already.get("quant_method", "an unnamed method")
        raise UserError(
            f"the model is quantized already ({method}); a recipe needs the 16-bit model. A checkpoint that others "
            "quantized is named under prequantized of its 16-bit model, for a scheme with toolkit: prequantized"
        )
    # Names inside a model of several parts (vision) are the toolkit's to know.
    named = {} if "text_config" in model_config else linear_layers(model_config)
    if named:
        check_patterns(scheme["targets"], scheme["ignore"], named)
    layers = quantized_layers(scheme, model_config)
    _check_fused(layers, named)
    for side, arguments in scheme["format"].items():
        size = (arguments or {}).get("group_size")
        if size:
            # Groups run along the input features; neither toolkit nor engine has a rest group.
            _check(side, "group_size", size, {name: inputs for name, (_, inputs) in layers.items()}, "input")
    rows = (scheme["format"]["weights"].get("block_structure") or [None])[0]
    if rows:
        # Blocks may be cut off at the edges, except inside a layer that vLLM fuses: there every part but the last
        # has to end with a block (validate_fp8_block_shape in quantization/utils/fp8_utils.py).
        inner = {name: outputs for name, (outputs, _) in layers.items() if re.search(r"\.(q|k|gate)_proj$", name)}
        _check("weights", "block_structure", rows, inner, "output")
    if layout_of(scheme) in NATIVE_LAYOUTS:
        odd = sorted({_kind(name) for name, (outputs, _) in layers.items() if outputs % PACKED})
        if odd:
            raise UserError(
                f"layout {layout_of(scheme)} needs output features that 8 divides; {', '.join(odd)} are not so"
            )


def check_patterns(targets, ignore, layers):
    """Raise UserError for a pattern in targets or ignore that means no linear layer: it is a slip, or for another model.

    layers: names of the model's linear layers.
    """
    for key, patterns in (("targets", targets), ("ignore", ignore)):
        for pattern in patterns:
            if pattern.startswith("re:"):
                _check_expression(key, pattern)
            if not any(names_layer(name, [pattern]) for name in layers):
                # A pattern is a slip away from the name it means, so its own signs are left out of the comparison.
                word = re.sub(r"^re:|[\\^$.*()]+", " ", pattern).split()[-1:] or [pattern]
                kinds = list(dict.fromkeys([*layers, *(name.rpartition(".")[2] for name in layers)]))
                near = difflib.get_close_matches(pattern, kinds, n=1) or difflib.get_close_matches(word[0], kinds, n=1)
                valid = ", ".join(dict.fromkeys(_kind(name) for name in layers))
                hint = f"did you mean {near[0]!r}?" if near else f"its layers are {valid}"
                raise UserError(f"{key}: {pattern!r} is no linear layer of the model; {hint}")


def _check_expression(key, pattern):
    try:
        re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise UserError(f"{key}: {pattern!r} is not a regular expression: {error}") from None


def _check_fused(chosen, layers):
    for name in layers:
        stem, _, part = name.rpartition(".")
        group = next((group for group in FUSED if part == group[0]), ())
        inside = [other for other in group if f"{stem}.{other}" in chosen]
        if inside and len(inside) < len(group):
            raise UserError(
                f"{stem}: of {', '.join(group)} only {', '.join(inside)} would be quantized, but vLLM fuses these layers "
                "and wants one format for all of them: target or ignore all, or none"
            )


def _kind(name):
    """One name per kind of layer: model.layers.0.mlp.down_proj ... 31 become mlp.down_proj."""
    return re.sub(r"^model\.layers\.\d+\.", "", name)


def _check(side, key, size, features, which):
    wrong = {name: count for name, count in features.items() if count % size}
    if not wrong:
        return
    kinds = {_kind(name): count for name, count in wrong.items()}
    listed = ", ".join(f"{name} ({count} {which} features)" for name, count in kinds.items())
    fitting = [str(fit) for fit in GROUP_SIZES if all(count % fit == 0 for count in features.values())]
    raise UserError(
        f"format.{side}.{key} {size} does not divide {listed}; sizes that divide all layers: "
        f"{', '.join(fitting) or 'none of 16 to 256'}; or put these layers into ignore"
    )
