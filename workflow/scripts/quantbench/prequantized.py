"""A checkpoint that others quantized, held to what it claims: its own quantization_config, the scheme, the 16-bit model.

Told from config.json and the safetensors headers alone, before anything is measured. Pure.
"""

import math

from quantbench.errors import UserError
from quantbench.model_fit import quantized_layers
from quantbench.quantize import checkpoint
from quantbench.schemes import format_name, layout_of

# What makes two configs the same architecture; compared where both have the key (older writers leave some out).
SAME_MODEL = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "tie_word_embeddings",
)  # fmt: skip
# What a format says of numbers, as far as a quantization_config says it, too.
WEIGHTS = ("num_bits", "type", "strategy", "group_size", "block_structure", "symmetric")
INPUTS = ("num_bits", "type", "strategy", "group_size", "symmetric", "dynamic")
SCALES = ("F16", "BF16", "F32")
# Wrong layers named in one message; there may be hundreds.
NAMED = 3


def check_claims(scheme, config, found, base_config):
    """Raise UserError where a checkpoint is not what it claims, not what the scheme says, or not of the 16-bit model.

    config       the checkpoint's config.json; base_config: the 16-bit model's
    found        {tensor name: {"dtype", "shape", ...}} of its safetensors headers (quantize/checkpoint.py)
    """
    theirs, ours = config.get("text_config", config), base_config.get("text_config", base_config)
    for key in SAME_MODEL:
        if key in theirs and key in ours and theirs[key] != ours[key]:
            raise UserError(
                f"is a checkpoint of another model: {key} is {theirs[key]} in it, and {ours[key]} in the model"
            )
    claimed = claims(config.get("quantization_config"))
    _compare("layout", layout_of(scheme), claimed["layout"])
    for side, keys in (("weights", WEIGHTS), ("input_activations", INPUTS)):
        _compare_arguments(side, keys, scheme["format"][side], claimed[side])
    _check_tensors(scheme, found, quantized_layers(scheme, base_config))


def claims(described):
    """{"layout", "weights", "input_activations"} of a quantization_config; a value that it does not tell is left out.

    Raises UserError where there is none, or one that no scheme describes.
    """
    if not described:
        raise UserError("claims nothing: its config.json has no quantization_config, so it is not quantized")
    method = described.get("quant_method")
    reader = READERS.get(method)
    if reader is None:
        raise UserError(f"has quant_method {method!r}; valid are: {', '.join(sorted(READERS))}")
    try:
        return {"layout": method, **reader(described)}
    except KeyError as error:
        raise UserError(f"has a quantization_config without {error.args[0]!r}") from None


def _compressed_tensors(described):
    groups = list(described["config_groups"].values())
    if len(groups) != 1:
        raise UserError(f"has {len(groups)} formats (config_groups); a scheme has one")
    return {"weights": groups[0]["weights"], "input_activations": groups[0].get("input_activations")}


def _gptq(described):
    weights = {"num_bits": described["bits"], "type": "int", "symmetric": described["sym"]}
    return {"weights": weights | _groups(described["group_size"]), "input_activations": None}


def _awq(described):
    bits = described.get("bits", described.get("w_bit"))
    size = described.get("group_size", described.get("q_group_size"))
    # AWQ's layout stores zero points whether or not they are all the same, so symmetry shows in no key of it.
    return {"weights": {"num_bits": bits, "type": "int"} | _groups(size), "input_activations": None}


def _groups(size):
    return {"strategy": "channel"} if size in (None, -1) else {"strategy": "group", "group_size": size}


def _fp8(described):
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "symmetric": True}
    inputs = {"num_bits": 8, "type": "float", "dynamic": described["activation_scheme"] == "dynamic"}
    return {
        "weights": weights | {"block_structure": described["weight_block_size"]},
        "input_activations": inputs,
    }


READERS = {"compressed-tensors": _compressed_tensors, "gptq": _gptq, "awq": _awq, "fp8": _fp8}


