"""Real quantized weights for one linear layer: a Gaussian weight rounded to nearest, in a checkpoint's layout.

Filling a layer with noise would time it just as well, but then nobody could tell a right result from a wrong one.
Layouts: compressed-tensors' compressors (pack_quantized, int_quantized, float_quantized, nvfp4_pack_quantized,
mxfp4_pack_quantized); GPTQ's and AWQ's own, as GPTQModel and AutoAWQ write them. The integers are the same in each.
A shape that a format cannot hold raises NotImplementedError, which is a result: the format has no such layer.
"""

from dataclasses import dataclass
from typing import Any

import torch

from quantbench.errors import UserError

FP8_MAX = 448.0  # largest float8_e4m3fn
FP4_MAX = 6.0  # largest float4_e2m1fn
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4_EXPONENT = 2  # of its largest power of two, 4
E8M0_BIAS = 127  # an MX scale of 2^e is stored as e + 127 (OCP Microscaling Formats v1.0, 5.4.1)
# AWQ's order of eight columns in a 32-bit word, low bits first (AutoAWQ, packing_utils.py).
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SEED = 0
LARGEST_INPUT = 5.0  # what a calibration would see of unit Gaussians


@dataclass
class Weight:
    """An [n, k] weight as a checkpoint holds it, and as numbers.

    tensors     {parameter name: tensor}, as a layer of this layout is loaded
    levels      [n, k] tensor of what is stored, before its scale: integers less their zero point, or floats
    scales      [n, groups] float64: level times scale is the number. Each covers k / groups columns
    """

    tensors: dict[str, Any]
    levels: Any
    scales: Any

    def dequantize(self, rows):
        """float64 numbers of a slice of rows."""
        levels = self.levels[rows].double()
        scales = self.scales[rows]
        return (levels.view(len(scales), scales.shape[1], -1) * scales.unsqueeze(-1)).view(len(scales), -1)

    def clone(self):
        """The same weight in memory of its own: what no cache may know of the first."""
        tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        return Weight(tensors, self.levels.clone(), self.scales.clone())


def make_weight(n, k, format, dtype, device, layout="compressed-tensors"):
    """A Weight of n output and k input features, in `format` (QuantizationArgs names) or, for None, in `dtype`.

    layout: compressed-tensors (torchao and plain are laid out the same), gptq or awq. Raises UserError for a format
    this module has no rule for, NotImplementedError for a shape that the format cannot hold.
    """
    generator = torch.Generator(device).manual_seed(SEED)
    values = torch.randn(n, k, generator=generator, device=device, dtype=torch.float32)
    if format is None:
        stored = values.to(dtype)
        return Weight({"weight": stored}, stored, torch.ones(n, 1, dtype=torch.float64, device=device))
    weights, inputs = format["weights"], format.get("input_activations")
    kind = (weights["type"], weights["num_bits"], weights["strategy"])
    packed = weights["type"] == "int" and (inputs is None or weights["num_bits"] == 4)
    if packed and weights["strategy"] in ("group", "channel"):
        return _packed_integers(values, weights, dtype, layout)
    if weights.get("symmetric", True) and kind in [("int", 8, s) for s in ("channel", "tensor", "block")]:
        return _eight_bit(values, weights, torch.int8, 127.0)
    if kind in (("float", 8, "channel"), ("float", 8, "tensor"), ("float", 8, "block")):
        return _eight_bit(values, weights, torch.float8_e4m3fn, FP8_MAX)
    if kind == ("float", 4, "tensor_group") and weights["group_size"] == 16:
        return _nvfp4(values)
    if kind == ("float", 4, "group") and weights["group_size"] == 32:
        return _mxfp4(values)
    raise UserError(f"no rule to quantize a weight for this format: {weights}")


def make_activations(m, k, dtype, device):
    """[m, k] Gaussian activations of unit variance."""
    generator = torch.Generator(device).manual_seed(SEED + 1)
    return torch.randn(m, k, generator=generator, device=device, dtype=torch.float32).to(dtype)


def static_input_scales(format, device):
    """{parameter name: tensor} for make_activations, of a format whose checkpoint holds the activations' scale."""
    inputs = (format or {}).get("input_activations") or {}
    if inputs.get("strategy") == "tensor_group":
        # Stored as a divisor, like the weights' global scale.
        divisor = FP8_MAX * FP4_MAX / LARGEST_INPUT
        return {"input_global_scale": torch.tensor([divisor], dtype=torch.float32, device=device)}
    scale = LARGEST_INPUT / (FP8_MAX if inputs.get("type") == "float" else 127.0)
    return {
        "input_scale": torch.tensor([scale], dtype=torch.float32, device=device),
        "input_zero_point": torch.tensor([0], device=device),
    }


