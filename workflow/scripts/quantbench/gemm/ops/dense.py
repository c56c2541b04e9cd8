"""Products of weights that are not quantized."""

import torch

from quantbench.gemm.ops.base import Op

FLOAT_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


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
