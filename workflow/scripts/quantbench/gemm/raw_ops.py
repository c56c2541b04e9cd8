"""Matrix products by one operator, without vLLM's linear layer around it: what the layer's chooser would not take.

    op = build("awq_gemm", n, k, weight, torch.float16, "cuda")
    operand = op.prepare(x)     # quantizes the activations where the operator takes them so, and tries the product once
    y = op(operand)             # [m, n]: this is timed

An op packs weight.levels and weight.scales itself, so it computes the integers that its result is checked against.
Written for vLLM 0.25.1 and 0.32.0 (arguments that one of them lacks are left out by name), torch 2.11 to 2.13.

Errors: NotImplementedError (this device, shape, type or release cannot), ValueError (the weight is not of this op's
format) and ImportError (an absent package), each with a sentence for the reader.
"""

import inspect

import torch

from quantbench.errors import UserError
from quantbench.gemm.weights import AWQ_ORDER, pack

INT8_MAX = 127.0
FP8_MAX = 448.0  # largest float8_e4m3fn
FP4_MAX = 6.0  # largest float4_e2m1fn
BLOCK = 128
# Thread blocks per multiprocessor that Marlin may lock (vLLM marlin_utils.MARLIN_MAX_BLOCKS_PER_SM).
MARLIN_BLOCKS = 4
FLOAT_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}

INSTALL = "{package} is not installed in the engine's environment: `pip install {pip}` there, a release for its torch"


def build(op, n, k, weight, dtype, device):
    """The product of [m, k] activations with an [n, k] Weight, by the operator called `op`.

    dtype   torch type of activations and results
    Returns an Op. Raises UserError for an unknown name; the errors of this module for what cannot be.
    """
    if op not in OPS:
        raise UserError(f"{op!r} is no op of gemm/raw_ops.py: choose from {', '.join(OPS)}")
    kind = torch.device(device).type
    family = next((each for each in OPS[op] if each.device in ("any", kind)), None)
    if family is None:
        raise NotImplementedError(f"{op} runs on {'a CPU' if OPS[op][0].device == 'cpu' else 'CUDA devices'} only")
    if dtype not in family.dtypes:
        known = " and ".join(str(each).removeprefix("torch.") for each in family.dtypes)
        raise NotImplementedError(f"{op} multiplies {known}, not {str(dtype).removeprefix('torch.')}")
    with Refusals(op):
        return family(n, k, weight, dtype, torch.device(device))


class Op:
    """One product.

    kernel                 what runs, for the table
    computes               as in engine/kernels.py
    includes_quantization  whether the call quantizes its activations; None: they stay as wide as they are
    device, dtypes         where it runs, and the types of activations and results it has
    """

    kernel = None
    computes = None
    includes_quantization = None
    device = "cuda"
    dtypes = (torch.bfloat16, torch.float16)

    def prepare(self, x):
        """The operand of the timed call for [m, k] activations; the product is tried once, to be refused here."""
        with Refusals(self.kernel):
            operand = self.operand(x)
            self(operand)
        return operand

    def operand(self, x):
        return x

    def __call__(self, operand):
        raise NotImplementedError


class Refusals:
    """Turns a library's refusal of a device, a shape or a type into NotImplementedError with its own words.

    A failed allocation stays what it is, and so does an error of the device, after which nothing can be trusted.
    """

    def __init__(self, who):
        self.who = who

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None or isinstance(error, torch.OutOfMemoryError):
            return
        # torch explains at length why an operator has no kernel for a device.
        words = str(error).strip().split("\n")[0].split(". This could be")[0] or kind.__name__
        if isinstance(error, NotImplementedError) and words == str(error):
            return
        missing = isinstance(error, AttributeError) and "_OpNamespace" in words
        if missing or isinstance(error, AssertionError):
            raise NotImplementedError(f"{self.who}: {words}") from error
        if not isinstance(error, RuntimeError) or "can't allocate memory" in words:
            return
        if "CUDA error" not in words or "no kernel image" in words:
            raise NotImplementedError(f"{self.who}: {words}") from error


