"""Products of integer weights with 16-bit activations, and of 4-bit weights with 8-bit ones."""

import torch

from quantbench.gemm.ops import vllm_calls
from quantbench.gemm.ops.base import BLOCK, FP8_MAX, Op, refuse_unless, require
from quantbench.gemm.ops.layouts import (
    awq_words,
    biased,
    channel_scales,
    eight_bit,
    gptq_words,
    group_size,
    quantize,
    tinygemm_scales,
    tinygemm_words,
    unsigned,
)
from quantbench.gemm.weights import pack

# Thread blocks per multiprocessor that Marlin may lock (vLLM marlin_utils.MARLIN_MAX_BLOCKS_PER_SM).
MARLIN_BLOCKS = 4


def named(bits):
    """What a product of 16-bit activations with integers of so many bits computes (engine/kernels.py)."""
    return "w4a16" if bits == 4 else "w8a16-int8"


class GPTQGemm(Op):
    """gptq_gemm, ExLlama's kernel, with or without zero points; fp16. Beyond 50 rows it dequantizes for cuBLAS.

    Source: vllm/_custom_ops.py, kernels/linear/mixed_precision/exllama.py, csrc q_gemm.cu. The second version of the
    format stores zero points as they are; the first, less one, cannot express a zero point of 0.
    """

    kernel = "gptq_gemm (ExLlama)"
    dtypes = (torch.float16,)

    def __init__(self, n, k, weight, dtype, device):
        codes, zeros, self.bits = unsigned(weight)
        self.computes = named(self.bits)
        empty = torch.empty(0, dtype=torch.int32, device=device)
        self.weight = gptq_words(codes, self.bits)
        ops = vllm_calls.vllm_ops()
        vllm_calls.call(ops.gptq_shuffle, q_weight=self.weight, q_perm=empty, bit=self.bits)
        self.product = vllm_calls.bind(
            ops.gptq_gemm,
            b_q_weight=self.weight, b_gptq_qzeros=pack(zeros.t().contiguous(), self.bits),
            b_gptq_scales=weight.scales.t().to(dtype).contiguous(), b_g_idx=empty, use_exllama=True,
            use_v2_format=True, bit=self.bits,
        )  # fmt: skip

    def __call__(self, x):
        return self.product(a=x)


class AWQGemm(Op):
    """awq_gemm, the original AWQ kernel; fp16, 4 bits. Source: vllm/_custom_ops.py, quantization/auto_awq.py."""

    kernel, computes = "awq_gemm", "w4a16"
    dtypes = (torch.float16,)
    split_k = 8  # AutoAWQ's and vLLM's number

    def __init__(self, n, k, weight, dtype, device):
        codes, zeros, bits = unsigned(weight)
        require(bits == 4, "AWQ's kernel is for 4-bit weights")
        self.ops = vllm_calls.vllm_ops()
        self.weight, self.zeros = awq_words(codes.t()), awq_words(zeros.t())
        self.scales = weight.scales.t().to(dtype).contiguous()

    def __call__(self, x):
        return self.ops.awq_gemm(x, self.weight, self.scales, self.zeros, self.split_k)


class AWQDequantizeMM(AWQGemm):
    """awq_dequantize, then torch.matmul: what vLLM's AWQ method does from 256 tokens on (quantization/auto_awq.py)."""

    kernel = "awq_dequantize and torch.matmul"

    def __call__(self, x):
        return torch.matmul(x, self.ops.awq_dequantize(self.weight, self.scales, self.zeros, 0, 0, 0))


