"""A compressed-tensors checkpoint of 4- or 8-bit groups in the layouts of GPTQ and AWQ: the same integers, packed otherwise.

                     compressed-tensors                gptq                            awq
weights   [n, k]     weight_packed [n, k/8]            qweight [k/8, n]                qweight [k, n/8]
zeros     [n, g]     weight_zero_point [n/8, g]        qzeros [g, n/8], minus one      qzeros [g, n/8]
scales    [n, g]     weight_scale [n, g]               scales [g, n]                   scales [g, n]

n output features, k input features, g = k / group size; eight 4-bit numbers (four of 8 bits) share an int32, the first in
its low bits, except in AWQ, where positions 0 to 7 hold columns 0 2 4 6 1 3 5 7 (AutoAWQ's gemm layout, which vLLM's
auto_awq.py undoes). Zeros minus one: GPTQ's checkpoint_format "gptq", which vLLM's auto_gptq.py reads. A symmetric
format has no zeros in compressed-tensors; both others store the middle, 2^(bits-1). Packing is numpy's; only convert needs torch.
"""

import json
from pathlib import Path

import numpy as np

from quantbench.contenders import checkpoint_config

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# What one tensor of a quantized layer becomes depends on nothing but itself, so shards are converted one by one.
PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")


def unpack(packed, bits):
    """int32 [..., m] -> uint8 [..., m * 32 / bits], low bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    values = packed.view(np.uint32)[..., None] >> shifts & np.uint32(2**bits - 1)
    return values.reshape(*packed.shape[:-1], -1).astype(np.uint8)


def pack(values, bits, order=None):
    """uint8 [..., m] -> int32 [..., m * bits / 32], low bits first; `order`: which column goes to each position."""
    columns = values.reshape(*values.shape[:-1], -1, 32 // bits).astype(np.uint32)
    if order is not None:
        columns = columns[..., list(order)]
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return np.bitwise_or.reduce(columns << shifts, axis=-1).view(np.int32)


def native_tensors(part, tensor, layout, weights):
    """{name: array} in a native layout of one tensor of a layer; empty where the layout has no use for it.

    part     one of PARTS; tensor: its array, int32, or of any type for weight_scale; layout: gptq or awq
    weights  the format's QuantizationArgs: num_bits, group_size, symmetric
    """
    bits, middle = weights["num_bits"], 2 ** (weights["num_bits"] - 1)
    order = AWQ_ORDER if layout == "awq" else None
    if part == "weight_packed":
        values = unpack(np.ascontiguousarray(tensor), bits)
        if layout == "awq":
            return {"qweight": pack(np.ascontiguousarray(values.T), bits, order)}
        groups = np.arange(values.shape[1], dtype=np.int32) // weights["group_size"]
        # [n, k / 8] packed along k already
        return {"qweight": np.ascontiguousarray(pack(values, bits).T), "g_idx": groups.astype(np.int32)}
    stored = 1 if layout == "gptq" else 0
    if part == "weight_scale":
        found = {"scales": np.ascontiguousarray(tensor.T)}
        if weights["symmetric"]:
            zeros = np.full(found["scales"].shape, middle - stored, np.uint8)
            found["qzeros"] = pack(zeros, bits, order)
        return found
    if part == "weight_zero_point":
        # [n / 8, g] packed along n
        zeros = unpack(np.ascontiguousarray(tensor.T), bits)
        return {"qzeros": pack(zeros - np.uint8(stored), bits, order)}
    return {}


def native_config(layout, weights, ignore):
    """The `quantization_config` of a native checkpoint: the keys that GPTQModel and AutoAWQ write and vLLM reads."""
    config = checkpoint_config({"layout": layout, "format": {"weights": weights, "input_activations": None}})
    if layout == "awq":
        # Symmetric ones, too, store their zero points here. Where the list is empty vLLM finds out from the tensors which
        # layers were left alone; it knows no expressions.
        named = [] if any(name.startswith("re:") for name in ignore) else list(ignore)
        return config | {"zero_point": True, "modules_to_not_convert": named}
    return config | {"lm_head": "lm_head" not in ignore}


def convert(folder, layout, weights, ignore):
    """Rewrite a compressed-tensors checkpoint's safetensors files, index and config.json in a native layout, in place."""
    import torch
    from safetensors.torch import load_file, save_file

    places = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        kept = {}
        for name, tensor in load_file(path).items():
            layer, _, part = name.rpartition(".")
            if part not in PARTS:
                kept[name] = tensor
                continue
            # numpy knows no bfloat16: its bits are moved, and given back their type.
            bits = tensor.view(torch.int16).numpy() if part == "weight_scale" else tensor.numpy()
            for new, array in native_tensors(part, bits, layout, weights).items():
                made = torch.from_numpy(array)
                kept[f"{layer}.{new}"] = made.view(tensor.dtype) if new == "scales" else made
        save_file(kept, path, metadata={"format": "pt"})
        places |= dict.fromkeys(kept, path.name)
    index = Path(folder) / "model.safetensors.index.json"
    if index.exists():
        index.write_text(json.dumps({**json.loads(index.read_text()), "weight_map": places}, indent=2, sort_keys=True))
    config = Path(folder) / "config.json"
    described = json.loads(config.read_text()) | {"quantization_config": native_config(layout, weights, ignore)}
    config.write_text(json.dumps(described, indent=2) + "\n")