# --- unquantized ------------------------------------------------------------------------------------------------------


class TorchMM(Op):
    """torch.mm: cuBLAS on CUDA, oneDNN or MKL on a CPU. fp32 is exact there, whatever the process was set to."""

    device = "any"
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    precision = "ieee"

    def __init__(self, n, k, weight, dtype, device):
        # torch gives 16-bit products to oneDNN and fp32 to the BLAS that it was built with.
        blas = "MKL" if torch.backends.mkl.is_available() else "BLAS"
        library = "cuBLAS" if device.type == "cuda" else blas if dtype == torch.float32 else "oneDNN"
        self.kernel = f"torch.mm ({library})"
        self.computes = self.computes or FLOAT_NAMES[dtype]
        # cuBLAS reads the setting at each call.
        self.by_setting = dtype == torch.float32 and device.type == "cuda"
        self.weight = weight.tensors["weight"].to(dtype).t()

    def __call__(self, x):
        if not self.by_setting:
            return torch.mm(x, self.weight)
        before = fp32_precision(self.precision)
        try:
            return torch.mm(x, self.weight)
        finally:
            fp32_precision(before)


class TorchTF32(TorchMM):
    """torch.mm of fp32 numbers, of which the tensor cores read 19 bits: torch's "tf32" setting around each call."""

    device = "cuda"
    dtypes = (torch.float32,)
    computes = precision = "tf32"


def fp32_precision(precision):
    """Sets how cuBLAS multiplies fp32, "ieee" or "tf32"; returns what it was. torch < 2.9 knows a flag only."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        before, matmul.fp32_precision = matmul.fp32_precision, precision
        return before
    before, matmul.allow_tf32 = matmul.allow_tf32, precision == "tf32"
    return "tf32" if before else "ieee"


# --- 8-bit weights and activations, quantized beforehand --------------------------------------------------------------


class ScaledMM(Op):
    """8-bit products whose activations come quantized: what all have in common.

    The operand is (activations [m, k], their scales). Scales per token are [m, 1], per tensor [1], in fp32.
    """

    includes_quantization = False
    per_token = True
    top, stored = INT8_MAX, torch.int8
    computes = "w8a8-int8"

    def __init__(self, n, k, weight, dtype, device):
        self.dtype = dtype
        self.weight = eight_bit(weight, self.stored).t()
        self.scales = channel_scales(weight) if self.per_token else tensor_scale(weight)

    def operand(self, x):
        return quantize(x, self.top, self.stored, per_token=self.per_token)


class CutlassScaledMM(ScaledMM):
    """vLLM's cutlass_scaled_mm: INT8 from compute capability 7.5 (not 10.0 and later), FP8 from 8.9.

    Source: vllm/_custom_ops.py, kernels/linear/scaled_mm/cutlass.py. A width or depth that 16 does not divide would
    silently go to Triton, so it is refused.
    """

    kernel = "cutlass_scaled_mm (CUTLASS)"

    def __init__(self, n, k, weight, dtype, device):
        refuse_unless(n % 16 == 0 and k % 16 == 0, f"CUTLASS's scaled products are for multiples of 16, not {n} x {k}")
        super().__init__(n, k, weight, dtype, device)
        self.ops = vllm_ops()

    def __call__(self, operand):
        return self.ops.cutlass_scaled_mm(operand[0], self.weight, operand[1], self.scales, self.dtype)


class OneDNNScaledMM(ScaledMM):
    """vLLM's onednn_scaled_mm on a CPU, INT8. Source: vllm/_custom_ops.py, kernels/linear/scaled_mm/cpu.py."""

    kernel = "onednn_scaled_mm (oneDNN)"
    device = "cpu"
    primitives = 32  # shapes that it remembers a plan for; vLLM's own number

    def __init__(self, n, k, weight, dtype, device):
        super().__init__(n, k, weight, dtype, device)
        self.ops, self.n = vllm_ops(), n
        self.handler = self.ops.create_onednn_scaled_mm(
            self.weight, self.scales, dtype, self.per_token, False, self.primitives
        )
        # The handler holds its own, repacked copy.
        self.weight = None

    def __call__(self, operand):
        values, scales = operand
        out = torch.empty(len(values), self.n, dtype=self.dtype)
        return self.ops.onednn_scaled_mm(self.handler, values, out, scales, None, None, None)