class Marlin(Op):
    """marlin_gemm on weights repacked from GPTQ's layout: 4 or 8 bits without zero points.

    Source: vllm/_custom_ops.py, quantization/utils/marlin_utils.apply_gptq_marlin_linear, kernels/linear/
    mixed_precision/marlin.py. vLLM's layer pads other shapes; here they are refused.
    """

    kernel = "marlin_gemm"
    zeros = False

    def __init__(self, n, k, weight, dtype, device):
        from vllm.model_executor.layers.quantization.utils import marlin_utils

        tiles = (n % 64 == 0 and k % 128 == 0) or (n % 128 == 0 and k % 64 == 0)
        refuse_unless(tiles, f"Marlin multiplies tiles of 64 x 128 or 128 x 64, which do not divide {n} x {k}")
        group = group_size(weight, k)
        known = marlin_utils.MARLIN_SUPPORTED_GROUP_SIZES
        refuse_unless(group in known, f"Marlin has no groups of {group}, only {known}")
        device = vllm_calls.indexed(device)
        empty = torch.empty(0, dtype=torch.int32, device=device)
        if self.zeros:
            codes, zero_points, bits = unsigned(weight)
            require(bits == 4, "Marlin has zero points for 4-bit weights only")
            packed, repack = awq_words(codes.t()), "awq_marlin_repack"
            zero_points = marlin_utils.marlin_zero_points(zero_points.t().contiguous(), weight.scales.shape[1], n, bits)
        else:
            codes, bits = biased(weight)
            packed, repack, zero_points = gptq_words(codes, bits), "gptq_marlin_repack", empty
        self.computes = named(bits)
        ops = vllm_calls.vllm_ops()
        arguments = {"b_q_weight": packed, "perm": empty, "size_k": k, "size_n": n, "num_bits": bits}
        scales = weight.scales.t().to(dtype).contiguous()
        self.product = vllm_calls.bind(
            ops.marlin_gemm,
            c=None, b_q_weight=vllm_calls.call(getattr(ops, repack), **arguments), b_bias=None,
            b_scales=marlin_utils.marlin_permute_scales(scales, size_k=k, size_n=n, group_size=group),
            a_scales=None, global_scale=None, b_zeros=zero_points, g_idx=empty, perm=empty,
            workspace=marlin_utils.marlin_make_workspace_new(device, MARLIN_BLOCKS),
            b_q_type=vllm_calls.scalar_type(bits, self.zeros), size_n=n, size_k=k, is_k_full=True, use_atomic_add=False,
            use_fp32_reduce=True, is_zp_float=False,
        )  # fmt: skip

    def __call__(self, x):
        return self.product(a=x, size_m=len(x))


class MarlinZeros(Marlin):
    """marlin_gemm on weights repacked from AWQ's layout: 4 bits with zero points."""

    kernel = "marlin_gemm, zero points"
    zeros = True


class Machete(Op):
    """machete_mm on weights from machete_prepack_B: Hopper only, 4 or 8 bits without zero points.

    Source: vllm/_custom_ops.py, kernels/linear/mixed_precision/machete.py.
    """

    kernel = "machete_mm"
    zeros = False

    def __init__(self, n, k, weight, dtype, device):
        from vllm.model_executor.layers.quantization.utils import machete_utils

        possible, reason = machete_utils.check_machete_supports_shape(k, n)
        refuse_unless(possible, f"Machete: {reason}")
        group = group_size(weight, k)
        known = machete_utils.query_machete_supported_group_sizes(dtype)
        refuse_unless(group in known, f"Machete has no groups of {group}, only {known}")
        scales = weight.scales.t().to(dtype).contiguous()
        zero_points = None
        if self.zeros:
            codes, zero_points, bits = unsigned(weight)
            # The kernel adds: the scale is applied to the zero points first.
            zero_points = (-scales * zero_points.t().to(dtype)).contiguous()
        else:
            codes, bits = biased(weight)
        self.computes = named(bits)
        ops, kind = vllm_calls.vllm_ops(), vllm_calls.scalar_type(bits, self.zeros)
        # Packed along k and column-major: the transpose of the rows' words.
        words = pack(codes, bits).t()
        packed = ops.machete_prepack_B(words, a_type=dtype, b_type=kind, group_scales_type=dtype)
        self.product = vllm_calls.bind(
            ops.machete_mm,
            b_q=packed,
            b_type=kind,
            b_group_zeros=zero_points,
            b_group_scales=scales,
            b_group_size=group,
        )

    def __call__(self, x):
        return self.product(a=x)


class MacheteZeros(Machete):
    """machete_mm with zero points, of 4 bits."""

    kernel = "machete_mm, zero points"
    zeros = True


