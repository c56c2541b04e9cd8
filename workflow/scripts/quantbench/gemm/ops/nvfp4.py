"""Products of NVFP4 weights and activations."""

import torch

from quantbench.gemm.ops import vllm_calls
from quantbench.gemm.ops.base import FP8_MAX, Op, refuse_unless, require

FP4_MAX = 6.0  # largest float4_e2m1fn


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
        self.dtype, self.ops = dtype, vllm_calls.vllm_ops()
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
