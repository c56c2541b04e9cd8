"""Schemes: reading config/schemes/*.yaml, what of them goes into a checkpoint, and whether they fit a model.

Pure, but for load_schemes, which needs pyyaml and jsonschema and so runs only in the workflow's environment.
"""

import copy
import difflib
import json
import re
from pathlib import Path

from quantbench.errors import UserError

SCHEMA = Path(__file__).parents[2] / "schemas" / "scheme.schema.json"

# The modifiers that round weights; the others only prepare them.
QUANTIZING = ("QuantizationModifier", "GPTQModifier")

# What a format promises to compute: bits and type of the weights, bits of the activations (None: 16) -> name.
COMPUTES = {
    (4, "int", None): "w4a16",
    (4, "float", None): "w4a16",
    (8, "int", None): "w8a16-int8",
    (8, "float", None): "w8a16-fp8",
    (8, "int", 8): "w8a8-int8",
    (8, "float", 8): "w8a8-fp8",
    (4, "float", 4): "w4a4-fp4",
}


def load_schemes(folder):
    """Every scheme of a folder as {name: scheme}; raises UserError naming file, key and nearest valid key."""
    import yaml

    from quantbench.validation import load_yaml

    schemes = {}
    for path in sorted(Path(folder).glob("*.yaml")):
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", path.stem):
            raise UserError(f"{path}: a scheme's name has only lower-case letters, digits and dashes")
        try:
            scheme = load_yaml(path.read_text())
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not valid YAML: {error}") from error
        check_scheme(scheme, path)
        schemes[path.stem] = scheme
    if not schemes:
        raise UserError(f"{folder}: holds no scheme (<name>.yaml)")
    return schemes


def check_scheme(scheme, path):
    """Raise UserError where a scheme breaks the schema or contradicts itself. `path` only names it in the message."""
    import jsonschema

    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.Draft202012Validator(schema)
    for error in sorted(validator.iter_errors(scheme), key=lambda error: list(map(str, error.absolute_path))):
        where = ".".join(map(str, error.absolute_path))
        raise UserError(f"{path}: {_explain(error, where)}")
    complaint = _contradiction(scheme)
    if complaint:
        raise UserError(f"{path}: {complaint}")


def _explain(error, where):
    """One schema error in the user's words."""
    place = f" in {where}" if where else ""
    if error.validator == "additionalProperties":
        valid = sorted(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(valid))[0]
        near = difflib.get_close_matches(unknown, valid, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid are: {', '.join(valid)}"
        return f"unknown key {unknown!r}{place}; {hint}"
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"key {missing[0]!r} is missing{place}"
    if error.validator in ("enum", "const"):
        valid = [error.validator_value] if error.validator == "const" else error.validator_value
        near = difflib.get_close_matches(str(error.instance), list(map(str, valid)), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where} is {error.instance!r}; valid are: {', '.join(map(repr, valid))}{hint}"
    return f"{where or 'the file'}: {error.message}"


def _contradiction(scheme):
    """What the schema cannot say about a scheme's keys together, in one sentence, or None."""
    format_, modifiers = scheme["format"], modifier_names(scheme)
    if scheme["toolkit"] == "none":
        for key, nothing in {"modifiers": [], "format": None, "targets": [], "ignore": [], "calibrated": False}.items():
            if scheme[key] != nothing:
                return (
                    f"{key} must be {json.dumps(nothing)} when toolkit is none, since nothing is quantized beforehand"
                )
        return None
    if format_ is None:
        return "format must say how weights and input_activations are held when toolkit is llmcompressor"
    if not modifiers or [name for name in modifiers if name in QUANTIZING] != modifiers[-1:]:
        return f"modifiers must end with the one that quantizes, {' or '.join(QUANTIZING)}, and have no other of these"
    if not scheme["targets"]:
        return "targets is empty, so nothing would be quantized; Linear means every linear layer"
    for side, arguments in format_.items():
        for strategies, key in ((("group", "tensor_group"), "group_size"), (("block",), "block_structure")):
            if arguments and (arguments["strategy"] in strategies) != (key in arguments):
                verb = "is missing from" if arguments["strategy"] in strategies else "has no meaning in"
                return f"{key} {verb} format.{side} with strategy {arguments['strategy']}"
    if scheme["calibrated"] != needs_calibration(scheme):
        return f"calibrated must be {str(needs_calibration(scheme)).lower()} for these modifiers and this format"
    promised = promised_computation(format_)
    if scheme["computes"] != promised:
        return f"computes is {scheme['computes']}, but this format promises {promised or 'what has no name here'}"
    return None


def modifier_names(scheme):
    return [name for modifier in scheme["modifiers"] for name in modifier]


def needs_calibration(scheme):
    """Whether the toolkit has to run calibration rows: for GPTQ, AWQ, SmoothQuant, and for static input scales."""
    inputs = (scheme["format"] or {}).get("input_activations")
    static_inputs = bool(inputs) and inputs["dynamic"] in (False, "local")
    return static_inputs or any(name != "QuantizationModifier" for name in modifier_names(scheme))


def promised_computation(format_):
    """The name of what a format computes, such as w4a16; bf16 for None; None where it has no name."""
    if format_ is None:
        return "bf16"
    weights, inputs = format_["weights"], format_["input_activations"]
    return COMPUTES.get((weights["num_bits"], weights["type"], inputs["num_bits"] if inputs else None))


def recipe_identity(scheme):
    """The part of a scheme that decides a checkpoint's bytes: `recipe` in the checkpoint's identity."""
    return {key: scheme[key] for key in ("toolkit", "modifiers", "format", "targets", "ignore")}


# --- the compressed-tensors format ----------------------------------------------------------------------------------


def compressed_tensors_config(format_, targets, ignore):
    """The `quantization_config` of a checkpoint in this format, as vLLM's CompressedTensorsConfig.from_config takes it.

    A fresh deep copy each time: from_config changes what it is given.
    """
    name = format_name(format_)
    group = {"targets": list(targets), **copy.deepcopy(format_), "output_activations": None, "format": name}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": name,
        "config_groups": {"group_0": group},
        "ignore": list(ignore),
        "kv_cache_scheme": None,
    }