class CutlassScaledMMTensor(CutlassScaledMM):
    """INT8 with one scale per tensor, by vLLM's cutlass_scaled_mm."""

    per_token = False


class OneDNNScaledMMTensor(OneDNNScaledMM):
    """INT8 with one scale per tensor, by vLLM's onednn_scaled_mm."""

    per_token = False


class TorchIntMM(ScaledMM):
    """torch._int_mm (cuBLASLt on CUDA), then the scales: int32 results cross memory once more than they must.

    On CUDA it wants more than 16 rows, and rows and columns in multiples of 8.
    """

    device = "any"

    def __init__(self, n, k, weight, dtype, device):
        super().__init__(n, k, weight, dtype, device)
        self.kernel = f"torch._int_mm{' (cuBLASLt)' if device.type == 'cuda' else ''} and scaling"
        self.scales = self.scales.view(1, -1)

    def __call__(self, operand):
        values, scales = operand
        return torch._int_mm(values, self.weight).mul(scales).mul_(self.scales).to(self.dtype)


class FP8ScaledMMToken(CutlassScaledMM):
    """FP8 with a scale per token and output channel, by vLLM's cutlass_scaled_mm."""

    computes, top, stored = "w8a8-fp8", FP8_MAX, torch.float8_e4m3fn


class FP8ScaledMMTensor(FP8ScaledMMToken):
    """FP8 with one scale per tensor, by vLLM's cutlass_scaled_mm."""

    per_token = False


class TorchScaledMMTensor(ScaledMM):
    """torch._scaled_mm, one scale per tensor; on CUDA cuBLASLt, with its fast (not fully fp32) accumulation."""

    device = "any"
    per_token = False
    computes, top, stored = "w8a8-fp8", FP8_MAX, torch.float8_e4m3fn

    def __init__(self, n, k, weight, dtype, device):
        super().__init__(n, k, weight, dtype, device)
        self.kernel = f"torch._scaled_mm{' (cuBLASLt)' if device.type == 'cuda' else ''}"
        self.settings = {"out_dtype": dtype, "use_fast_accum": device.type == "cuda"}

    def __call__(self, operand):
        return torch._scaled_mm(operand[0], self.weight, operand[1], self.scales, **self.settings)


class TorchScaledMMToken(TorchScaledMMTensor):
    """torch._scaled_mm, scales per token and output channel ("rowwise"): results in bfloat16 only."""

    device = "cuda"
    per_token = True
    dtypes = (torch.bfloat16,)

    def __init__(self, n, k, weight, dtype, device):
        super().__init__(n, k, weight, dtype, device)
        self.scales = self.scales.view(1, n)
        self.kernel = "torch._scaled_mm, rowwise"


class FP8BlockScaledMM(Op):
    """FP8 in blocks of 128 (weights 128 x 128, activations 1 x 128), by what vLLM has for the device.

    CUTLASS from compute capability 9.0, with the activations' scales column-major; else vLLM's Triton product.
    Source: kernels/linear/scaled_mm/cutlass.py (CutlassFp8BlockScaledMMKernel), quantization/utils/fp8_utils.py.
    """

    computes, includes_quantization = "w8a8-fp8", False

    def __init__(self, n, k, weight, dtype, device):
        from vllm.model_executor.layers.quantization.utils.fp8_utils import w8a8_triton_block_scaled_mm
        from vllm.model_executor.layers.quantization.utils.w8a8_utils import cutlass_block_fp8_supported

        self.dtype, self.ops, self.triton = dtype, vllm_ops(), w8a8_triton_block_scaled_mm
        self.cutlass = cutlass_block_fp8_supported()
        self.kernel = "cutlass_scaled_mm, blockwise (CUTLASS)" if self.cutlass else "w8a8_triton_block_scaled_mm"
        self.weight, self.scales = eight_bit(weight, torch.float8_e4m3fn), block_scales(weight)

    def operand(self, x):
        values, scales = quantize(x, FP8_MAX, torch.float8_e4m3fn, group=BLOCK)
        # A clone, for one row is contiguous either way and would keep its strides.
        columns = scales.t().clone(memory_format=torch.contiguous_format).t()
        return values, columns if self.cutlass else scales

    def __call__(self, operand):
        values, scales = operand
        if self.cutlass:
            return self.ops.cutlass_scaled_mm(values, self.weight.T, scales, self.scales.T, self.dtype)
        return self.triton(values, self.weight, scales, self.scales, [BLOCK, BLOCK], self.dtype)