class W4A8ScaledMM(Op):
    """cutlass_w4a8_mm: 4-bit weights in groups of 128, FP8 activations quantized beforehand; Hopper only, bfloat16.

    The groups' scales are FP8 too, with a factor per output channel: the kernel's own rounding of the format.
    Source: vllm/_custom_ops.py, kernels/linear/mixed_precision/cutlass.py, quant_utils.convert_bf16_scales_to_fp8.
    """

    kernel, computes, includes_quantization = "cutlass_w4a8_mm (CUTLASS)", "w4a8-fp8", False
    dtypes = (torch.bfloat16,)

    def __init__(self, n, k, weight, dtype, device):
        from vllm.model_executor.layers.quantization.utils.quant_utils import convert_bf16_scales_to_fp8

        refuse_unless(n % BLOCK == 0 and k % BLOCK == 0, f"CUTLASS's W4A8 is for multiples of 128, not {n} x {k}")
        refuse_unless(group_size(weight, k) == BLOCK, "CUTLASS's W4A8 is for groups of 128")
        codes, bits = biased(weight)
        require(bits == 4, "CUTLASS's W4A8 is for 4-bit weights")
        ops = vllm_calls.vllm_ops()
        scales, self.channel_scales = convert_bf16_scales_to_fp8(
            lambda rows: ops.scaled_fp8_quant(rows, use_per_token_if_dynamic=True), weight.scales.to(dtype)
        )
        # Signed, unlike every other layout: four bits of two's complement.
        signed = (codes - 8) & 15
        self.weight = ops.cutlass_encode_and_reorder_int4b(pack(signed, bits).t())
        self.scales = ops.cutlass_pack_scale_fp8(scales.t().contiguous())
        self.product = ops.cutlass_w4a8_mm

    def operand(self, x):
        return quantize(x, FP8_MAX, torch.float8_e4m3fn, per_token=True)

    def __call__(self, operand):
        return self.product(
            a=operand[0], b_q=self.weight, b_group_scales=self.scales, b_group_size=BLOCK,
            b_channel_scales=self.channel_scales, a_token_scales=operand[1],
        )  # fmt: skip


class TorchInt4WeightOnly(Op):
    """torch's own int4 product, which torchao's int4 weight-only calls: tinygemm on CUDA, AVX-512 or AVX2 on a CPU.

    aten._weight_int4pack_mm on aten._convert_weight_to_int4pack, each with _for_cpu on a CPU. Groups of 32, 64, 128 or
    256; a number is (code - 8) scale + zero. Source: torch, native/cuda/int4mm.cu, native/cpu/int4mm_kernel.cpp.
    """

    computes = "w4a16"
    device = "any"
    dtypes = (torch.bfloat16,)

    def __init__(self, n, k, weight, dtype, device):
        self.group = k // weight.scales.shape[1]
        codes, zeros, bits = unsigned(weight)
        require(bits == 4, "this product is for 4-bit weights")
        known = (32, 64, 128, 256)
        refuse_unless(self.group in known, f"torch's int4 product has no groups of {self.group}, only {known}")
        if device.type == "cpu":
            refuse_unless(n % 16 == 0, f"torch's int4 product is for n in multiples of 16, not {n}")
            self.kernel, self.product = "_weight_int4pack_mm_for_cpu", torch.ops.aten._weight_int4pack_mm_for_cpu
        else:
            self.kernel, self.product = "_weight_int4pack_mm (tinygemm)", torch.ops.aten._weight_int4pack_mm
        self.weight, self.scales = tinygemm_words(codes), tinygemm_scales(weight, zeros, dtype)

    def __call__(self, x):
        return self.product(x, self.weight, self.group, self.scales)


class TorchInt8WeightOnly(Op):
    """aten._weight_int8pack_mm: int8 weights with a scale per output channel, as they lie.

    Source: torch, aten/src/ATen/native/cpu/int8mm_kernel.cpp; CUDA has it too, from torch 2.9 on.
    """

    kernel, computes = "_weight_int8pack_mm", "w8a16-int8"
    device = "any"
    dtypes = (torch.bfloat16,)

    def __init__(self, n, k, weight, dtype, device):
        self.weight = eight_bit(weight, torch.int8)
        self.scales = channel_scales(weight).view(n).to(dtype)

    def __call__(self, x):
        return torch.ops.aten._weight_int8pack_mm(x, self.weight, self.scales)