def _packed_integers(values, weights, dtype, layout):
    """Integers of num_bits in groups along k, with or without a zero point, packed as `layout` has it."""
    n, k = values.shape
    bits, size = weights["num_bits"], weights.get("group_size") or k
    if k % size:
        raise NotImplementedError(f"groups of {size} do not divide {k} input features")
    groups = values.view(n, k // size, size)
    middle, top = 2 ** (bits - 1), 2**bits - 1
    if weights.get("symmetric", True):
        # The scale is rounded to the layer's own type first, as in a checkpoint.
        scales = (groups.abs().amax(-1) / (top / 2)).to(dtype).float()
        zeros = torch.full_like(scales, middle)
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scales = ((high - low) / top).to(dtype).float()
        zeros = (-low / scales).round().clamp(0, top)
    codes = ((groups / scales.unsqueeze(-1)).round() + zeros.unsqueeze(-1)).clamp(0, top)
    levels = (codes - zeros.unsqueeze(-1)).view(n, k).to(torch.int16)
    pack = {"gptq": _gptq_tensors, "awq": _awq_tensors}.get(layout, _packed_tensors)
    return Weight(pack(codes.view(n, k).int(), zeros.int(), scales, bits), levels, scales.double())


def _packed_tensors(codes, zeros, scales, bits):
    """compressed-tensors: [n, k] codes packed along k, [n, groups] zero points packed along n, low bits first."""
    return {
        "weight_packed": pack(codes, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor(codes.shape, device=codes.device),
        "weight_zero_point": pack(zeros.T.contiguous(), bits).T.contiguous(),
    }


def _gptq_tensors(codes, zeros, scales, bits):
    """GPTQ: [k, n] codes packed along k, [groups, n] zero points *minus one* packed along n, low bits first."""
    k, groups = codes.shape[1], scales.shape[1]
    return {
        "qweight": pack(codes, bits).T.contiguous(),
        "qzeros": pack(zeros.T.contiguous() - 1, bits),
        "scales": scales.T.contiguous(),
        # Which group each input feature belongs to; releases that know act-order read it.
        "g_idx": (torch.arange(k, device=codes.device) // (k // groups)).int(),
    }


def _awq_tensors(codes, zeros, scales, bits):
    """AWQ: [k, n] codes and [groups, n] zero points, both packed along n in AWQ's order of columns."""
    if codes.shape[0] % len(AWQ_ORDER):
        raise NotImplementedError(f"AWQ's layout packs 8 output features to a word, {codes.shape[0]} do not divide")

    def packed(rows):
        ordered = rows.view(len(rows), -1, len(AWQ_ORDER))[:, :, list(AWQ_ORDER)]
        return pack(ordered.reshape(rows.shape), bits)

    return {
        "qweight": packed(codes.T.contiguous()),
        "qzeros": packed(zeros.T.contiguous()),
        "scales": scales.T.contiguous(),
    }


def pack(codes, bits):
    """[rows, columns] small unsigned integers -> [rows, columns x bits / 32] int32, low bits first."""
    each = 32 // bits
    if codes.shape[1] % each:
        raise NotImplementedError(f"{codes.shape[1]} values of {bits} bits do not fill 32-bit words")
    shifts = torch.arange(0, 32, bits, device=codes.device, dtype=torch.int64)
    words = (codes.view(codes.shape[0], -1, each).long() << shifts).sum(-1)
    # To signed 32 bits by hand: converting a larger number is undefined.
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _eight_bit(values, weights, dtype, top):
    """int8 or FP8, one 32-bit scale per row, per tensor or per block."""
    n, k = values.shape
    if weights["strategy"] == "block":
        rows, columns = weights["block_structure"]
        if n % rows or k % columns:
            raise NotImplementedError(f"blocks of {rows} by {columns} do not divide {n} by {k}")
        stored_scales = values.abs().view(n // rows, rows, k // columns, columns).amax((1, 3)) / top
        scales = stored_scales.repeat_interleave(rows, 0)
    else:
        dims = 1 if weights["strategy"] == "channel" else (0, 1)
        stored_scales = values.abs().amax(dims, keepdim=True) / top
        scales = stored_scales.expand(n, 1)
        if weights["strategy"] == "tensor":
            stored_scales = stored_scales.view(1)
    scaled = values.view(n, scales.shape[1], -1) / scales.unsqueeze(-1)
    if dtype == torch.int8:
        scaled = scaled.round()
    stored = scaled.clamp(-top, top).view(n, k).to(dtype)
    return Weight({"weight": stored, "weight_scale": stored_scales}, stored, scales.double())


def _nvfp4(values):
    """FP4 pairs in a byte, an FP8 scale for each 16, one divisor for all scales of the tensor."""
    groups = _groups(values, 16)
    divisor = FP8_MAX * FP4_MAX / values.abs().max()
    stored_scales = (groups.abs().amax(-1) / FP4_MAX * divisor).clamp(max=FP8_MAX).to(torch.float8_e4m3fn)
    scales = stored_scales.double() / divisor.double()
    levels, packed = _fp4(groups / scales.unsqueeze(-1).float())
    tensors = {"weight_packed": packed, "weight_scale": stored_scales, "weight_global_scale": divisor.view(1)}
    return Weight(tensors, levels, scales)


def _mxfp4(values):
    """FP4 pairs in a byte, a power of two for each 32: the largest magnitude's less FP4's own largest exponent."""
    groups = _groups(values, 32)
    exponents = groups.abs().amax(-1).log2().floor() - FP4_EXPONENT
    scales = torch.exp2(exponents.double())
    levels, packed = _fp4(groups / scales.unsqueeze(-1).float())
    tensors = {"weight_packed": packed, "weight_scale": (exponents + E8M0_BIAS).to(torch.uint8)}
    return Weight(tensors, levels, scales)


def _groups(values, size):
    """[n, k] -> [n, k / size, size]"""
    n, k = values.shape
    if k % size:
        raise NotImplementedError(f"groups of {size} do not divide {k} input features")
    return values.view(n, k // size, size)


def _fp4(scaled):
    """[n, groups, size] -> the nearest FP4 values as [n, k] floats, and their codes in bytes, even column low."""
    scaled = scaled.flatten(1)
    grid = torch.tensor(FP4_VALUES, dtype=torch.float32, device=scaled.device)
    # Nearest of eight magnitudes: count the midpoints that lie below.
    codes = torch.bucketize(scaled.abs(), (grid[1:] + grid[:-1]) / 2)
    nibbles = (codes + 8 * (scaled < 0)).to(torch.uint8)
    return grid[codes] * scaled.sign(), nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
