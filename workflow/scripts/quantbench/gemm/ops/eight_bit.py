"""Products of 8-bit weights and activations."""

import torch

from quantbench.gemm.ops import vllm_calls
from quantbench.gemm.ops.base import BLOCK, FP8_MAX, INSTALL, Op, refuse_unless
from quantbench.gemm.ops.layouts import block_scales, channel_scales, eight_bit, quantize, tensor_scale

INT8_MAX = 127.0


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
        self.ops = vllm_calls.vllm_ops()

    def __call__(self, operand):
        return self.ops.cutlass_scaled_mm(operand[0], self.weight, operand[1], self.scales, self.dtype)


class OneDNNScaledMM(ScaledMM):
    """vLLM's onednn_scaled_mm on a CPU, INT8. Source: vllm/_custom_ops.py, kernels/linear/scaled_mm/cpu.py."""

    kernel = "onednn_scaled_mm (oneDNN)"
    device = "cpu"
    primitives = 32  # shapes that it remembers a plan for; vLLM's own number

    def __init__(self, n, k, weight, dtype, device):
        super().__init__(n, k, weight, dtype, device)
        self.ops, self.n = vllm_calls.vllm_ops(), n
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

        self.dtype, self.ops, self.triton = dtype, vllm_calls.vllm_ops(), w8a8_triton_block_scaled_mm
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