def _compare_arguments(side, keys, ours, theirs):
    if (ours is None) != (theirs is None):
        words = {True: "16-bit", False: "quantized"}
        raise UserError(f"claims {words[theirs is None]} {side}, the scheme says they are {words[ours is None]}")
    for key in keys:
        if ours and theirs.get(key) is not None:
            _compare(f"{side}.{key}", ours.get(key), theirs[key])


def _compare(what, ours, theirs):
    if ours != theirs:
        raise UserError(f"claims {what} {theirs}, the scheme says {ours}")


def _check_tensors(scheme, found, layers):
    quantized = checkpoint.quantized_layers(found)
    if not quantized:
        raise UserError("holds no weight scale: its tensors are not quantized, whatever its quantization_config says")
    if not any(f"{name}.{suffix}" in found for name in layers for suffix in ("weight", "weight_packed", "qweight")):
        # Tensors of other names than a Llama's: nothing to compare with.
        return
    left = sorted(set(layers) - quantized)
    if left:
        raise UserError(
            f"leaves {_some(left)} 16-bit, the scheme quantizes them: name what the checkpoint leaves alone in the "
            "scheme's ignore"
        )
    wrong = []
    for name, (n, k) in layers.items():
        for suffix, (dtypes, shapes) in expected_tensors(scheme, n, k).items():
            tensor = found.get(f"{name}.{suffix}")
            if tensor is None:
                wrong.append(f"{name}.{suffix} is missing")
            elif tensor["dtype"] not in dtypes or tuple(tensor["shape"]) not in shapes:
                is_, want = (f"{d} {list(s)}" for d, s in ((tensor["dtype"], tensor["shape"]), (dtypes[0], shapes[0])))
                wrong.append(f"{name}.{suffix} is {is_} instead of {want}")
    if wrong:
        raise UserError(f"holds other tensors than its quantization_config says: {_some(wrong, '; ')}")


def expected_tensors(scheme, n, k):
    """{last part of a tensor's name: (valid types, valid shapes)} of an [n, k] layer in the scheme's format and layout."""
    weights, layout = scheme["format"]["weights"], layout_of(scheme)
    bits = weights["num_bits"]
    scales = _scale_shapes(weights, n, k)
    if layout in ("gptq", "awq"):
        groups = k // weights["group_size"]
        packed = (k * bits // 32, n) if layout == "gptq" else (k, n * bits // 32)
        zeros = {"qzeros": (("I32",), [(groups, n * bits // 32)])}
        return {"qweight": (("I32",), [packed]), "scales": (SCALES, [(groups, n)]), **zeros}
    if layout == "fp8":
        return {"weight": (("F8_E4M3",), [(n, k)]), "weight_scale_inv": (SCALES, scales)}
    name = format_name(scheme["format"])
    if name == "nvfp4-pack-quantized":
        return {
            "weight_packed": (("U8",), [(n, k // 2)]), "weight_scale": (("F8_E4M3",), scales),
            "weight_global_scale": (("F32",), [(1,), ()]),
        }  # fmt: skip
    if name == "mxfp4-pack-quantized":
        return {"weight_packed": (("U8",), [(n, k // 2)]), "weight_scale": (("U8",), scales)}
    if name == "pack-quantized":
        found = {"weight_packed": (("I32",), [(n, math.ceil(k * bits / 32))]), "weight_scale": (SCALES, scales)}
        if not weights["symmetric"]:
            found["weight_zero_point"] = (("I32",), [(math.ceil(n * bits / 32), scales[0][1])])
        return found
    stored = {"int": "I8", "float": "F8_E4M3"}[weights["type"]]
    own = ("U8",) if name == "mxfp8-quantized" else SCALES
    return {"weight": ((stored,), [(n, k)]), "weight_scale": (own, scales)}


def _scale_shapes(weights, n, k):
    strategy = weights["strategy"]
    if strategy in ("group", "tensor_group"):
        return [(n, k // weights["group_size"])]
    if strategy == "block":
        rows, columns = weights["block_structure"]
        return [(math.ceil(n / rows), math.ceil(k / columns))]
    return [(n, 1), (n,)] if strategy == "channel" else [(1,), ()]


def _some(items, between=", "):
    more = len(items) - NAMED
    return between.join(items[:NAMED]) + (f" and {more} more" if more > 0 else "")
