"""Weights and activations as the operators want them: integers packed in each library's own order, scales in its shape."""

import torch

from quantbench.gemm.ops.base import BLOCK, refuse_unless, require
from quantbench.gemm.weights import AWQ_ORDER, pack


def unsigned(weight):
    """(codes [n, k], zero points [n, groups], bits): int32, a level is code less zero point, 0 <= code < 2^bits.

    The zero point is the format's middle where every level fits around it, else a group's own least level.
    """
    low, high = level_range(weight)
    bits = 4 if int((high - low.clamp(max=0)).max()) < 16 else 8
    middle = 2 ** (bits - 1)
    fits = bool(low.min() >= -middle) and bool(high.max() < middle)
    zeros = torch.full_like(low, middle) if fits else (-low).clamp(min=0)
    require(int((high + zeros).max()) < 2**bits, "levels that span more than 8 bits")
    return weight.levels.int() + per_column(zeros, weight), zeros, bits


def biased(weight):
    """(codes [n, k] int32, bits): a level is code less half of 2^bits, in every group."""
    low, high = level_range(weight)
    bits = 4 if bool(low.min() >= -8) and bool(high.max() < 8) else 8
    middle = 2 ** (bits - 1)
    fits = bool(low.min() >= -middle) and bool(high.max() < middle)
    require(fits, "zero points, for which this product has no place")
    return weight.levels.int() + middle, bits


def level_range(weight):
    """Least and greatest level of every group, [n, groups] int32 each."""
    require(not weight.levels.is_floating_point(), "this product is for integer weights")
    groups = weight.levels.int().view(*weight.scales.shape, -1)
    return groups.amin(-1), groups.amax(-1)


def per_column(values, weight):
    """[n, groups] -> [n, k]"""
    return values.repeat_interleave(weight.levels.shape[1] // weight.scales.shape[1], dim=1)


def group_size(weight, k):
    """Columns that share a scale; -1, in vLLM's words, where all of a row do."""
    groups = weight.scales.shape[1]
    return -1 if groups == 1 else k // groups


def gptq_words(codes, bits):
    """[n, k] codes -> [k bits / 32, n] int32, packed along k, low bits first (vLLM quant_utils.gptq_pack)."""
    return pack(codes, bits).t().contiguous()


def awq_words(codes):
    """[rows, n] codes of 4 bits -> [rows, n / 8] int32, packed along n in AWQ's order (vLLM quant_utils.awq_pack)."""
    rows, n = codes.shape
    refuse_unless(n % 8 == 0, f"AWQ's layout packs 8 output features to a word, {n} do not divide")
    return pack(codes.reshape(rows, n // 8, 8)[:, :, list(AWQ_ORDER)].reshape(rows, n), 4)


def tinygemm_words(codes):
    """[n, k] codes -> torch's own order of 4-bit weights."""
    if codes.device.type == "cpu":
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    pairs = (codes[:, 0::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    refuse_unless(codes.shape[1] % 128 == 0, f"tinygemm's tiles of 128 input features do not divide {codes.shape[1]}")
    return torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), 8)


def tinygemm_scales(weight, zeros, dtype):
    """[groups, n, 2]: scale and zero of (code - 8) scale + zero."""
    offsets = (8 - zeros) * weight.scales
    return torch.stack((weight.scales.t(), offsets.t()), dim=-1).to(dtype).contiguous()


def eight_bit(weight, stored):
    """[n, k] levels in the 8-bit type `stored`."""
    levels = weight.levels
    fits = levels.dtype == stored or (stored == torch.int8 and not levels.is_floating_point())
    if fits and levels.dtype != stored:
        fits = bool(levels.min() >= -128) and bool(levels.max() <= 127)
    require(fits, f"this product is for {str(stored).removeprefix('torch.')} weights")
    return levels.to(stored)


def channel_scales(weight):
    """[n, 1] fp32"""
    require(weight.scales.shape[1] == 1, "this product is for one scale per output channel")
    return weight.scales.float().contiguous()


def tensor_scale(weight):
    """[1] fp32"""
    require(bool((weight.scales == weight.scales[0, 0]).all()), "this product is for one scale per tensor")
    return weight.scales[0, 0].float().view(1)


def block_scales(weight):
    """[n / 128, k / 128] fp32"""
    n, k = weight.levels.shape
    fits = n % BLOCK == 0 and k % BLOCK == 0 and weight.scales.shape[1] == k // BLOCK
    require(fits, "this product is for weights in blocks of 128 x 128")
    return weight.scales[::BLOCK].float().contiguous()


def quantize(x, top, stored, per_token=True, group=None):
    """([m, k] values of type `stored`, their fp32 scales): the largest magnitude becomes `top`.

    Scales: [m, 1] per token; [m, k / group] for groups; [1] per tensor, as a calibration on x would find it.
    """
    wide = x.float()
    if group:
        wide = wide.view(len(x), -1, group)
        scales = wide.abs().amax(-1) / top
        scaled = wide / scales.unsqueeze(-1)
    else:
        scales = (wide.abs().amax(1, keepdim=True) if per_token else wide.abs().amax().view(1)) / top
        scaled = wide / scales
    if not stored.is_floating_point:
        scaled = scaled.round()
    return scaled.clamp(-top, top).view(x.shape).to(stored), scales
