"""Linear layers that torchao quantized."""

import torch

from quantbench.gemm.ops import vllm_calls
from quantbench.gemm.ops.base import INSTALL, Op, require
from quantbench.gemm.ops.layouts import channel_scales, eight_bit, tinygemm_scales, tinygemm_words, unsigned


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
        return vllm_calls.call(
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
        return vllm_calls.call(quantization.Int8WeightOnlyConfig, version=2, set_inductor_config=False)

    def fill(self, held, weight, n, k, dtype):
        held.qdata.copy_(eight_bit(weight, torch.int8))
        held.scale.copy_(channel_scales(weight).view(held.scale.shape))