def format_name(format_):
    """compressed-tensors' name of how a format is laid out in the file, by the rules of its compressors/format.py."""
    weights, inputs = format_["weights"], format_["input_activations"]
    if weights["type"] == "int":
        return "int-quantized" if inputs else "pack-quantized"
    if weights["num_bits"] == 4:
        return {16: "nvfp4-pack-quantized", 32: "mxfp4-pack-quantized"}[weights["group_size"]]
    if weights.get("group_size") == 32 and weights.get("scale_dtype") == "torch.uint8":
        return "mxfp8-quantized"
    return "float-quantized" if inputs else "naive-quantized"


# --- does a scheme fit a model --------------------------------------------------------------------------------------


def linear_layers(model_config):
    """{layer name: (output features, input features)} of a Llama-like decoder, from its HF config.json.

    Empty where the config lacks the keys: another architecture, which the toolkit checks itself, later.
    """
    config = model_config.get("text_config", model_config)
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


def check_scheme_fits(scheme, model_config):
    """Raise UserError naming the layers whose sizes a scheme's groups or blocks do not divide, and what would.

    scheme: the scheme, or its recipe; model_config: the model's HF config.json.
    """
    if not scheme["format"]:
        return
    layers = {
        name: shape
        for name, shape in linear_layers(model_config).items()
        if names_layer(name, scheme["targets"]) and not names_layer(name, scheme["ignore"])
    }
    for side, arguments in scheme["format"].items():
        size = (arguments or {}).get("group_size")
        if size:
            # Groups run along the input features; neither toolkit nor engine has a rest group.
            _check(layers, side, "group_size", size, {name: inputs for name, (_, inputs) in layers.items()}, "input")
    rows = (scheme["format"]["weights"].get("block_structure") or [None])[0]
    if rows:
        # Blocks may be cut off at the edges, except inside a layer that vLLM fuses: there every part but the last
        # has to end with a block (validate_fp8_block_shape in quantization/utils/fp8_utils.py).
        inner = {name: outputs for name, (outputs, _) in layers.items() if re.search(r"\.(q|k|gate)_proj$", name)}
        _check(layers, "weights", "block_structure", rows, inner, "output")


def _check(layers, side, key, size, features, which):
    wrong = {name: count for name, count in features.items() if count % size}
    if not wrong:
        return
    # One name per kind of layer: model.layers.0.mlp.down_proj ... 31 become mlp.down_proj.
    kinds = {re.sub(r"^model\.layers\.\d+\.", "", name): count for name, count in wrong.items()}
    listed = ", ".join(f"{name} ({count} {which} features)" for name, count in kinds.items())
    fitting = [str(fit) for fit in (16, 32, 64, 128, 256) if all(count % fit == 0 for count in features.values())]
    raise UserError(
        f"format.{side}.{key} {size} does not divide {listed}; sizes that divide all layers: "
        f"{', '.join(fitting) or 'none of 16 to 256'}; or put these layers into ignore"
    )