class DeepGEMMBlock(Op):
    """FP8 in blocks of 128 by DeepGEMM, which comes with vLLM's CUDA wheel; bfloat16 results, from capability 9.0.

    Source: vllm/utils/deep_gemm.py, kernels/linear/scaled_mm/deep_gemm.py. Where DeepGEMM wants scales that are powers
    of two, weights and activations are rounded once more.
    """

    kernel, computes, includes_quantization = "fp8_gemm_nt (DeepGEMM)", "w8a8-fp8", False
    dtypes = (torch.bfloat16,)

    def __init__(self, n, k, weight, dtype, device):
        from vllm.model_executor.layers.quantization.utils import fp8_utils
        from vllm.utils import deep_gemm

        refuse_unless(deep_gemm.is_deep_gemm_supported(), "DeepGEMM is not there for this device or this build of vLLM")
        self.n, self.dtype = n, dtype
        self.product, self.powers_of_two = deep_gemm.fp8_gemm_nt, deep_gemm.is_deep_gemm_e8m0_used()
        self.quantize = fp8_utils.per_token_group_quant_fp8
        self.weight, self.scales = fp8_utils.deepgemm_post_process_fp8_weight_block(
            # Rounding once more happens in place.
            eight_bit(weight, torch.float8_e4m3fn).clone(), block_scales(weight).clone(), (BLOCK, BLOCK),
            self.powers_of_two,
        )  # fmt: skip

    def operand(self, x):
        return self.quantize(x, BLOCK, column_major_scales=True, tma_aligned_scales=True, use_ue8m0=self.powers_of_two)

    def __call__(self, operand):
        out = torch.empty(len(operand[0]), self.n, dtype=self.dtype, device=operand[0].device)
        self.product(operand, (self.weight, self.scales), out, is_deep_gemm_e8m0_used=self.powers_of_two)
        return out


class TransformerEngineDelayed(Op):
    """Transformer Engine's Linear, FP8 with delayed scaling: a tensor's scale comes from its last sixteen maxima.

    Weights are quantized once and kept (is_first_microbatch=False), activations in every call.
    Source: transformer_engine.pytorch.Linear, transformer_engine.common.recipe.DelayedScaling.
    """

    kernel, computes, includes_quantization = "transformer_engine Linear, delayed scaling", "w8a8-fp8", True
    history = 16

    def __init__(self, n, k, weight, dtype, device):
        try:
            import transformer_engine.pytorch as engine
            from transformer_engine.common.recipe import DelayedScaling, Format
        except ImportError:
            package, pip = "Transformer Engine", "--no-build-isolation transformer_engine[pytorch]"
            raise ImportError(INSTALL.format(package=package, pip=pip)) from None
        self.recipe = DelayedScaling(fp8_format=Format.HYBRID, amax_history_len=self.history, amax_compute_algo="max")
        self.engine = engine
        self.layer = engine.Linear(k, n, bias=False, params_dtype=dtype, device=device)
        self.layer.weight.data.copy_(weight.dequantize(slice(None)))

    def operand(self, x):
        # A maximum counts from the call after it on, for the weights too.
        for _ in range(3):
            self._call(x, True)
        return x

    def _call(self, x, first):
        with self.engine.fp8_autocast(enabled=True, fp8_recipe=self.recipe):
            return self.layer(x, is_first_microbatch=first)

    def __call__(self, x):
        return self._call(x, False)


