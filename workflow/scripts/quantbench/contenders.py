"""Contenders (config/kernels.yaml): ways to compute a linear layer besides the engine's own with a scheme's format.

Pure, but for load_contenders, which needs pyyaml and jsonschema and so runs only in the workflow's environment.
"""

import json
from pathlib import Path

from quantbench.errors import UserError
from quantbench.schemes import compressed_tensors_config

SCHEMA = Path(__file__).parents[2] / "schemas" / "kernels.schema.json"

# What each layout can hold: bits of integer weights, whether they have zero points (None: either).
# vLLM's AutoGPTQConfig.TYPE_MAP and AutoAWQConfig.TYPE_MAP have no other.
NATIVE_LAYOUTS = {"gptq": ((4, 8), False), "awq": ((4,), True)}


def load_contenders(path):
    """Every contender of a file as {name: spec}, defaults filled in. Raises UserError: file, key, nearest valid key."""
    from quantbench.validation import check, read_yaml, with_defaults

    entries = read_yaml(path)
    check(entries, SCHEMA, path)
    schema = json.loads(SCHEMA.read_text())
    contenders = {name: with_defaults(spec, schema["$defs"]["contender"], schema) for name, spec in entries.items()}
    for name, spec in contenders.items():
        if complaint := _contradiction(spec):
            raise UserError(f"{path}: {name}: {complaint}")
    return contenders


def contender_identity(spec):
    """The part of a contender that decides what is measured: all but its description."""
    return {name: value for name, value in spec.items() if name != "description"}


def forced_layer(recipe, backend):
    """contender_identity of a scheme's own layer with a backend's kernels forced, as they are in its engine; None without a
    backend, and where nothing is quantized."""
    if backend is None or recipe["format"] is None:
        return None
    # Layers alone are built as compressed-tensors has them, whatever the layout of the checkpoint: the kernels are the same.
    found = {"format": recipe["format"], "layout": "compressed-tensors", "through": {"backend": backend}}
    return found | {"computes": recipe["computes"]}


def device_refusal(spec, gpu_entry):
    """Why a device cannot run a contender, in one sentence, or None.

    gpu_entry: an entry of the data sheets (`environment`, `compute_capability` and `description` are read).
    """
    cpu = gpu_entry["environment"].endswith("-cpu")
    if spec["device"] != "any" and (spec["device"] == "cpu") != cpu:
        return f"this kernel runs on {'a CPU' if spec['device'] == 'cpu' else 'CUDA devices'} only"
    if cpu:
        return None
    capability, least, most = gpu_entry["compute_capability"], spec["capability"]["least"], spec["capability"]["most"]
    if least and _number(capability) < _number(least):
        return f"this kernel needs compute capability {least}, the device has {capability}"
    if most and _number(capability) > _number(most):
        return f"this kernel exists up to compute capability {most}, the device has {capability}"
    return None


def checkpoint_config(spec):
    """The `quantization_config` that a checkpoint of this contender would have; None where the engine reads none.

    compressed-tensors: as schemes.compressed_tensors_config, for every linear layer; gptq and awq: the keys that
    GPTQModel and AutoAWQ write, which are those that vLLM's AutoGPTQConfig and AutoAWQConfig read.
    """
    if spec["format"] is None or spec["layout"] not in ("compressed-tensors", "gptq", "awq"):
        return None
    weights = spec["format"]["weights"]
    if spec["layout"] == "gptq":
        return {
            "quant_method": "gptq", "bits": weights["num_bits"], "group_size": weights.get("group_size", -1),
            "sym": weights["symmetric"], "desc_act": False, "checkpoint_format": "gptq",
        }  # fmt: skip
    if spec["layout"] == "awq":
        return {
            "quant_method": "awq", "bits": weights["num_bits"], "group_size": weights.get("group_size", -1),
            "zero_point": not weights["symmetric"], "version": "gemm",
        }  # fmt: skip
    config = compressed_tensors_config(spec["format"], ["Linear"], [])
    if weights["type"] == "int" and weights["num_bits"] == 4:
        # Four bits are packed whatever the activations are; schemes' int-quantized means one byte each.
        config["format"] = config["config_groups"]["group_0"]["format"] = "pack-quantized"
    return config


def _contradiction(spec):
    """What the schema cannot say about a contender's keys together, in one sentence, or None."""
    format_, layout, through = spec["format"], spec["layout"], spec["through"]
    if (format_ is None) != (layout == "plain"):
        return f"layout {layout} does not go with format {'null' if format_ is None else 'of quantized weights'}"
    if layout in NATIVE_LAYOUTS:
        bits, zeros = NATIVE_LAYOUTS[layout]
        weights = format_["weights"]
        fits = weights["type"] == "int" and weights["num_bits"] in bits and zeros != weights["symmetric"]
        if not fits or format_["input_activations"]:
            kind = "with zero points" if zeros else "symmetric"
            return f"layout {layout} holds {' or '.join(map(str, bits))}-bit integer weights, {kind}, and nothing else"
    if layout == "torchao" and "op" not in through:
        return "layout torchao is read by operators only (through: {op: ...})"
    if "op" not in through and spec["includes_quantization"] is False:
        return "includes_quantization is false, but an engine's layer quantizes the activations itself"
    rounds = any(f"a{bits}" in spec["computes"].split("-")[0] for bits in (4, 8))
    if rounds == (spec["includes_quantization"] is None):
        return f"includes_quantization must be {'true or false' if rounds else 'null'} for {spec['computes']}"
    return None


def _number(capability):
    """ "8.6" -> (8, 6)"""
    return tuple(int(part) for part in capability.split("."))
