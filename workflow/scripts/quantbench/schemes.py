"""Schemes: reading config/schemes/*.yaml, and what of them goes into a checkpoint (model_fit.py: whether they fit a model).

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

# What a format promises to compute: number type of weights and of activations (None: 16-bit) -> name. A type is its
# bits and kind; fp4 has groups of 16 with 8-bit floating-point scales, the mx types groups of 32 with powers of two.
COMPUTES = {
    ("int4", None): "w4a16",
    ("int8", None): "w8a16-int8",
    ("int4", "int8"): "w4a8",
    ("int4", "fp8"): "w4a8-fp8",
    ("int8", "int8"): "w8a8-int8",
    ("fp8", None): "w8a16-fp8",
    ("fp8", "fp8"): "w8a8-fp8",
    ("fp4", None): "w4a16-fp4",
    ("fp4", "fp4"): "w4a4-fp4",
    ("mxfp4", None): "w4a16-mxfp4",
    ("mxfp4", "mxfp4"): "w4a4-mxfp4",
    ("mxfp8", "mxfp8"): "w8a8-mxfp8",
}


def load_schemes(folder):
    """Every scheme of a folder as {name: scheme}, with what it extends filled in.

    A scheme is <folder>/<name>.yaml; what several share is in <folder>/base. Raises UserError naming file, key and
    nearest valid key.
    """
    schemes = {}
    for path in sorted(Path(folder).glob("*.yaml")):
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", path.stem):
            raise UserError(f"{path}: a scheme's name has only lower-case letters, digits and dashes")
        scheme = _with_base(path, Path(folder) / "base", ())
        check_scheme(scheme, path)
        schemes[path.stem] = scheme
    if not schemes:
        raise UserError(f"{folder}: holds no scheme (<name>.yaml)")
    for name, scheme in schemes.items():
        if complaint := _spares_nothing(scheme, schemes):
            raise UserError(f"{Path(folder) / name}.yaml: {complaint}")
    return schemes


def _with_base(path, bases, seen):
    """A file's mapping over that of the base it extends: mappings are merged key by key, all else is replaced."""
    import yaml

    from quantbench.validation import load_yaml

    try:
        found = load_yaml(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(found, dict) or "extends" not in found:
        return found
    name = found.pop("extends")
    valid = sorted(base.stem for base in bases.glob("*.yaml"))
    if name not in valid:
        raise UserError(f"{path}: extends is {name!r}; valid are: {', '.join(valid) or 'none, since base/ is empty'}")
    if name in seen:
        raise UserError(f"{path}: extends goes round in a circle: {' -> '.join([*seen, name])}")
    return _merged(_with_base(bases / f"{name}.yaml", bases, (*seen, name)), found)


def _merged(base, own):
    if not (isinstance(base, dict) and isinstance(own, dict)):
        return own
    return base | {key: _merged(base[key], value) if key in base else value for key, value in own.items()}


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
    format_, toolkit = scheme["format"], scheme["toolkit"]
    if toolkit == "none":
        nothings = {"modifiers": [], "format": None, "targets": [], "calibrated": False}
        # What the engine quantizes while it loads, it may leave parts of alone.
        nothings |= {} if scheme["engine_args"].get("quantization") else {"ignore": []}
        for key, nothing in nothings.items():
            if scheme[key] != nothing:
                return (
                    f"{key} must be {json.dumps(nothing)} when toolkit is none, since nothing is quantized beforehand"
                )
        return None
    if format_ is None:
        return f"format must say how weights and input_activations are held when toolkit is {toolkit}"
    complaint = _made_elsewhere(scheme) if toolkit == "prequantized" else _made_here(scheme)
    if complaint:
        return complaint
    if not scheme["targets"]:
        return "targets is empty, so nothing would be quantized; Linear means every linear layer"
    for side, arguments in format_.items():
        for strategies, key in ((("group", "tensor_group"), "group_size"), (("block",), "block_structure")):
            if arguments and (arguments["strategy"] in strategies) != (key in arguments):
                verb = "is missing from" if arguments["strategy"] in strategies else "has no meaning in"
                return f"{key} {verb} format.{side} with strategy {arguments['strategy']}"
    if layout_of(scheme) in NATIVE_LAYOUTS:
        complaint = NATIVE_LAYOUTS[layout_of(scheme)](format_)
        if complaint:
            return f"layout {layout_of(scheme)} {complaint}"
    promised = promised_computation(format_)
    if scheme["computes"] != promised:
        return f"computes is {scheme['computes']}, but this format promises {promised or 'what has no name here'}"
    return None


def _made_here(scheme):
    """What llm-compressor would not make of a scheme, or None."""
    modifiers = modifier_names(scheme)
    if not modifiers or [name for name in modifiers if name in QUANTIZING] != modifiers[-1:]:
        return f"modifiers must end with the one that quantizes, {' or '.join(QUANTIZING)}, and have no other of these"
    if layout_of(scheme) == "fp8":
        return "layout fp8 is only read (toolkit: prequantized); what is made here is in layout compressed-tensors"
    if scheme["calibrated"] != needs_calibration(scheme):
        return f"calibrated must be {str(needs_calibration(scheme)).lower()} for these modifiers and this format"
    return None


def _made_elsewhere(scheme):
    for key, nothing in {"modifiers": [], "calibrated": False}.items():
        if scheme[key] != nothing:
            return f"{key} must be {json.dumps(nothing)} when toolkit is prequantized, since others made the checkpoint"
    return None


def _no_gptq(format_):
    weights = format_["weights"]
    fits = weights["type"] == "int" and weights["symmetric"] and weights["strategy"] == "group"
    return None if fits and not format_["input_activations"] else "holds symmetric integer weights in groups, no more"


def _no_awq(format_):
    weights = format_["weights"]
    fits = weights["type"] == "int" and weights["num_bits"] == 4 and weights["strategy"] == "group"
    return None if fits and not format_["input_activations"] else "holds 4-bit integer weights in groups, and no more"


def _no_fp8(format_):
    return None if format_["weights"]["strategy"] == "block" else "holds FP8 weights in blocks, and no more"


def _spares_nothing(scheme, schemes):
    """What is wrong with whom a scheme spares the worst layers of, or None."""
    if "spare" not in scheme:
        return None
    name = scheme["spare"]["worst_of"]
    parent = schemes.get(name, {})
    if scheme["toolkit"] != "llmcompressor":
        return f"spare has no meaning where toolkit is {scheme['toolkit']}, since nothing is quantized here"
    if parent.get("toolkit") != "llmcompressor" or "spare" in parent or layout_of(parent) != "compressed-tensors":
        hint = "".join(f"; did you mean {near!r}?" for near in difflib.get_close_matches(name, schemes, n=1))
        return (
            f"spare.worst_of is {name!r}; valid are schemes with toolkit llmcompressor in layout compressed-tensors "
            f"that spare nothing themselves{hint if name not in schemes else ''}"
        )
    for key in ("targets", "ignore"):
        if scheme[key] != parent[key]:
            return f"{key} has to be that of {name}, whose worst layers it spares"
    return None


# Layouts of a checkpoint's tensors besides compressed-tensors', and what each of them cannot hold.
NATIVE_LAYOUTS = {"gptq": _no_gptq, "awq": _no_awq, "fp8": _no_fp8}


def layout_of(scheme):
    """How the checkpoint's tensors lie: compressed-tensors, gptq, awq, or fp8."""
    return scheme.get("layout", "compressed-tensors")


def modifier_names(scheme):
    return [name for modifier in scheme["modifiers"] for name in modifier]


def needs_calibration(scheme):
    """Whether the toolkit has to run calibration rows: GPTQ, AWQ, SmoothQuant, static scales of inputs or KV cache."""
    inputs = (scheme["format"] or {}).get("input_activations")
    static_inputs = bool(inputs) and inputs["dynamic"] in (False, "local")
    data_driven = any(name != "QuantizationModifier" for name in modifier_names(scheme))
    return static_inputs or bool(scheme.get("kv_cache")) or data_driven


def promised_computation(format_):
    """The name of what a format computes, such as w4a16; bf16 for None; None where it has no name."""
    if format_ is None:
        return "bf16"
    return COMPUTES.get((number_type(format_["weights"]), number_type(format_["input_activations"])))


def number_type(arguments):
    """int4, int8, fp4, fp8, mxfp4 or mxfp8 of compressed-tensors' QuantizationArgs; None for None."""
    if arguments is None:
        return None
    if arguments["type"] == "int":
        return f"int{arguments['num_bits']}"
    return ("mx" if arguments.get("scale_dtype") == "torch.uint8" else "") + f"fp{arguments['num_bits']}"


def recipe_identity(scheme):
    """The part of a scheme that decides a checkpoint's bytes: `recipe` in the checkpoint's identity.

    What a scheme does not say is left out, so that a key added here leaves older checkpoints' identities as they were.
    """
    optional = [key for key in ("layout", "kv_cache") if scheme.get(key)]
    return {key: scheme[key] for key in ("toolkit", "modifiers", "format", "targets", "ignore", *optional)}


# --- the compressed-tensors format ----------------------------------------------------------------------------------


def compressed_tensors_config(format_, targets, ignore, kv_cache=None):
    """The `quantization_config` of a checkpoint in this format, as vLLM's CompressedTensorsConfig.from_config takes it.

    kv_cache: QuantizationArgs of keys and values, or None. A fresh deep copy each time: from_config changes its argument.
    """
    name = format_name(format_)
    group = {"targets": list(targets), **copy.deepcopy(format_), "output_activations": None, "format": name}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": name,
        "config_groups": {"group_0": group},
        "ignore": list(ignore),
        "kv_cache_scheme": copy.deepcopy(kv_cache),
    }


def format_name(format_):
    """compressed-tensors' name of how a format is laid out in the file, by the rules of its compressors/format.py."""
    weights, inputs = format_["weights"], format_["input_activations"]
    if weights["type"] == "int":
        # 4-bit weights with 8-bit inputs: the toolkit would store a byte each, and vLLM reads them packed only.
        return "int-quantized" if inputs and weights["num_bits"] == 8 else "pack-quantized"
    if weights["num_bits"] == 4:
        return {16: "nvfp4-pack-quantized", 32: "mxfp4-pack-quantized"}[weights["group_size"]]
    if weights.get("group_size") == 32 and weights.get("scale_dtype") == "torch.uint8":
        return "mxfp8-quantized"
    return "float-quantized" if inputs else "naive-quantized"