# --- integer weights, 16-bit activations ------------------------------------------------------------------------------


class GPTQGemm(Op):
    """gptq_gemm, ExLlama's kernel, with or without zero points; fp16. Beyond 50 rows it dequantizes for cuBLAS.

    Source: vllm/_custom_ops.py, kernels/linear/mixed_precision/exllama.py, csrc q_gemm.cu. The second version of the
    format stores zero points as they are; the first, less one, cannot express a zero point of 0.
    """

    kernel = "gptq_gemm (ExLlama)"
    dtypes = (torch.float16,)

    def __init__(self, n, k, weight, dtype, device):
        codes, zeros, self.bits = unsigned(weight)
        self.computes = weight_only(self.bits)
        empty = torch.empty(0, dtype=torch.int32, device=device)
        self.weight = gptq_words(codes, self.bits)
        ops = vllm_ops()
        call(ops.gptq_shuffle, q_weight=self.weight, q_perm=empty, bit=self.bits)
        self.product = bind(
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
        self.ops = vllm_ops()
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
        device = indexed(device)
        empty = torch.empty(0, dtype=torch.int32, device=device)
        if self.zeros:
            codes, zero_points, bits = unsigned(weight)
            require(bits == 4, "Marlin has zero points for 4-bit weights only")
            packed, repack = awq_words(codes.t()), "awq_marlin_repack"
            zero_points = marlin_utils.marlin_zero_points(zero_points.t().contiguous(), weight.scales.shape[1], n, bits)
        else:
            codes, bits = biased(weight)
            packed, repack, zero_points = gptq_words(codes, bits), "gptq_marlin_repack", empty
        self.computes = weight_only(bits)
        ops = vllm_ops()
        arguments = {"b_q_weight": packed, "perm": empty, "size_k": k, "size_n": n, "num_bits": bits}
        scales = weight.scales.t().to(dtype).contiguous()
        self.product = bind(
            ops.marlin_gemm,
            c=None, b_q_weight=call(getattr(ops, repack), **arguments), b_bias=None,
            b_scales=marlin_utils.marlin_permute_scales(scales, size_k=k, size_n=n, group_size=group),
            a_scales=None, global_scale=None, b_zeros=zero_points, g_idx=empty, perm=empty,
            workspace=marlin_utils.marlin_make_workspace_new(device, MARLIN_BLOCKS),
            b_q_type=scalar_type(bits, self.zeros), size_n=n, size_k=k, is_k_full=True, use_atomic_add=False,
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
        self.computes = weight_only(bits)
        ops, kind = vllm_ops(), scalar_type(bits, self.zeros)
        # Packed along k and column-major: the transpose of the rows' words.
        words = pack(codes, bits).t()
        packed = ops.machete_prepack_B(words, a_type=dtype, b_type=kind, group_scales_type=dtype)
        self.product = bind(
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
        ops = vllm_ops()
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


# --- torchao ----------------------------------------------------------------------------------------------------------


class TorchAO(Op):
    """A linear layer that torchao quantized, holding this weight's integers in place of its own.

    set_inductor_config=False: the setting would let every fp32 product of the process use TF32.
    """

    device = "any"
    dtypes = (torch.bfloat16,)

    def __init__(self, n, k, weight, dtype, device):
        try:
            from torchao import quantization
        except ImportError:
            raise ImportError(INSTALL.format(package="torchao", pip="torchao")) from None
        self.layer = torch.nn.Linear(k, n, bias=False, dtype=dtype, device=device)
        self.layer.weight = torch.nn.Parameter(weight.dequantize(slice(None)).to(dtype), requires_grad=False)
        try:
            quantization.quantize_(self.layer, self.config(quantization, weight, k, device))
            held = self.layer.weight
            self.fill(held, weight, n, k, dtype)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise NotImplementedError(f"this release of torchao has no such layer: {error}") from error
        self.kernel = f"torchao {type(held).__name__}"

    def __call__(self, x):
        return self.layer(x)


class TorchAOInt4(TorchAO):
    """torchao's Int4WeightOnlyConfig: the layout for tensor cores on CUDA, the CPU's own on a CPU.

    Source: torchao/quantization/quantize_/workflows/int4. On CUDA it pads k to a multiple of 1024 in every call.
    """

    computes = "w4a16"

    def config(self, quantization, weight, k, device):
        packing = "tile_packed_to_4d" if device.type == "cuda" else "opaque"
        size = k // weight.scales.shape[1]
        return call(
            quantization.Int4WeightOnlyConfig, group_size=size, int4_packing_format=packing, set_inductor_config=False
        )

    def fill(self, held, weight, n, k, dtype):
        codes, zeros, bits = unsigned(weight)
        require(bits == 4, "torchao's int4 product is for 4-bit weights")
        scales = tinygemm_scales(weight, zeros, dtype)
        groups, rows, _ = held.scale_and_zero.shape
        # Padding: code 8 with scale and zero 0 is 0.
        columns = groups * (k // weight.scales.shape[1])
        codes = torch.nn.functional.pad(codes, (0, columns - k, 0, rows - n), value=8)
        scales = torch.nn.functional.pad(scales, (0, 0, 0, rows - n, 0, groups - len(scales)))
        held.qdata.copy_(tinygemm_words(codes))
        held.scale_and_zero.copy_(scales)


class TorchAOInt8(TorchAO):
    """torchao's Int8WeightOnlyConfig, a scale per output channel.

    Source: torchao/quantization/quantize_/workflows/int8/int8_tensor.py: eagerly, the weight is widened in every call.
    """

    computes = "w8a16-int8"

    def config(self, quantization, weight, k, device):
        # The second version is the tensor named above; later releases have no other.
        return call(quantization.Int8WeightOnlyConfig, version=2, set_inductor_config=False)

    def fill(self, held, weight, n, k, dtype):
        held.qdata.copy_(eight_bit(weight, torch.int8))
        held.scale.copy_(channel_scales(weight).view(held.scale.shape))


# --- NVFP4 ------------------------------------------------------------------------------------------------------------


class NVFP4ScaledMM(Op):
    """vLLM's cutlass_scaled_fp4_mm on activations from scaled_fp4_quant: compute capability 10.0 and later.

    Source: vllm/_custom_ops.py, kernels/linear/nvfp4/cutlass.py. vLLM's layer pads other shapes; here they are refused.
    """

    kernel, computes, includes_quantization = "cutlass_scaled_fp4_mm (CUTLASS)", "w4a4-fp4", False

    def __init__(self, n, k, weight, dtype, device):
        from vllm.model_executor.layers.quantization.utils.nvfp4_utils import cutlass_fp4_supported, swizzle_blockscale

        require("weight_global_scale" in weight.tensors, "this product is for NVFP4 weights")
        refuse_unless(cutlass_fp4_supported(), "this device, or this build of vLLM, has no FP4 products")
        refuse_unless(n % 32 == 0 and k % 32 == 0, f"FP4 products are for multiples of 32, not {n} x {k}")
        self.dtype, self.ops = dtype, vllm_ops()
        self.weight = weight.tensors["weight_packed"]
        self.scales = swizzle_blockscale(weight.tensors["weight_scale"])
        self.divisor = weight.tensors["weight_global_scale"].float().view(1)

    def operand(self, x):
        divisor = FP8_MAX * FP4_MAX / x.abs().amax().float().view(1)
        return *self.ops.scaled_fp4_quant(x, divisor), 1 / (divisor * self.divisor)

    def __call__(self, operand):
        values, scales, alpha = operand
        return self.ops.cutlass_scaled_fp4_mm(values, self.weight, scales, self.scales, alpha, self.dtype)


class TorchScaledMMNVFP4(NVFP4ScaledMM):
    """torch._scaled_mm of NVFP4 (cuBLASLt), then both tensors' scales. Source: kernels/linear/nvfp4/pytorch.py."""

    kernel = "torch._scaled_mm, NVFP4 (cuBLASLt)"
    dtypes = (torch.bfloat16,)

    def __init__(self, n, k, weight, dtype, device):
        super().__init__(n, k, weight, dtype, device)
        self.weight = self.weight.view(torch.float4_e2m1fn_x2).t()
        self.scales = self.scales.reshape(-1)

    def operand(self, x):
        values, scales, alpha = super().operand(x)
        return values.view(torch.float4_e2m1fn_x2), scales.reshape(-1), alpha

    def __call__(self, operand):
        values, scales, alpha = operand
        product = torch._scaled_mm(values, self.weight, scale_a=scales, scale_b=self.scales, out_dtype=self.dtype)
        return product * alpha.to(self.dtype)


# The first family that the device has is the op.
OPS = {
    "torch_mm": (TorchMM,),
    "torch_mm_tf32": (TorchTF32,),
    "int8_scaled_mm": (CutlassScaledMM, OneDNNScaledMM),
    "int8_scaled_mm_tensor": (CutlassScaledMMTensor, OneDNNScaledMMTensor),
    "torch_int_mm": (TorchIntMM,),
    "fp8_scaled_mm_token": (FP8ScaledMMToken,),
    "fp8_scaled_mm_tensor": (FP8ScaledMMTensor,),
    "torch_scaled_mm_token": (TorchScaledMMToken,),
    "torch_scaled_mm_tensor": (TorchScaledMMTensor,),
    "fp8_block_scaled_mm": (FP8BlockScaledMM,),
    "fp8_block_deep_gemm": (DeepGEMMBlock,),
    "transformer_engine_delayed": (TransformerEngineDelayed,),
    "gptq_gemm": (GPTQGemm,),
    "awq_gemm": (AWQGemm,),
    "awq_dequantize_mm": (AWQDequantizeMM,),
    "marlin_gptq": (Marlin,),
    "marlin_awq": (MarlinZeros,),
    "machete": (Machete,),
    "machete_zeros": (MacheteZeros,),
    "w4a8_scaled_mm": (W4A8ScaledMM,),
    "torch_int4_weight_only": (TorchInt4WeightOnly,),
    "torch_int8_weight_only": (TorchInt8WeightOnly,),
    "torchao_int4_weight_only": (TorchAOInt4,),
    "torchao_int8_weight_only": (TorchAOInt8,),
    "nvfp4_scaled_mm": (NVFP4ScaledMM,),
    "torch_scaled_mm_nvfp4": (TorchScaledMMNVFP4,),
}


# --- weights, as the operators want them ------------------------------------------------------------------------------


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


def weight_only(bits):
    return "w4a16" if bits == 4 else "w8a16-int8"


def require(fits, sentence):
    """Raises ValueError: a weight that is not of the op's format."""
    if not fits:
        raise ValueError(sentence)


def refuse_unless(possible, sentence):
    """Raises NotImplementedError: a shape or a device that the op cannot."""
    if not possible:
        raise NotImplementedError(sentence)


# --- vLLM -------------------------------------------------------------------------------------------------------------


def vllm_ops():
    from vllm import _custom_ops

    return _custom_ops


def scalar_type(bits, zeros):
    """vLLM's name of unsigned integers with zero points, or less half of 2^bits."""
    from vllm.scalar_type import scalar_types

    return getattr(scalar_types, f"uint{bits}" if zeros else f"uint{bits}b{2 ** (bits - 1)}")


def call(function, **arguments):
    """Calls with those arguments that this release's function has."""
    return function(**_known(function, arguments))


def bind(function, **arguments):
    """The function with those arguments that this release's has, for keywords yet to come."""
    known = _known(function, arguments)
    return lambda **more: function(**known, **more)


def _known(function, arguments):
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


def indexed(device):
    """A CUDA device with its number, which vLLM's helpers read."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
