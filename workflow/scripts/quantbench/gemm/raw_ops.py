"""Matrix products by one operator, without vLLM's linear layer around it: what the layer's chooser would not take.

    op = build("awq_gemm", n, k, weight, torch.float16, "cuda")
    operand = op.prepare(x)     # quantizes the activations where the operator takes them so, and tries the product once
    y = op(operand)             # [m, n]: this is timed

An op packs weight.levels and weight.scales itself, so it computes the integers that its result is checked against.
Written for vLLM 0.25.1 and 0.32.0 (arguments that one of them lacks are left out by name), torch 2.11 to 2.13.

Errors: NotImplementedError (this device, shape, type or release cannot), ValueError (the weight is not of this op's
format) and ImportError (an absent package), each with a sentence for the reader.
"""

import torch

from quantbench.errors import UserError
from quantbench.gemm.ops.base import Refusals
from quantbench.gemm.ops.dense import TorchMM, TorchTF32
from quantbench.gemm.ops.eight_bit import (
    CutlassScaledMM,
    CutlassScaledMMTensor,
    DeepGEMMBlock,
    FP8BlockScaledMM,
    FP8ScaledMMTensor,
    FP8ScaledMMToken,
    OneDNNScaledMM,
    OneDNNScaledMMTensor,
    TorchIntMM,
    TorchScaledMMTensor,
    TorchScaledMMToken,
    TransformerEngineDelayed,
)
from quantbench.gemm.ops.nvfp4 import NVFP4ScaledMM, TorchScaledMMNVFP4
from quantbench.gemm.ops.torchao import TorchAOInt4, TorchAOInt8
from quantbench.gemm.ops.weight_only import (
    AWQDequantizeMM,
    AWQGemm,
    GPTQGemm,
    Machete,
    MacheteZeros,
    Marlin,
    MarlinZeros,
    TorchInt4WeightOnly,
    TorchInt8WeightOnly,
    W4A8ScaledMM,
)

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
